"""Controllers to compare with."""

CONTROLLERS = {
    "fa2": "baselines.fa2:FA2",
    "static": "baselines.static:Static",
    "static-8": "baselines.static:static_8",
    "static-16": "baselines.static:static_16",
}
"""Name -> ``module:callable``, imported only when asked for."""
