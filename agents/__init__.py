"""Controllers that optimise or learn."""

LEARNED = ("ppo",)
"""Names that ``train.py`` knows, too."""

CONTROLLERS = {
    "sponge-ip": "agents.sponge_ip:SpongeIP",
    "sponge-exact": "agents.sponge_ip:sponge_exact",
    "ppo": "agents.learned:ppo",
}
"""Name -> ``module:callable``, imported only when asked for."""
