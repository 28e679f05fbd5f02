"""What is learned in which order: the settings and the phases of a stepwise policy's training.

A policy that may change cores, batch size and replicas from the start stays with one replica: while
it does not know yet that three replicas need one core each, a second one only costs cores. So cores
and batch size come first, for one replica and for any number of them, and then the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sponge_env.controllers import Options, option
from sponge_env.errors import ConfigError, unknown

TRAINING_STEPS = 8_000_000
"""Environment steps of a training, if nothing else is said."""
ENVS = 432
"""Simulated environments likewise."""


@dataclass(frozen=True, slots=True)
class TrainingPhase:
    """One part of a training."""

    share: float
    """Of all steps."""
    replicas: Literal["one", "held", "stepped"]
    """One; a random number that stays; or as the policy decides."""
    gamma: float
    """Discount for one interval. A new replica first costs its cores for a cold start."""
    gae_lambda: float
    priced: bool = False
    """Whether each scenario's price of a violation is moved so that its target is met."""


PHASES: dict[str, TrainingPhase] = {
    "one-replica": TrainingPhase(0.08, "one", gamma=0.97, gae_lambda=0.9),
    "held-replicas": TrainingPhase(0.19, "held", gamma=0.97, gae_lambda=0.9),
    "replicas": TrainingPhase(0.08, "stepped", gamma=0.99, gae_lambda=0.95),
    "prices": TrainingPhase(0.65, "stepped", gamma=0.99, gae_lambda=0.95, priced=True),
}
"""By name, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasedConfig(Options):
    """Hyper-parameters of a training in phases, for a few hundred simulated environments."""

    learning_rate: float = option(1e-3, above=0)
    """At the start of a phase, half of it in priced ones; falls linearly to a tenth."""
    rollout_steps: int = option(32, at_least=1)
    """Steps of each environment between two updates."""
    minibatch: int = option(1536, at_least=1)
    """Transitions in one gradient step."""
    epochs: int = option(4, at_least=1)
    """Passes over a rollout."""
    clip: float = option(0.2, above=0)
    """Largest relative change of an action's probability that an update rewards."""
    entropy: float = option(0.003, at_least=0)
    """Weight of the entropy bonus at the start of a phase; falls linearly to a fifth."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    batches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """Batch sizes to choose among, as far as the limits go."""
    every: int = option(20, at_least=1)
    """Intervals after which the number of replicas may change again, where it may at all."""
    price: float = option(4.0, above=0)
    """Core-seconds that a violation costs at first, and at least: too high a price fills all cores
    for good, before a policy knows what they are good for."""
    price_most: float = option(1600.0, above=0)
    """What it costs at most."""
    violations_most: int = option(30, at_least=1)
    """Violations of one interval that count, so that one lost queue is not all that matters."""
    target_share: float = option(0.5, above=0)
    """Violations to reach, as a share of those of the best rule, see :mod:`.judge`."""
    advantage_most: float = option(200.0, above=0)
    """Largest advantage, in usual ones. A rare violation is as bad as a hundred cores."""
    random_starts: float = option(0.7, at_least=0, at_most=1)
    """Share of the episodes that begin with a random allocation."""
    tightened: tuple[float, ...] = (0.95, 0.99)
    """Least and most by which the SLO is multiplied in training: a margin for what is rare."""
    durations_s: tuple[float, ...] = (200.0, 420.0)
    """Least and most length of a training episode."""
    asymmetric: bool = True
    """Whether the critic knows which scenario it looks at."""
    phases: tuple[str, ...] = tuple(PHASES)
    """Those to go through."""
    evaluations: int = option(80, at_least=1)
    """How often the policy is judged during training."""
    evaluation_episodes: int = option(12, at_least=1)
    """Episodes of each scenario that it is judged on, always the same."""
    choice_episodes: int = option(40, at_least=1)
    """Others that choose among those policies that then seem the best."""
    blind_to: tuple[str, ...] = ()
    """Beginnings of the names of those inputs that the policy does not see: for ablations."""

    def __post_init__(self) -> None:
        # Explicit, for a class with slots is made anew and super() would miss it.
        Options.__post_init__(self)
        for name in self.phases:
            if name not in PHASES:
                raise ConfigError(unknown("phase", name, PHASES))
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be numbers of at least 1, not {self.hidden!r}")
        if not self.batches or self.batches[0] != 1 or sorted(self.batches) != list(self.batches):
            raise ConfigError(f"batches must ascend from 1, not {self.batches!r}")

    def plan(self, steps: int, scales_out: bool = True) -> list[tuple[str, TrainingPhase, int]]:
        """Return the phases, by name, with the steps of each."""
        chosen = [(name, PHASES[name]) for name in PHASES if name in self.phases]
        if not scales_out:
            without = (p for p in chosen if p[1].priced or p[1].replicas == "one")
            chosen = [(name, replace(phase, replicas="one")) for name, phase in without]
        whole = sum(phase.share for _, phase in chosen)
        return [(name, phase, round(steps * phase.share / whole)) for name, phase in chosen]
