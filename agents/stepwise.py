"""How a stepwise policy decides: replicas one up or down now and then, the rest at once.

It follows thousands of episodes while a policy is trained and one while it is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.interfaces import SystemSpec

from .history import INPUTS, REMEMBERED, FloatMatrix, Scales, may_step, remember
from .policy import Policy

REPLICAS_MOST = 8
"""Replicas beyond which a stepwise policy does not go."""
STEPS = 3
"""Choices of the replicas' part of an action: one down, as they are, one up."""


class Progress:
    """Where episodes are: what a policy remembers of each, and the replicas that it asked for."""

    def __init__(self, specs: Sequence[SystemSpec], every: int) -> None:
        """Begin an episode of each system; they share their limits."""
        count = len(specs)
        self.scales = np.array([Scales.of(spec, every).row for spec in specs])
        self.every = every
        self.most = min(REPLICAS_MOST, specs[0].replicas_max)
        self.total_cores = specs[0].total_cores
        self.intervals = np.zeros(count, np.int64)
        """(n,) decisions so far."""
        self.replicas = np.array([spec.initial.replicas for spec in specs])
        """(n,) asked for last."""
        self.seen = np.zeros((count, len(INPUTS)), np.float32)
        """(n, inputs) of the policy."""
        self._memory = np.zeros((count, len(REMEMBERED)), np.float32)

    def see(self, observations: FloatMatrix) -> None:
        """Take in the (n, fields) joint observations of the next decision."""
        remember(observations, self.intervals, self.scales, self._memory, self.seen)

    def see_some(self, chosen: NDArray[np.bool_], observations: FloatMatrix) -> None:
        """Take in the observations of some of the episodes only."""
        memory, seen = self._memory[chosen], self.seen[chosen]
        scales, intervals = self.scales[chosen], self.intervals[chosen]
        remember(observations[chosen], intervals, scales, memory, seen)
        self._memory[chosen], self.seen[chosen] = memory, seen

    def begin(self, chosen: NDArray[np.bool_], pool: Progress, assigned: IntArray) -> None:
        """Begin new episodes of some systems of a pool, whose places are given."""
        self.scales[chosen] = pool.scales[assigned]
        self.replicas[chosen] = pool.replicas[assigned]
        self.intervals[chosen] = 0

    def steps_allowed(self) -> NDArray[np.bool_]:
        """Return which of the steps of the replicas each episode may now take, (n, 3)."""
        free = may_step(self.intervals, self.every)
        down, up = free & (self.replicas > 1), free & (self.replicas < self.most)
        return np.stack([down, np.ones_like(free), up], axis=1)

    def take(self, steps: IntArray) -> None:
        """Step the replicas, 0 down to 2 up."""
        self.replicas = self.replicas + steps - 1
        self.intervals = self.intervals + 1

    def cores_allowed(self, cores_max: int) -> NDArray[np.bool_]:
        """Return for which numbers of cores, from 1 on, the machine has room on all replicas."""
        asked = np.arange(1, cores_max + 1) * self.replicas[:, None]
        return asked <= np.maximum(self.total_cores, self.replicas)[:, None]


def decide(policy: Policy, progress: Progress, observations: FloatMatrix) -> IntArray:
    """Return the most probable (n, 3) cores, batch sizes and replicas.

    They are for (n, fields) joint observations, which the progress takes in.
    """
    progress.see(observations)
    logits = policy.logits(progress.seen)
    cores, batches, steps = np.split(logits, list(accumulate(policy.info.actions))[:-1], axis=1)
    progress.take(np.where(progress.steps_allowed(), steps, -np.inf).argmax(axis=1))
    allowed = progress.cores_allowed(cores.shape[1])
    chosen = np.where(allowed, cores, -np.inf).argmax(axis=1) + 1
    sizes = np.array(policy.info.batches)[batches.argmax(axis=1)]
    return np.stack([chosen, sizes, progress.replicas], axis=1)
