"""Controllers that optimise or learn."""

CONTROLLERS = {
    "sponge-ip": "agents.sponge_ip:SpongeIP",
    "sponge-exact": "agents.sponge_ip:sponge_exact",
    "sponge-mpc": "agents.sponge_mpc:SpongeMPC",
    "sponge-joint": "agents.sponge_joint:SpongeJoint",
    "sponge-no-batching": "agents.ablations:no_batching",
    "sponge-no-scaling": "agents.ablations:no_scaling",
    "ppo": "agents.learned:ppo",
    "ppo-joint": "agents.learned:ppo_joint",
    "maskable-ppo": "agents.learned:maskable_ppo",
    "recurrent-ppo": "agents.learned:recurrent_ppo",
    "recurrent-ppo-joint": "agents.learned:recurrent_ppo_joint",
    "residual-ppo": "agents.residual:ResidualController",
}
"""Name -> ``module:callable``, imported only when asked for."""
