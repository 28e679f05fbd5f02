"""Controllers that optimise or learn, and how the latter learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sponge_env.scenario.config import ControlName

_KNOWN = {
    "sponge-ip": ("sponge_ip:SpongeIP", "integer program; every request has its own deadline"),
    "sponge-exact": ("sponge_ip:sponge_exact", "sponge-ip, solved by enumeration"),
    "sponge-mpc": ("lookahead:SpongeMPC", "sponge-ip that looks ahead at load and bandwidth"),
    "sponge-joint": ("sponge_joint:SpongeJoint", "cores now, replicas once they are warm"),
    "sponge-no-batching": ("sponge_ip:no_batching", "sponge-ip with batches of one"),
    "sponge-no-scaling": ("sponge_ip:no_scaling", "sponge-ip with fixed cores"),
    "sponge-smallest": ("sponge_ip:smallest_variant", "sponge-ip with the least accurate variants"),
    "sponge-largest": ("sponge_ip:largest_variant", "sponge-ip with the most accurate variants"),
    "equal-split": ("sponge_ip:equal_split", "sponge-ip for each stage, with equal budgets"),
    "proportional-split": (
        "sponge_ip:proportional_split",
        "sponge-ip for each stage, budgets by latency",
    ),
    "ppo": ("learned:ppo", "policy that imitates a program, then PPO: cores and batch size"),
    "ppo-joint": ("learned:ppo_joint", "the same, replicas too"),
    "sb3-ppo": ("learned:sb3_ppo", "policy of Stable-Baselines3's PPO: cores and batch size"),
    "maskable-ppo": ("learned:maskable_ppo", "PPO that is spared choices that make no sense"),
    "recurrent-ppo": ("learned:recurrent_ppo", "PPO with a memory (LSTM)"),
    "recurrent-ppo-joint": ("learned:recurrent_ppo_joint", "the same, replicas too"),
    "residual-ppo": ("learned:ResidualController", "PPO that corrects sponge-mpc"),
}
CONTROLLERS = {name: f"{__name__}.{place}" for name, (place, _) in _KNOWN.items()}
"""Name -> ``module:callable``, imported only when asked for."""
FILES = {"sb3": f"{__name__}.stable_baselines:SB3Policy"}
"""Word before a colon -> what follows the file after it, which is its option ``file``."""
ABOUT = {name: about for name, (_, about) in _KNOWN.items()} | {
    "sb3:FILE.zip": "model that Stable-Baselines3 saved; loading one executes code in it"
}
"""Name -> what it does, in one line."""


@dataclass(frozen=True, slots=True)
class Learner:
    """How an agent learns and decides."""

    algorithm: Literal["ppo", "maskable", "recurrent"] = "ppo"
    """Proximal policy optimisation: plain, with action masks, or with an LSTM."""
    control: ControlName = "vertical"
    """What it sees and chooses of one model; of variants and pipelines, all there is."""
    corrects: bool = False
    """Whether its actions correct the look-ahead program instead, see :mod:`.learned`."""
    phased: bool = False
    """Whether it learns simulated systems in phases, see :mod:`.learn.phases`."""
    steps: int = 1_000_000
    """Environment steps of a training run, if nothing else is said."""
    envs: int = 256
    """Simulated environments likewise."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Hyper-parameters likewise, where they differ from :class:`.learn.LearnConfig`."""


LEARNERS: dict[str, Learner] = {
    "ppo": Learner(phased=True),
    "ppo-joint": Learner(control="joint", phased=True),
    "sb3-ppo": Learner(),
    "maskable-ppo": Learner("maskable"),
    "recurrent-ppo": Learner("recurrent"),
    "recurrent-ppo-joint": Learner("recurrent", "joint"),
    # A step with the program takes half a millisecond, on the batch simulator a microsecond.
    "residual-ppo": Learner(
        corrects=True,
        steps=200_000,
        envs=16,
        options={"learning_rate": 1e-3, "entropy": 0.005, "rollout_steps": 64},
    ),
}
"""By name of the agent."""
