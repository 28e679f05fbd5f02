"""The settings of a stepwise policy's training, and what is learned in which order.

A policy that may change cores, batch size and replicas from the start stays with one replica: while
it does not know yet that two replicas need fewer cores each, a second one only costs cores. So it
first does as a program does (:mod:`.imitation`); then its critic learns what that is worth; then it
practises, and finds what is better.
"""

from __future__ import annotations

from dataclasses import dataclass

from sponge_env.control.base import Options, option
from sponge_env.errors import ConfigError

TRAINING_STEPS = 8_000_000
"""Environment steps of a training, if nothing else is said."""
ENVS = 864
"""Simulated environments likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasedConfig(Options):
    """Hyper-parameters of a training in phases, for hundreds of simulated environments."""

    imitations: int = option(4, at_least=1)
    """Rounds in which the program shows what it does, each but the first where the policy leads."""
    demonstrations: int = option(12, at_least=1)
    """Episodes of each scenario in a round, every other of another system if randomised."""
    imitation_epochs: int = option(30, at_least=0)
    """Passes over what was shown so far, after each round; 0 only to see what inputs look like."""
    kickstart: float = option(0.5, at_least=0)
    """Weight of what the program has shown when the practice begins (kickstarting: Schmitt et al.,
    2018). It keeps the policy from what seems better only while its critic knows little."""
    kickstart_share: float = option(0.3, above=0, at_most=1)
    """Share of the steps in which that falls to nothing."""
    values_share: float = option(0.04, at_least=0, at_most=1)
    """Share of the steps in which rewards teach the critic only, and the policy still imitates."""
    learning_rate: float = option(5e-4, above=0)
    """At first; falls linearly to a tenth."""
    gamma: float = option(0.99, at_least=0, at_most=1)
    """Discount for one interval. A new replica first costs its cores for a cold start."""
    gae_lambda: float = option(0.95, at_least=0, at_most=1)
    rollout_steps: int = option(32, at_least=1)
    """Steps of each environment between two updates."""
    minibatch: int = option(1536, at_least=1)
    """Transitions in one gradient step."""
    epochs: int = option(2, at_least=1)
    """Passes over a rollout."""
    clip: float = option(0.2, above=0)
    """Largest relative change of an action's probability that an update rewards."""
    entropy: float = option(0.003, at_least=0)
    """Weight of the entropy bonus at first; falls linearly to a fifth."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    batches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """Batch sizes to choose among, as far as the limits go."""
    every: int = option(20, at_least=1)
    """Intervals after which the number of replicas may change again, where it may at all."""
    price: float = option(10.0, above=0)
    """Core-seconds that a violation costs at first, and at least: too high a price fills all cores
    for good, before a policy knows what they are good for."""
    price_most: float = option(200.0, above=0)
    """What it costs at most."""
    other_share: float = option(0.2, at_least=0, below=1)
    """Share of the episodes that are of other systems, if the training is randomised."""
    other_price: float = option(40.0, above=0)
    """Core-seconds that a violation costs there."""
    violations_most: int = option(30, at_least=1)
    """Violations of one interval that count, so that one lost queue is not all that matters."""
    target_share: float = option(0.75, above=0)
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
    scaled: bool = True
    """Whether the critic reckons in units of what is usual in each scenario."""
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
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be numbers of at least 1, not {self.hidden!r}")
        if not self.batches or self.batches[0] != 1 or sorted(self.batches) != list(self.batches):
            raise ConfigError(f"batches must ascend from 1, not {self.batches!r}")
        if self.price > self.price_most:
            raise ConfigError(f"price must not exceed price_most, {self.price_most:g}")
