"""The program of ``sponge-mpc``: play the queues under some allocations, take the cheapest.

An allocation is (stages, 3): of each stage the model variant, cores and batch size. The queues are
those of :mod:`.tandem`, what comes those of :mod:`.forecast`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point

from .forecast import Chance, Outlook, sample_path
from .tandem import (
    COMING,
    LEFT,
    Course,
    Queues,
    advance,
    copy_queues,
    make_queues,
    resize,
    unfinished,
)

VARIANT, CORES, BATCH = 0, 1, 2
"""Places in an allocation, and in :attr:`Rules.limits`."""
_MOVES = 8
"""Ways to change a stage's allocation; see :func:`_move`."""
_MOST_TRIED = 512
"""Allocations that are tried at most."""
_STRIDE = 1 / 16
"""Share of the cores by which the look-ahead changes them, one at least."""


class Rules(NamedTuple):
    """What stays the same for an episode; prices are in core-seconds."""

    service_s: FloatArray
    """(stages, variants, cores, batches) seconds of a batch; row ``c - 1``, column ``b - 1``."""
    limits: IntArray
    """(stages, 3) variants, and most cores and tasks of a batch that can be asked for; cores in
    force may be more."""
    loss: FloatArray
    """(stages, variants) cores that the accuracy is worth which is lost."""
    tasks: IntArray
    """(stages, draws), see :attr:`.tandem.Course.tasks`."""
    replicas: IntArray
    """(stages,) replicas, each of which holds the cores."""
    ready: IntArray
    """(stages,) those that are ready, which find room on the machine whatever else does."""
    total_cores: int
    interval_s: float
    delay_s: float
    """Time until a decision is in force."""
    look_ahead: int
    """Intervals that are played after the one for which is decided."""
    guard_s: float
    """An answer so close before its deadline counts as late in part."""
    late_price: float
    release_price: float
    batching: bool
    """Whether other batches than the largest are tried."""


class Scratch(NamedTuple):
    """Arrays to play in, allocated once."""

    start: Queues
    """Queues at the decision, under the cores in force; then after the next interval, and at the
    end of the look-ahead."""
    middle: Queues
    end: Queues
    speed: FloatArray
    """(intervals,) speed of transfers, the next interval and the look-ahead."""
    arrivals_s: FloatArray
    """(paths, stages, places, 2), see :attr:`.tandem.Course.arrivals_s`."""
    counts: IntArray
    """(paths,) number of arrivals in the first stage."""
    tried: IntArray
    """(tried, stages, 3) allocations whose cost is known, or is asked for."""
    now: IntArray
    """(stages, 3) the one that is played while an earlier one is in force."""
    then: IntArray
    """(stages, 3) the one that is played after the next interval."""


class Decision(NamedTuple):
    """What is decided, and with what."""

    rules: Rules
    chance: Chance
    scratch: Scratch
    """Its ``start`` is read, the rest is overwritten."""
    backlog_price: FloatArray
    """(stages, variants) core-seconds that a task costs which is left at the end."""
    asked: IntArray
    """(stages,) cores that were asked for last."""
    cores_in_force: IntArray
    """(stages,)"""
    pending: FloatArray
    """(stages, resizes, 2) when earlier decisions will be in force, and their cores."""


def make_scratch(rules: Rules, paths: int, intervals: int, queued: int, places: int) -> Scratch:
    """Allocate what queues of that length and so many arrivals on each path need."""
    stages, replicas = rules.replicas.size, int(rules.replicas.max())
    start, middle, end = (make_queues(stages, queued + places, replicas) for _ in range(3))
    return Scratch(
        start=start,
        middle=middle,
        end=end,
        speed=np.empty(intervals),
        arrivals_s=np.empty((paths, stages, places, 2)),
        counts=np.zeros(paths, np.int64),
        tried=np.zeros((_MOST_TRIED, stages, 3), np.int64),
        now=np.zeros((stages, 3), np.int64),
        then=np.zeros((stages, 3), np.int64),
    )


@entry_point
def plan(
    decision: Decision, outlook: Outlook, kinds: FloatArray, best: IntArray
) -> tuple[float, float]:
    """Find the cheapest allocation; return its late requests in the next interval, and its cost.

    The search walks downhill from ``best``, which is overwritten, one stage after the other. All
    costs are of the same sample paths, so they fall and rise smoothly and the walk is short.
    """
    rules, chance, scratch = decision.rules, decision.chance, decision.scratch
    stages, known = best.shape[0], 0
    for path in range(chance.weight.size):
        scratch.counts[path] = sample_path(
            outlook,
            chance,
            path,
            kinds,
            rules.interval_s,
            rules.delay_s + rules.interval_s,
            scratch.speed,
            scratch.arrivals_s[path, 0],
        )
    _set(scratch.tried[0], best)
    cost, late = _cost(decision, scratch.tried[0], math.inf)
    # An allocation that is better begins the round of moves anew; a round without one is the end.
    move, left = 0, _MOVES * stages
    while left > 0 and known + 1 < _MOST_TRIED:
        tried = scratch.tried[known + 1]
        _set(tried, best)
        k, way = move // _MOVES, move % _MOVES
        _move(rules, k, way, tried[k])
        move, left = (move + 1) % (_MOVES * stages), left - 1
        if _is_known(scratch.tried, known) or not _fits(rules, tried, k):
            continue
        known += 1
        tried_cost, tried_late = _cost(decision, tried, cost)
        if tried_cost < cost:
            _set(best, tried)
            cost, late = tried_cost, tried_late
            move, left = k * _MOVES, _MOVES * stages
    return late, cost


@compiled
def _set(target: IntArray, source: IntArray) -> None:
    """Copy an allocation; a slice would want memory that kernels do not have."""
    for k in range(source.shape[0]):
        for part in range(3):
            target[k, part] = source[k, part]


@compiled
def _move(rules: Rules, k: int, way: int, stage: IntArray) -> None:
    """Go to a neighbour of a stage's allocation, within its limits."""
    cores_max, batch_max = rules.limits[k, CORES], rules.limits[k, BATCH]
    cores, batch = stage[CORES], stage[BATCH]
    if way == 0:
        cores -= 1
    elif way == 1:
        cores += 1
    elif way == 2:
        cores *= 2
    elif way >= 6:
        cores = _switch(rules, k, 1 if way == 6 else -1, stage)
    elif not rules.batching:
        return
    elif way == 3:
        # Far at once: a queue that is served in full batches changes little in between.
        batch = batch // 2 if batch == batch_max else batch_max
    elif way == 4:
        batch -= max(1, batch // 4)
    else:
        batch += max(1, batch // 4)
    stage[CORES] = min(max(cores, 1), cores_max)
    stage[BATCH] = min(max(batch, 1), batch_max)


@compiled
def _switch(rules: Rules, k: int, step: int, stage: IntArray) -> int:
    """Go to another variant; return the fewest cores on which its batches take no longer."""
    variant, cores, column = stage[VARIANT] + step, int(stage[CORES]), stage[BATCH] - 1
    if not 0 <= variant < rules.limits[k, VARIANT]:
        return cores
    own_s, service_s = rules.service_s[k, stage[VARIANT]], rules.service_s[k, variant]
    stage[VARIANT], enough = variant, 1
    while enough < rules.limits[k, CORES] and (
        service_s[enough - 1, column] > own_s[cores - 1, column]
    ):
        enough += 1
    return enough


@compiled
def _is_known(tried: IntArray, known: int) -> bool:
    """Return whether the allocation after the known ones is one of them."""
    for row in range(known + 1):
        same = True
        for k in range(tried.shape[1]):
            for part in range(3):
                same = same and tried[row, k, part] == tried[known + 1, k, part]
        if same:
            return True
    return False


@compiled
def _fits(rules: Rules, tried: IntArray, changed: int) -> bool:
    """Return whether a stage has a number of cores that there is, and room beside the others."""
    total = 0
    for k in range(tried.shape[0]):
        total += rules.ready[k] * tried[k, CORES]
    return 1 <= tried[changed, CORES] <= rules.limits[changed, CORES] and total <= rules.total_cores


@compiled
def _cost(decision: Decision, tried: IntArray, limit: float) -> tuple[float, float]:
    """Return what an allocation costs: its cores, the accuracy that it loses, and each path.

    And the late requests to expect in the next interval. The paths come worst first, and no more
    are played once the cost has reached ``limit``.
    """
    rules, chance, scratch = decision.rules, decision.chance, decision.scratch
    whole_s, cost, expected = (1 + rules.look_ahead) * rules.interval_s, 0.0, 0.0
    for k in range(tried.shape[0]):
        released = max(0, decision.asked[k] - tried[k, CORES])
        held_s = tried[k, CORES] * rules.interval_s + rules.release_price * released
        cost += rules.replicas[k] * held_s
        cost += rules.loss[k, tried[k, VARIANT]] * whole_s
    _set(scratch.then, tried)
    until_s = rules.delay_s + rules.interval_s
    for path in range(chance.weight.size):
        if cost >= limit:
            break
        copy_queues(scratch.start, scratch.middle)
        scratch.middle.marks[0, COMING] = scratch.counts[path]
        for k in range(tried.shape[0]):
            scratch.middle.marks[k, LEFT] = path * tried.shape[0] + k  # other draws on each path
        late = _wait(decision, path, tried)
        late += _serve(decision, scratch.middle, path, tried, rules.delay_s, until_s)
        expected += chance.weight[path] * late
        cost += chance.weight[path] * (rules.late_price * late + _look_ahead(decision, path, tried))
    return cost, expected


@compiled
def _serve(
    decision: Decision,
    queues: Queues,
    path: int,
    allocation: IntArray,
    from_s: float,
    until_s: float,
) -> float:
    """Serve all stages under an allocation; return the late requests."""
    rules, late = decision.rules, 0.0
    course = Course(decision.scratch.arrivals_s[path], rules.tasks, rules.guard_s)
    for k in range(allocation.shape[0]):
        service_s = rules.service_s[k, allocation[k, VARIANT], allocation[k, CORES] - 1]
        late += advance(queues, k, course, service_s, allocation[k, BATCH], from_s, until_s)
    return late


@compiled
def _resize(rules: Rules, queues: Queues, now_s: float, old: IntArray, new: IntArray) -> None:
    """Give all stages other cores, with which what runs goes on as the new variant."""
    for k in range(old.shape[0]):
        service_s = rules.service_s[k, new[k, VARIANT]]
        resize(queues, k, now_s, service_s[old[k, CORES] - 1], service_s[new[k, CORES] - 1])


@compiled
def _wait(decision: Decision, path: int, tried: IntArray) -> float:
    """Serve until the decision is in force, resizes asked for before included; return the late."""
    rules, scratch, pending = decision.rules, decision.scratch, decision.pending
    queues, now, from_s, late = scratch.middle, scratch.now, 0.0, 0.0
    _set(now, tried)
    for k in range(tried.shape[0]):
        now[k, CORES] = decision.cores_in_force[k]
    for row in range(pending.shape[1]):
        until_s = min(pending[0, row, 0], rules.delay_s)
        late += _serve(decision, queues, path, now, from_s, until_s)
        for k in range(tried.shape[0]):
            service_s, cores = rules.service_s[k, tried[k, VARIANT]], int(pending[k, row, 1])
            resize(queues, k, until_s, service_s[now[k, CORES] - 1], service_s[cores - 1])
            now[k, CORES] = cores
        from_s = until_s
    if rules.delay_s > 0.0:
        late += _serve(decision, queues, path, now, from_s, rules.delay_s)
    _resize(rules, queues, rules.delay_s, now, tried)
    return late


@compiled
def _look_ahead(decision: Decision, path: int, tried: IntArray) -> float:
    """Return what a path costs after the next interval, with the cores that suit it best.

    The search for them starts at those that suited the path before, and leaves its own there.
    """
    rules, then = decision.rules, decision.scratch.then
    best = _rest(decision, path, tried)
    if rules.look_ahead == 0:
        return best
    # The rest is about convex in the cores: where one side is downhill, the other is not.
    for k in range(then.shape[0]):
        first = then[k, CORES]
        for sign in (-1, 1):
            if then[k, CORES] != first:
                break
            while True:
                before = then[k, CORES]
                then[k, CORES] = before + sign * max(1, int(before * _STRIDE))
                rest = _rest(decision, path, tried) if _fits(rules, then, k) else math.inf
                if rest >= best:
                    then[k, CORES] = before
                    break
                best = rest
    return best


@compiled
def _rest(decision: Decision, path: int, tried: IntArray) -> float:
    """Return what a path costs after the next interval if it goes on with the cores of ``then``.

    Without look-ahead the backlog is priced at once, and worked off as it stands.
    """
    rules, queues, then = decision.rules, decision.scratch.end, decision.scratch.then
    begin_s = rules.delay_s + rules.interval_s
    horizon_s = rules.delay_s + (1 + rules.look_ahead) * rules.interval_s
    copy_queues(decision.scratch.middle, queues)
    _resize(rules, queues, begin_s, tried, then)
    late, cores_s, backlog = _serve(decision, queues, path, then, begin_s, horizon_s), 0.0, 0.0
    for k in range(then.shape[0]):
        variant, cores = then[k, VARIANT], then[k, CORES]
        cores_s += rules.replicas[k] * cores * (horizon_s - begin_s)
        left = unfinished(queues, k, horizon_s, rules.service_s[k, variant, cores - 1])
        backlog += decision.backlog_price[k, variant] * left
    # What is left is served, too, or a plan could leave its late requests behind the horizon.
    late += _serve(decision, queues, path, then, horizon_s, math.inf)
    return cores_s + rules.late_price * late + backlog
