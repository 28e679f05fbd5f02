"""How a stepwise policy decides: replicas one up or down now and then, the rest at once.

It follows thousands of episodes while a policy is trained and one while it is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView
from sponge_env.simulation.encoding import Control, encode, fit

from .history import BATCH_TIMES, REMEMBERED, FloatMatrix, layout_of, remember, units_of

MAX_REPLICAS = 8
"""Replicas of a stage beyond which a stepwise policy does not go."""
MOVES = 3
"""Choices of the replicas' part of an action: one down, as they are, one up."""
_NUMBERS = len(StageAllocation._fields)
_batch_times = attrgetter(*BATCH_TIMES)


@dataclass(frozen=True, slots=True)
class StageChoices:
    """What there is to choose in each stage of a system."""

    sizes: IntArray
    """(sizes,) batch sizes; of a stage that allows less, those beyond count as the largest."""
    counts: IntArray
    """(stages, 4) choices of cores, batch sizes, steps of the replicas, and variants: 0 of these
    where there is nothing to choose, and so no part of an action."""
    limits: IntArray
    """(stages, 4) largest cores, batch, replicas and variant."""
    room: NDArray[np.bool_]
    """(stages, replicas + 1, cores) which numbers of cores, from 1 on, numbers of replicas, from 0
    on, have room for. One core always counts as such: the machine then has fewer replicas."""
    moves: NDArray[np.bool_]
    """(stages, replicas + 1, 3) which steps, one down, none or one up, numbers of replicas allow.
    """
    total_cores: int

    @classmethod
    def of(cls, spec: SystemSpec, sizes: Sequence[int], scales_out: bool = True) -> StageChoices:
        """Return those of a system under a policy of such batch sizes.

        There is one replica of each stage unless it ``scales_out``.
        """
        counts, limits = [], []
        for stage in spec.stages:
            variants = len(stage.latencies) if len(stage.latencies) > 1 else 0
            counts.append([stage.cores_max, len(sizes), MOVES, variants])
            replicas = min(MAX_REPLICAS, stage.replicas_max) if scales_out else 1
            limits.append([stage.cores_max, stage.batch_max, replicas, max(0, variants - 1)])
        most = np.array(limits)[..., None, None]
        cores, held = np.arange(1, most[:, 0].max() + 1), np.arange(MAX_REPLICAS + 1)[:, None]
        room = (cores * held <= spec.total_cores) | (cores == 1)
        after = held + np.arange(MOVES) - 1
        moves = (after >= 1) & (after <= most[:, 2])
        own = np.array(counts), most[..., 0, 0], room & (cores <= most[:, 0]), moves
        return cls(np.array(sizes), *own, spec.total_cores)

    @property
    def actions(self) -> tuple[int, ...]:
        """Number of choices of each part of an action, stage by stage."""
        return tuple(self.counts[self.counts > 0].tolist())


class PolicyState:
    """Where episodes are: what a policy remembers of each, and its replicas."""

    def __init__(self, specs: Sequence[SystemSpec], every: int, sizes: Sequence[int]) -> None:
        """Begin an episode of each system; they share their stages and limits.

        Replicas may step after so many intervals; if ``every`` is 0 there is one all the time.
        A policy chooses among such batch sizes.
        """
        count, first = len(specs), specs[0]
        self._spec, self._layout = first, layout_of(first)
        self._until_step = self._layout.inputs.index("until_step")
        self._observed = Control(self._layout.fields, ())
        self.scales = np.array([units_of(spec, every) for spec in specs])
        self.choices = StageChoices.of(first, sizes, every > 0)
        self.intervals = np.zeros(count, np.int64)
        """(n,) decisions so far."""
        initial = [[each.replicas for each in spec.initial.stages] for spec in specs]
        self.replicas = np.minimum(initial, self.choices.limits[:, 2])
        """(n, stages) of the last decision."""
        self.seen = np.zeros((count, len(self._layout.inputs)), np.float32)
        """(n, inputs) of the policy."""
        self._memory = np.zeros((count, len(REMEMBERED)), np.float32)
        limits = first.first.batch_max, first.first.cores_max
        self._fit_s = np.ascontiguousarray(first.first.latency.table_s(*limits).T)
        self._all, self._nothing = np.ones(count, np.bool_), np.zeros((count, len(BATCH_TIMES)))
        self._rows = np.zeros((*self.replicas.shape, _NUMBERS), np.int64)

    def see(
        self,
        observations: FloatMatrix,
        batch_times: FloatArray | None,
        chosen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in the observations of the next decision, (n, fields) of all or (n,) chosen ones.

        ``batch_times`` (n, 3) are those of the last interval, see :func:`.history.batch_times_of`;
        None if there was none.
        """
        times = self._nothing if batch_times is None else batch_times
        who = self._all if chosen is None else chosen
        at, kept = (self._layout.requests, self._layout.stages), (self._memory, self.seen)
        remember(observations, times, self._fit_s, who, self.intervals, self.scales, *at, *kept)

    def look(self, view: SystemView) -> None:
        """Take in what a view of the first episode's system shows."""
        times = None
        if view.last is not None:
            times = np.array([_batch_times(view.last)], np.float64)
        self.see(encode(view, self._spec, self._observed)[None], times)

    def begin(self, chosen: NDArray[np.bool_], pool: PolicyState, assigned: IntArray) -> None:
        """Begin new episodes of some systems of a pool, whose places are given."""
        self.scales[chosen] = pool.scales[assigned]
        self.replicas[chosen] = pool.replicas[assigned]
        self.intervals[chosen] = 0

    def take(self, choices: IntArray) -> IntArray:
        """Go on with (n, stages, 4) choices of each part, the steps from 0, down, to 2, up.

        Returned are (n, stages, 4) allocations that fit on the machine.
        """
        cores, batches, steps, variants = np.moveaxis(choices, -1, 0)
        sizes = np.minimum(self.choices.sizes[batches], self.choices.limits[:, 1])
        self.replicas = self.replicas + steps - 1  # who saw the last ones may keep them
        self._rows[:] = np.stack([cores + 1, sizes, self.replicas, variants], axis=-1)
        self.intervals += 1
        return self._fitting()

    def follow(self, allocation: Allocation) -> None:
        """Go on from another's decision in place of the last one."""
        replicas = [stage.replicas for stage in allocation.stages]
        self.replicas[:] = np.clip(replicas, 1, self.choices.limits[:, 2])

    def choose(self, logits: FloatMatrix) -> IntArray:
        """Take the most probable choices under (n, choices) logits.

        Returned are (n, stages, 4) allocations, which the next ones overwrite.
        """
        own, seen, until_step = self.choices, self.seen, self._until_step
        parts = own.counts, own.limits, own.sizes, own.room, own.moves
        _choose(logits, seen, until_step, *parts, self.replicas, self.intervals, self._rows)
        return self._fitting()

    def _fitting(self) -> IntArray:
        """Return the allocations as far as they fit on the machine.

        The stage that holds the most cores gives up first, replicas too, even between steps.
        """
        fits = fit(self._rows, self.choices.limits, self.choices.total_cores)
        assert fits, "a policy chooses within the limits"
        self.replicas[:] = self._rows[..., 2]
        return self._rows


def allocation(rows: IntArray) -> Allocation:
    """Return the allocation of (stages, 4) numbers."""
    return Allocation(stages=tuple(StageAllocation(*row) for row in rows.tolist()))


@entry_point
def _choose(
    logits: FloatMatrix,
    seen: FloatMatrix,
    until_step: int,
    counts: IntArray,
    limits: IntArray,
    sizes: IntArray,
    room: NDArray[np.bool_],
    moves: NDArray[np.bool_],
    replicas: IntArray,
    intervals: IntArray,
    rows: IntArray,
) -> None:
    for i in range(len(logits)):
        at, waits = 0, seen[i, until_step] > 0
        intervals[i] += 1
        for k in range(len(counts)):
            batches = at + counts[k, 0]
            steps = batches + counts[k, 1]
            variants = steps + counts[k, 2]
            held = replicas[i, k]
            if not waits:
                held += _best(logits[i, steps:variants], moves[k, held]) - 1
            rows[i, k, 0] = _best(logits[i, at:batches], room[k, held]) + 1
            rows[i, k, 1] = min(sizes[logits[i, batches:steps].argmax()], limits[k, 1])
            rows[i, k, 2] = held
            at = variants + counts[k, 3]
            rows[i, k, 3] = logits[i, variants:at].argmax() if at > variants else 0


@compiled
def _best(logits: FloatMatrix, allowed: NDArray[np.bool_]) -> int:
    """Return the place of the largest of those that are allowed."""
    best = -1
    for k in range(len(logits)):
        if allowed[k] and (best < 0 or logits[k] > logits[best]):
            best = k
    return best
