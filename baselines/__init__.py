"""Controllers to compare with."""

from baselines.options import tuned_options as tuned_options

CONTROLLERS = {
    "fa2": "baselines.fa2:FA2",
    "hpa": "baselines.hpa:HPA",
    "hpa-fast": "baselines.hpa:hpa_fast",
    "queue-rule": "baselines.queue_rule:QueueRule",
    "static": "baselines.static:Static",
    "static-8": "baselines.static:static_8",
    "static-16": "baselines.static:static_16",
    "static-tuned": "baselines.static:Static",
    "themis": "baselines.themis:Themis",
    "throttle": "baselines.throttle:Throttle",
    "vpa": "baselines.vpa:VPA",
}
"""Name -> ``module:callable``, imported only when asked for. ``static-tuned`` is ``static`` with
the smallest allocation that does on training seeds, see :mod:`baselines.tune`."""
