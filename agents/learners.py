"""Which learned controllers there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sponge_env.config import ControlName
from sponge_env.interfaces import SystemSpec
from sponge_env.masks import ActionMasks


@dataclass(frozen=True, slots=True)
class Learner:
    """How an agent learns and decides."""

    algorithm: Literal["ppo", "maskable", "recurrent"] = "ppo"
    """Proximal policy optimisation: plain, with action masks, or with an LSTM."""
    control: ControlName = "vertical"
    """What it sees and chooses."""
    corrects: bool = False
    """Whether its actions correct the look-ahead program instead, see :mod:`agents.residual`."""
    steps: int = 1_000_000
    """Environment steps of a training run, if nothing else is said."""
    envs: int = 256
    """Simulated environments likewise."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Hyper-parameters likewise, where they differ from :class:`~agents.learn.plan.LearnConfig`."""


LEARNERS: dict[str, Learner] = {
    "ppo": Learner(),
    "ppo-joint": Learner(control="joint"),
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


def masks_for(agent: str, spec: SystemSpec) -> ActionMasks | None:
    """Return the masks that an agent is trained with, if it is."""
    return ActionMasks(spec) if LEARNERS[agent].algorithm == "maskable" else None
