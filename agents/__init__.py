"""Controllers that optimise or learn."""

CONTROLLERS = {
    "sponge-ip": "agents.sponge_ip:SpongeIP",
    "ppo": "agents.policy:PolicyController",
}
"""Name -> ``module:callable``, imported only when asked for."""
