"""Controllers that optimise or learn."""

LEARNED = ("ppo", "maskable-ppo")
"""Names that ``train.py`` knows, too."""

CONTROLLERS = {
    "sponge-ip": "agents.sponge_ip:SpongeIP",
    "sponge-exact": "agents.sponge_ip:sponge_exact",
    "sponge-no-batching": "agents.ablations:no_batching",
    "sponge-no-scaling": "agents.ablations:no_scaling",
    "ppo": "agents.learned:ppo",
    "maskable-ppo": "agents.learned:maskable_ppo",
}
"""Name -> ``module:callable``, imported only when asked for."""
