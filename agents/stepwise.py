"""How a stepwise policy decides: replicas one up or down now and then, the rest at once.

The same code runs thousands of episodes in training and one when a policy is followed.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView
from sponge_env.packing import places
from sponge_env.scenario.config import MAX_TOTAL_CORES
from sponge_env.simulation.encoding import Control, encode, fit

from .history import BATCH_TIMES, REMEMBERED, FloatMatrix, layout_of, remember, units_of
from .needs import CORES, add_needs, table_of

MAX_REPLICAS = 16  # Replicas of a stage beyond which no stepwise policy goes
PER_REPLICA = MAX_REPLICAS + 1
SITUATIONS = 2 * PER_REPLICA**2
"""The choices allowed depend on whether all replicas must be kept (0 or 1), how many are asked for
and how many are ready: situation ``(kept * PER_REPLICA + asked) * PER_REPLICA + ready``."""
MOVES = 3  # Choices of the replicas' part of an action: one down, as they are, one up
_NUMBERS = len(StageAllocation._fields)
_batch_times = attrgetter(*BATCH_TIMES)


class Form(NamedTuple):
    """What a policy may choose among, within the limits of a system."""

    every: int  # Intervals after which the number of replicas may change; if 0, there is one
    sizes: tuple[int, ...]  # Batch sizes
    replicas: int = MAX_REPLICAS  # Most replicas of a stage
    holds_peak: bool = True
    """Whether, with one model, it keeps all replicas that the peak needs, see :mod:`.needs`, and
    gives the ready ones the cores that starting ones leave."""
    any_model: bool = False  # Whether it is for any system of one model with up to CORES cores

    @property
    def most_replicas(self) -> int:
        """Most replicas of a stage, also where there may be only one."""
        return self.replicas if self.every else 1


class StageChoices(NamedTuple):
    """What there is to choose in each stage of a system."""

    sizes: IntArray  # (sizes,) batch sizes; beyond what a stage allows, its largest
    counts: IntArray
    """(stages, 4) numbers of choices: cores, batch sizes, steps of the replicas, and variants; 0
    variants if there is only one, for an action then has no part for them."""
    limits: IntArray  # (stages, 4) largest cores, batch, replicas and variant
    room: NDArray[np.bool_]
    """(stages, situations, cores) which numbers of cores, from 1 on, ready replicas have room for
    beside one for each that starts. One core is always allowed; fewer replicas may then fit."""
    moves: NDArray[np.bool_]  # (stages, situations, 3) allowed steps, one down, none or one up

    @classmethod
    def of(cls, spec: SystemSpec, form: Form) -> "StageChoices":
        """Return those of a system under a policy of such a form."""
        counts, limits = [], []
        for stage in spec.stages:
            variants = len(stage.latencies) if len(stage.latencies) > 1 else 0
            cores = stage.cores_max
            if spec.is_one_model and form.holds_peak:  # as with one for any model, to begin with it
                cores = CORES if form.any_model else max(CORES, cores)
            counts.append([cores, len(form.sizes), MOVES, variants])
            most_each = min(cores, stage.cores_max), stage.batch_max
            replicas = min(form.most_replicas, stage.replicas_max, spec.total_cores)
            limits.append([*most_each, replicas, max(0, variants - 1)])
        most, most_cores = np.array(limits)[..., None, None], max(cores for cores, *_ in counts)
        shape = (2, PER_REPLICA, PER_REPLICA)
        kept, held, ready = np.unravel_index(np.arange(SITUATIONS)[:, None], shape)
        each, serving = np.arange(1, most_cores + 1), np.minimum(held, ready)
        if not (form.holds_peak and spec.is_one_model):
            serving = held  # those that start are charged like the others
        on_nodes = [places(spec.nodes, cores) for cores in each.tolist()]
        room = (each * serving + held - serving <= spec.total_cores) & (serving <= on_nodes)
        room |= each == 1
        after = held + np.arange(MOVES) - 1
        moves = (after >= 1) & (after <= most[:, 2]) & (after >= held * kept)
        own = np.array(counts), most[..., 0, 0], room & (each <= most[:, 0]), moves
        return cls(np.array(form.sizes), *own)

    def most_cores(self, situations: IntArray) -> IntArray:
        """Return the largest (stages,) cores in (stages,) situations."""
        most: IntArray = self.room[np.arange(len(situations)), situations].sum(axis=1)
        return most

    @property
    def actions(self) -> tuple[int, ...]:
        """Number of choices of each part of an action, stage by stage."""
        return tuple(self.counts[self.counts > 0].tolist())


class PolicyState:
    """The state of episodes: what a policy remembers of each, and its replicas."""

    def __init__(self, specs: Sequence[SystemSpec], form: Form) -> None:
        """Begin an episode of each system; they share their limits, and stages if several."""
        count, first = len(specs), specs[0]
        self._spec, self._layout = first, layout_of(first)
        self._until_step = self._layout.inputs.index("until_step")
        self._observed = Control(self._layout.fields, ())
        self.choices = StageChoices.of(first, form)
        known = {id(spec): spec for spec in specs}
        rows = {key: _known(spec, form) for key, spec in known.items()}
        units, fits_s, tables = zip(*(rows[id(spec)] for spec in specs), strict=True)
        if len({spec.first.latency for spec in specs}) == 1:  # which may be large
            fits_s = fits_s[:1]
        self._known = np.array(units), np.array(fits_s), np.array(tables)
        """(n, ...) what stays the same of each system, see :func:`_known`."""
        self.intervals = np.zeros(count, np.int64)  # (n,) decisions so far
        initial = [[each.replicas for each in spec.initial.stages] for spec in specs]
        self.replicas = np.minimum(initial, self.choices.limits[:, 2])  # (n, stages) last
        self._holds_peak = form.holds_peak and first.is_one_model
        nodes = (MAX_TOTAL_CORES,) if self._holds_peak else first.nodes
        self._nodes = np.array([nodes, nodes])  # (2, nodes) cores of each, and memory
        self._fewest, self._ready = np.zeros((2, *self.replicas.shape), np.int64)
        self.seen = np.zeros((count, len(self._layout.inputs)), np.float32)  # (n, inputs)
        self._memory = np.zeros((count, len(REMEMBERED)), np.float32)
        self._all, self._nothing = np.ones(count, np.bool_), np.zeros((count, len(BATCH_TIMES)))
        self._rows = np.zeros((*self.replicas.shape, _NUMBERS), np.int64)

    def see(
        self, observations: FloatMatrix, batch_times: FloatArray | None,
        chosen: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """Take in the observations of the next decision, (n, fields) of all or (n,) chosen ones.

        ``batch_times`` (n, 4) are :func:`.history.batch_times_of` the last interval; None if none.
        """
        times = self._nothing if batch_times is None else batch_times
        who = self._all if chosen is None else chosen
        at, kept = (self._layout.requests, self._layout.stages), (self._memory, self.seen)
        units, fits_s, tables = self._known
        remember(observations, times, fits_s, who, self.intervals, units, *at, *kept)
        if tables.size:
            held = self.replicas, self._ready, self._fewest
            add_needs(self.seen, self._layout.needs, tables, who, *held)

    def look(self, view: SystemView) -> None:
        """Take in what a view of the first episode's system shows."""
        times = None
        if view.last is not None:
            times = np.array([_batch_times(view.last)], np.float64)
        self.see(encode(view, self._spec, self._observed)[None], times)

    def begin(self, chosen: NDArray[np.bool_], pool: "PolicyState", assigned: IntArray) -> None:
        """Begin new episodes of some systems of a pool, whose places are given."""
        for own, new in zip(self._known, pool._known, strict=True):
            if len(new) > 1 or len(own) > 1:
                own[chosen] = new[assigned]
        self.replicas[chosen] = pool.replicas[assigned]
        self.intervals[chosen] = 0

    @property
    def situations(self) -> IntArray:
        """(n, stages) numbers of the situations, see :data:`SITUATIONS`."""
        held = self.replicas
        ready = np.minimum(np.maximum(self._ready, 1), held) if self._holds_peak else held
        kept = self._holds_peak & (held <= self._fewest)
        numbers: IntArray = (kept * PER_REPLICA + held) * PER_REPLICA + ready
        return numbers

    def take(self, choices: IntArray) -> IntArray:
        """Apply (n, stages, 4) choices of each part, steps being 0 (down), 1 or 2 (up).

        Returned are (n, stages, 4) allocations that fit on the machine.
        """
        cores, batches, steps, variants = np.moveaxis(choices, -1, 0)
        sizes = np.minimum(self.choices.sizes[batches], self.choices.limits[:, 1])
        self.replicas = self.replicas + steps - 1  # a new array: callers may keep the last one
        self._rows[:] = np.stack([cores + 1, sizes, self.replicas, variants], axis=-1)
        self.intervals += 1
        return self._fitting()

    def follow(self, allocation: Allocation) -> None:
        """Go on from another controller's decision in place of the last one."""
        replicas = [stage.replicas for stage in allocation.stages]
        self.replicas[:] = np.clip(replicas, 1, self.choices.limits[:, 2])

    def choose(self, logits: FloatMatrix) -> IntArray:
        """Take the most probable choices under (n, choices) logits.

        Returned are (n, stages, 4) allocations, which the next ones overwrite.
        """
        held = self.situations, self.replicas, self.intervals
        _choose(logits, self.seen, self._until_step, self.choices, *held, self._rows)
        return self._fitting()

    def _fitting(self) -> IntArray:
        """Return the allocations as far as they fit on the machine."""
        # The stage that holds the most cores gives up first, replicas too, even between steps.
        # Where those that start count as one core, the choices fit already.
        fits = fit(self._rows, self.choices.limits, self._nodes)
        assert fits, "a policy chooses within the limits"
        self.replicas[:] = self._rows[..., 2]
        return self._rows


def _known(spec: SystemSpec, form: Form) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return its units, how long batches take by the fit, and the table for its needs, if any."""
    if not spec.is_one_model:  # metrics do not say whose batches were slow
        return units_of(spec, form.every), np.zeros((0, 0)), np.zeros(0)
    stage = spec.first
    fit_s = np.ascontiguousarray(stage.latency.table_s(stage.batch_max, stage.cores_max).T)
    return units_of(spec, form.every), fit_s, table_of(spec, form.most_replicas)


def allocation(rows: IntArray) -> Allocation:
    """Return the allocation of (stages, 4) numbers."""
    return Allocation(stages=tuple(StageAllocation(*row) for row in rows.tolist()))


@entry_point
def _choose(
    logits: FloatMatrix, seen: FloatMatrix, until_step: int, own: StageChoices,
    situations: IntArray, replicas: IntArray, intervals: IntArray, rows: IntArray,
) -> None:  # fmt: skip
    sizes, counts, limits, room, moves = own
    for i in range(len(logits)):
        at, waits = 0, seen[i, until_step] > 0
        intervals[i] += 1
        for k in range(len(counts)):
            batches = at + counts[k, 0]
            steps = batches + counts[k, 1]
            variants, now, step = steps + counts[k, 2], situations[i, k], 0
            if not waits:
                step = _best(logits[i, steps:variants], moves[k, now]) - 1
            held = replicas[i, k] + step
            rows[i, k, 0] = _best(logits[i, at:batches], room[k, now + step * PER_REPLICA]) + 1
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
