"""How a stepwise policy decides: replicas one up or down now and then, the rest at once.

It follows thousands of episodes while a policy is trained and one while it is followed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec

from .history import INPUTS, REMEMBERED, FloatMatrix, Scales, may_step, remember
from .policy import STEPWISE_PARTS

REPLICAS_MOST = 8
"""Replicas beyond which a stepwise policy does not go."""
MOVES = 3
"""Choices of the replicas' part of an action: one down, as they are, one up."""


class PolicyState:
    """Where episodes are: what a policy remembers of each, and the replicas that it asked for."""

    def __init__(self, specs: Sequence[SystemSpec], every: int) -> None:
        """Begin an episode of each system; they share their limits.

        Replicas may step after so many intervals; if ``every`` is 0 there is one all the time.
        """
        count, first = len(specs), specs[0]
        self.scales = np.array([Scales.of(spec, every).row for spec in specs])
        self.every = every
        self.intervals = np.zeros(count, np.int64)
        """(n,) decisions so far."""
        self._most = min(REPLICAS_MOST, first.replicas_max) if every else 1
        initial = [spec.initial.replicas for spec in specs]
        self.replicas = np.minimum(initial, self._most)
        """(n,) asked for last."""
        self.seen = np.zeros((count, len(INPUTS)), np.float32)
        """(n, inputs) of the policy."""
        self._memory = np.zeros((count, len(REMEMBERED)), np.float32)
        self._allowed = np.zeros((count, MOVES), np.bool_)
        self._room = room(self._most, first.cores_max, first.total_cores)
        self._asked = np.zeros((count, STEPWISE_PARTS), np.int64)

    def see(self, observations: FloatMatrix) -> None:
        """Take in the (n, fields) joint observations of the next decision."""
        remember(observations, self.intervals, self.scales, self._memory, self.seen)

    def see_some(self, chosen: NDArray[np.bool_], observations: FloatMatrix) -> None:
        """Take in the observations of some of the episodes only."""
        memory, seen = self._memory[chosen], self.seen[chosen]
        scales, intervals = self.scales[chosen], self.intervals[chosen]
        remember(observations[chosen], intervals, scales, memory, seen)
        self._memory[chosen], self.seen[chosen] = memory, seen

    def begin(self, chosen: NDArray[np.bool_], pool: PolicyState, assigned: IntArray) -> None:
        """Begin new episodes of some systems of a pool, whose places are given."""
        self.scales[chosen] = pool.scales[assigned]
        self.replicas[chosen] = pool.replicas[assigned]
        self.intervals[chosen] = 0

    def steps_allowed(self) -> NDArray[np.bool_]:
        """Return which of the steps of the replicas each episode may now take, (n, 3)."""
        _allow(self.intervals, self.replicas, self.every, self._most, self._allowed)
        return self._allowed.copy()

    def take(self, steps: IntArray) -> None:
        """Step the replicas, 0 down to 2 up."""
        self.replicas = self.replicas + steps - 1
        self.intervals = self.intervals + 1

    def follow(self, replicas: int) -> None:
        """Go on from replicas that another has asked for in place of the last decision."""
        self.replicas[:] = min(max(replicas, 1), self._most)

    def choose(self, logits: FloatMatrix, sizes: IntArray) -> IntArray:
        """Take the most probable steps; return (n, 3) cores, batch sizes and replicas.

        They are for (n, choices) logits of a policy with such batch sizes, and overwritten by the
        next ones.
        """
        _allow(self.intervals, self.replicas, self.every, self._most, self._allowed)
        _choose(logits, self._allowed, self._room, sizes, self.replicas, self._asked)
        self.intervals += 1
        return self._asked


def room(replicas_most: int, cores_max: int, total_cores: int) -> NDArray[np.bool_]:
    """Return which numbers of cores, from 1 on, numbers of replicas, from 0 on, have room for.

    They are (replicas_most + 1, cores_max). One core always counts as such: the machine then has
    fewer replicas.
    """
    cores, replicas = np.arange(1, cores_max + 1), np.arange(replicas_most + 1)[:, None]
    allowed: NDArray[np.bool_] = (cores * replicas <= total_cores) | (cores == 1)
    return allowed


@entry_point
def _allow(
    intervals: IntArray, replicas: IntArray, every: int, most: int, allowed: NDArray[np.bool_]
) -> None:
    for i in range(len(intervals)):
        now = may_step(intervals[i], every)
        allowed[i, 0] = now and replicas[i] > 1
        allowed[i, 1] = True
        allowed[i, 2] = now and replicas[i] < most


@entry_point
def _choose(
    logits: FloatMatrix,
    steps: NDArray[np.bool_],
    room: NDArray[np.bool_],
    sizes: IntArray,
    replicas: IntArray,
    asked: IntArray,
) -> None:
    for i in range(len(logits)):
        batches, first = room.shape[1], room.shape[1] + len(sizes)
        replicas[i] += _best(logits[i, first:], steps[i]) - 1
        asked[i, 0] = _best(logits[i, :batches], room[replicas[i]]) + 1
        size = 0
        for k in range(1, len(sizes)):
            if logits[i, batches + k] > logits[i, batches + size]:
                size = k
        asked[i, 1] = sizes[size]
        asked[i, 2] = replicas[i]


@compiled
def _best(logits: FloatMatrix, allowed: NDArray[np.bool_]) -> int:
    """Return the place of the largest of those that are allowed."""
    best = -1
    for k in range(len(allowed)):
        if allowed[k] and (best < 0 or logits[k] > logits[best]):
            best = k
    return best
