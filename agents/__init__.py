"""Controllers that optimise or learn, and how the latter learn."""

from sponge_env.scenario.config import ControlName

_KNOWN = {
    "sponge-ip": ("sponge_ip:SpongeIP", "integer program; every request has its own deadline"),
    "sponge-mpc": ("lookahead:SpongeMPC", "sponge-ip that looks ahead at load and bandwidth"),
    "sponge-joint": ("lookahead:SpongeJoint", "cores now, replicas once they are warm"),
    "sponge-smallest": ("sponge_ip:smallest_variant", "sponge-ip with the least accurate variants"),
    "sponge-largest": ("sponge_ip:largest_variant", "sponge-ip with the most accurate variants"),
    "equal-split": ("sponge_ip:equal_split", "sponge-ip for each stage, with equal budgets"),
    "proportional-split": ("sponge_ip:proportional_split", "the same with budgets by latency"),
    "ppo": ("learned:ppo", "policy that imitates a program, then PPO: cores and batch size"),
    "ppo-joint": ("learned:ppo_joint", "the same, replicas too"),
}
CONTROLLERS = {name: f"{__name__}.{place}" for name, (place, _) in _KNOWN.items()}
"""Name -> ``module:callable``, imported only when used."""
SERVING = "sponge-joint"  # In charge of a server that names no controller
FILES = {"sb3": f"{__name__}.stable_baselines:SB3Policy"}
"""For ``word:FILE``: word -> controller, whose option ``file`` is the file."""
ABOUT = {name: about for name, (_, about) in _KNOWN.items()} | {
    "sb3:FILE.zip": "model that Stable-Baselines3 saved; loading one executes code in it"
}
"""Name -> what it does, in one line."""

LEARNERS: dict[str, ControlName] = {"ppo": "vertical", "ppo-joint": "joint"}
"""Name of a learned agent -> its control of one model; with several, it sees and chooses all."""
