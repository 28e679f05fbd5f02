"""Controllers that optimise or learn."""

CONTROLLERS = {
    "sponge-ip": "agents.sponge_ip:SpongeIP",
    "sponge-exact": "agents.sponge_ip:sponge_exact",
    "ppo": "agents.policy:PolicyController",
}
"""Name -> ``module:callable``, imported only when asked for."""
