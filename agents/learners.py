"""Which learned controllers there are."""

from __future__ import annotations

from dataclasses import dataclass
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


LEARNERS: dict[str, Learner] = {
    "ppo": Learner(),
    "ppo-joint": Learner(control="joint"),
    "maskable-ppo": Learner("maskable"),
    "recurrent-ppo": Learner("recurrent"),
    "recurrent-ppo-joint": Learner("recurrent", "joint"),
}
"""By name of the agent."""


def masks_for(agent: str, spec: SystemSpec) -> ActionMasks | None:
    """Return the masks that an agent is trained with, if it is."""
    return ActionMasks(spec) if LEARNERS[agent].algorithm == "maskable" else None
