"""How a stepwise policy decides: replicas one up or down now and then, the rest at once.

It follows thousands of episodes while a policy is trained and one while it is followed.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        count, first = len(specs), specs[0]
        self.scales = np.array([Scales.of(spec, every).row for spec in specs])
        self.every = every
        self.intervals = np.zeros(count, np.int64)
        """(n,) decisions so far."""
        self.replicas = np.array([spec.initial.replicas for spec in specs])
        """(n,) asked for last."""
        self.seen = np.zeros((count, len(INPUTS)), np.float32)
        """(n, inputs) of the policy."""
        self._memory = np.zeros((count, len(REMEMBERED)), np.float32)
        # What is allowed by the number of replicas, for a decision is a matter of microseconds.
        numbers = np.arange(first.replicas_max + 1)
        self._steps = steps_allowed(numbers, min(REPLICAS_MOST, first.replicas_max))
        self._cores = cores_allowed(numbers, first.cores_max, first.total_cores)

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
        may = may_step(self.intervals, self.every).astype(np.int64)
        allowed: NDArray[np.bool_] = self._steps[may, self.replicas]
        return allowed

    def cores_allowed(self) -> NDArray[np.bool_]:
        """Return for which (n, cores) numbers of cores, from 1 on, the machine has room."""
        allowed: NDArray[np.bool_] = self._cores[self.replicas]
        return allowed

    def take(self, steps: IntArray) -> None:
        """Step the replicas, 0 down to 2 up."""
        self.replicas = self.replicas + steps - 1
        self.intervals = self.intervals + 1


def steps_allowed(replicas: IntArray, most: int) -> NDArray[np.bool_]:
    """Return which steps numbers of replicas may take, (2, n, 3): when they may not, and may."""
    now = np.stack([replicas > 1, replicas >= 0, replicas < most], axis=1)
    return np.stack([now & (np.arange(STEPS) == 1), now])


def cores_allowed(replicas: IntArray, cores_max: int, total_cores: int) -> NDArray[np.bool_]:
    """Return which numbers of cores, from 1 on, have room on all replicas, (n, cores_max).

    One always counts as such: then there are fewer replicas.
    """
    cores = np.arange(1, cores_max + 1)
    allowed: NDArray[np.bool_] = (cores * replicas[:, None] <= total_cores) | (cores == 1)
    return allowed


def decide(policy: Policy, progress: Progress, observations: FloatMatrix) -> IntArray:
    """Return the most probable (n, 3) cores, batch sizes and replicas.

    They are for (n, fields) joint observations, which the progress takes in.
    """
    progress.see(observations)
    logits = policy.logits(progress.seen)
    cores_max, sizes, _ = policy.info.actions
    steps = np.where(progress.steps_allowed(), logits[:, cores_max + sizes :], -np.inf)
    progress.take(steps.argmax(axis=1))
    cores = np.where(progress.cores_allowed(), logits[:, :cores_max], -np.inf)
    batches = logits[:, cores_max : cores_max + sizes].argmax(axis=1)
    asked = np.empty((len(logits), len(policy.info.actions)), np.int64)
    asked[:, 0] = cores.argmax(axis=1) + 1
    asked[:, 1] = np.take(policy.info.batches, batches)
    asked[:, 2] = progress.replicas
    return asked
