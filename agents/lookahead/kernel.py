"""The program of ``sponge-mpc``: play the queues under some allocations, take the cheapest.

An allocation is (stages, 3): of each stage the model variant, cores and batch size. The queues are
those of :mod:`.tandem`, the sample paths those of :mod:`.paths`.
"""

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point, inlined

from . import tandem
from .flow import FlowForecast
from .paths import PathDraws, sample_path
from .tandem import COMING, LEFT, Queues, SamplePath

VARIANT, CORES, BATCH, REACHED = 0, 1, 2, 3  # Places in allocations, ``limits`` and ``tried``
_MOVES = 10  # Ways to change a stage's allocation; see :func:`_move`
_MOST_TRIED = 512  # Most allocations that are tried
_STRIDE = 1 / 16  # Share of the cores by which the look-ahead changes them, at least one


class Rules(NamedTuple):
    """What stays the same for an episode; prices are in core-seconds."""

    service_s: FloatArray  # (stages, variants, cores, batches) seconds; at ``c - 1`` and ``b - 1``
    limits: IntArray  # (stages, 3) variants, most cores and batch to ask for; more may be in force
    loss: FloatArray  # (stages, variants) cores that the lost accuracy is worth
    tasks: IntArray  # (stages, draws), see :attr:`.tandem.SamplePath.tasks`
    replicas: IntArray  # (stages,) replicas; each that starts holds one core
    ready: IntArray  # (stages,) those that are ready, which find room whatever else does
    total_cores: int
    interval_s: float
    delay_s: float  # Time until a decision is in force
    look_ahead: int  # Intervals that are played after the one decided for
    guard_s: float  # Answers less than this before the deadline count as late in part
    late_price: float


class Scratch(NamedTuple):
    """Arrays to play in, allocated once."""

    start: Queues  # Queues at the decision
    middle: Queues  # The same after the next interval
    end: Queues  # The same after the look-ahead
    speed: FloatArray  # (intervals,) speed of transfers, the next interval and the look-ahead
    arrivals_s: FloatArray  # (paths, stages, places, 2), see :attr:`.tandem.SamplePath.arrivals_s`
    ids: IntArray  # (stages, places), see :attr:`.tandem.SamplePath.ids`
    counts: IntArray  # (paths,) number of arrivals in the first stage
    tried: IntArray
    """(tried, stages, 4) allocations whose cost is known or wanted; and the largest batch from
    which on the cost stays the same, 0 if unknown."""
    now: IntArray  # (stages, 3) the allocation played while an earlier one is in force
    then: IntArray  # (stages, 3) the allocation played after the next interval
    most: IntArray  # (stages,), see :attr:`.tandem.SamplePath.most`


class Problem(NamedTuple):
    """What to decide about, and the memory to do it in."""

    rules: Rules
    draws: PathDraws
    scratch: Scratch  # Its ``start`` is read, the rest is overwritten
    backlog_price: FloatArray  # (stages, variants) core-seconds that a task left at the end costs
    cores_in_force: IntArray  # (stages,)
    pending: FloatArray  # (resizes, 3) when each takes effect, ascending, its stage, its cores
    requests: int  # Number of requests in the system


def make_scratch(rules: Rules, paths: int, intervals: int, queued: int, places: int) -> Scratch:
    """Allocate memory for ``queued`` tasks a stage and ``places`` arrivals on each path."""
    stages, replicas = rules.replicas.size, int(rules.replicas.max())
    size = stages, queued + places, replicas, stages * queued + places
    start, middle, end = (tandem.make_queues(*size) for _ in range(3))
    return Scratch(
        start=start, middle=middle, end=end, speed=np.empty(intervals),
        arrivals_s=np.empty((paths, stages, places, 2)), ids=np.zeros((stages, places), np.int64),
        counts=np.zeros(paths, np.int64), tried=np.zeros((_MOST_TRIED, stages, 4), np.int64),
        now=np.zeros((stages, 3), np.int64), then=np.zeros((stages, 3), np.int64),
        most=np.zeros(stages, np.int64),
    )  # fmt: skip


@entry_point
def plan(
    problem: Problem, forecast: FlowForecast, kinds: FloatArray, best: IntArray
) -> tuple[float, float]:
    """Find the cheapest allocation; return its late requests in the next interval, and its cost."""
    # The search walks downhill from ``best``, which is overwritten, one stage after the other. All
    # costs use the same sample paths, so they vary smoothly and the walk is short.
    rules, draws, scratch = problem.rules, problem.draws, problem.scratch
    stages, known, until_s = best.shape[0], 0, rules.delay_s + rules.interval_s
    for path in range(draws.weight.size):
        arrivals_s = scratch.arrivals_s[path, 0]
        scratch.counts[path] = sample_path(
            forecast, draws, path, kinds, rules.interval_s, until_s, scratch.speed, arrivals_s
        )
    # ``_cost`` is called from one place only: it would be compiled anew for each call.
    _set(scratch.tried[0], best)
    cost, late, move, left, trying = math.inf, 0.0, 0, 0, True
    while trying:
        tried_cost, tried_late = _cost(problem, scratch.tried[known], cost)
        if tried_cost < cost:
            _set(best, scratch.tried[known])
            cost, late = tried_cost, tried_late
            for k in range(stages):
                scratch.tried[known, k, REACHED] = scratch.most[k]
            # Start the stage's round of moves again; the search ends with a round without success.
            move, left = (move - 1) // _MOVES * _MOVES if known else 0, _MOVES * stages
        trying = False
        while left > 0 and known + 1 < _MOST_TRIED and not trying:
            tried, k = scratch.tried[known + 1], move // _MOVES % stages
            _set(tried, best)
            for stage in range(stages):
                tried[stage, REACHED] = 0
            _move(rules, k, move % _MOVES, tried[k])
            _make_room(rules, tried, k)
            move, left = move + 1, left - 1
            trying = _fits(rules, tried, k) and not _is_known(scratch.tried, known)
        known += trying
    return late, cost


@compiled
def _set(target: IntArray, source: IntArray) -> None:
    # A slice would want memory that kernels do not have.
    for k in range(source.shape[0]):
        for part in range(3):
            target[k, part] = source[k, part]


@compiled
def _move(rules: Rules, k: int, move: int, stage: IntArray) -> None:
    """Go to a neighbour of a stage's allocation, within its limits."""
    cores_max, batch_max = rules.limits[k, CORES], rules.limits[k, BATCH]
    cores, batch = stage[CORES], stage[BATCH]
    if move == 0:
        cores -= 1
    elif move == 1:
        cores += 1
    elif move == 2:
        cores *= 2
    elif move >= 6:
        # As fast as before on other cores, or faster or slower on these.
        enough = _switch(rules, k, 1 - 2 * (move % 2), stage)
        cores = enough if move < 8 else cores
    elif move == 3:
        # A large step: a queue that is served in full batches changes little in between.
        batch = batch // 2 if batch == batch_max else batch_max
    elif move == 4:
        batch -= max(1, batch // 4)
    else:
        batch += max(1, batch // 4)
    stage[CORES] = min(max(cores, 1), cores_max)
    stage[BATCH] = min(max(batch, 1), batch_max)


@compiled
def _make_room(rules: Rules, tried: IntArray, changed: int) -> None:
    """Take cores from the other stages, the largest first, for the one that changed."""
    over = -rules.total_cores
    for k in range(tried.shape[0]):
        over += rules.ready[k] * tried[k, CORES]
    while over > 0:
        largest = changed
        for k in range(tried.shape[0]):
            larger = largest == changed or tried[k, CORES] > tried[largest, CORES]
            if k != changed and tried[k, CORES] > 1 and larger:
                largest = k
        if largest == changed:
            return
        tried[largest, CORES] -= 1
        over -= rules.ready[largest]


@compiled
def _switch(rules: Rules, k: int, step: int, stage: IntArray) -> int:
    """Go to another variant; return the fewest cores on which its batches take no longer."""
    variant, cores, column = stage[VARIANT] + step, int(stage[CORES]), stage[BATCH] - 1
    if not 0 <= variant < rules.limits[k, VARIANT]:
        return cores
    own_s = rules.service_s[k, stage[VARIANT], cores - 1, column]
    service_s = rules.service_s[k, variant]
    stage[VARIANT], enough = variant, 1
    while enough < rules.limits[k, CORES] and service_s[enough - 1, column] > own_s:
        enough += 1
    return enough


@compiled
def _is_known(tried: IntArray, known: int) -> bool:
    for row in range(known + 1):
        same = True
        for k in range(tried.shape[1]):
            for part in range(BATCH):
                same = same and tried[row, k, part] == tried[known + 1, k, part]
            batch, other = tried[row, k, BATCH], tried[known + 1, k, BATCH]
            reached = tried[row, k, REACHED]
            same = same and (batch == other or min(batch, other) >= reached > 0)
        if same:
            return True
    return False


@compiled
def _fits(rules: Rules, tried: IntArray, changed: int) -> bool:
    """Return whether a stage's cores are within its limits and fit beside the others."""
    total = 0
    for k in range(tried.shape[0]):
        total += rules.ready[k] * tried[k, CORES]
    return 1 <= tried[changed, CORES] <= rules.limits[changed, CORES] and total <= rules.total_cores


@compiled
def _cost(problem: Problem, tried: IntArray, limit: float) -> tuple[float, float]:
    """Return what an allocation costs (cores, lost accuracy, and each path), and late requests.

    The worst paths come first; the cost is infinite once it must exceed ``limit``.
    """
    rules, draws, scratch = problem.rules, problem.draws, problem.scratch
    whole_s, cost, expected, least = (1 + rules.look_ahead) * rules.interval_s, 0.0, 0.0, 0.0
    for k in range(tried.shape[0]):
        cost += _held(rules, k, tried[k, CORES]) * rules.interval_s
        cost += rules.loss[k, tried[k, VARIANT]] * whole_s
        least += _held(rules, k, 1) * (whole_s - rules.interval_s)
        scratch.most[k] = 0
    _set(scratch.then, tried)
    left = least - 1e-9 * least  # the least that the remaining paths cost, but for rounding
    for path in range(draws.weight.size):
        if cost + left >= limit:
            return math.inf, expected
        tandem.copy_queues(scratch.start, scratch.middle)
        scratch.middle.marks[0, COMING] = scratch.counts[path]
        for k in range(tried.shape[0]):
            scratch.middle.marks[k, LEFT] = path * tried.shape[0] + k  # other draws on each path
        late, weight = _next_interval(problem, path, tried), draws.weight[path]
        left -= weight * least
        if cost + weight * (rules.late_price * late + least) + left >= limit:
            return math.inf, expected
        expected += weight * late
        cost += weight * (rules.late_price * late + _look_ahead(problem, path, tried))
    return cost, expected


@inlined
def _held(rules: Rules, k: int, cores: int) -> float:
    """Return the cores of a stage's replicas; one that starts has one core."""
    return float(rules.ready[k] * cores + rules.replicas[k] - rules.ready[k])


@compiled
def _serve(
    problem: Problem, queues: Queues, path: int, chosen: IntArray, from_s: float, until_s: float
) -> float:
    """Serve all stages under an allocation; return the late requests."""
    rules, scratch, late = problem.rules, problem.scratch, 0.0
    arrivals_s, ids, most = scratch.arrivals_s[path], scratch.ids, scratch.most
    future = SamplePath(arrivals_s, ids, problem.requests, rules.tasks, rules.guard_s, most)
    for k in range(chosen.shape[0]):
        service_s = rules.service_s[k, chosen[k, VARIANT], chosen[k, CORES] - 1]
        late += tandem.advance(queues, k, future, service_s, chosen[k, BATCH], from_s, until_s)
    return late


@compiled
def _next_interval(problem: Problem, path: int, tried: IntArray) -> float:
    """Serve until an interval after the decision is in force; return the late requests."""
    # Until then, the cores in force serve, and those of pending resizes.
    rules, now, pending = problem.rules, problem.scratch.now, problem.pending
    resizes, from_s, late = pending.shape[0], 0.0, 0.0
    _set(now, tried)
    for k in range(tried.shape[0]):
        now[k, CORES] = problem.cores_in_force[k]
    for phase in range(resizes + 2):
        until_s = rules.delay_s + (phase > resizes) * rules.interval_s
        if phase < resizes:
            until_s = min(pending[phase, 0], until_s)
        if until_s > from_s:
            late += _serve(problem, problem.scratch.middle, path, now, from_s, until_s)
        first, last = 0, tried.shape[0] * (phase <= resizes)
        if phase < resizes:
            first = int(pending[phase, 1])
            last = first + 1
        for k in range(first, last):
            cores = int(pending[phase, 2]) if phase < resizes else tried[k, CORES]
            _resize(rules, problem.scratch.middle, k, until_s, now[k], cores)
            now[k, CORES] = cores
        from_s = until_s
    return late


@compiled
def _resize(rules: Rules, queues: Queues, k: int, at_s: float, stage: IntArray, cores: int) -> None:
    service_s = rules.service_s[k, stage[VARIANT]]
    tandem.resize(queues, k, at_s, service_s[stage[CORES] - 1], service_s[cores - 1])


@compiled
def _look_ahead(problem: Problem, path: int, tried: IntArray) -> float:
    """Return what a path costs after the next interval, with the cores that suit it best."""
    # The search starts at the cores that suited the path before, and leaves its result there. For
    # each stage it tries fewer cores, then more: the cost is about convex in them, so if one side
    # is downhill, the other is not.
    rules, then, best, first = problem.rules, problem.scratch.then, math.inf, 0
    for move in range(1 + 2 * then.shape[0] * (rules.look_ahead > 0)):
        k, sign = max(move - 1, 0) // 2, 1 - 2 * (move % 2)
        if move % 2:
            first = then[k, CORES]
        going = move == 0 or then[k, CORES] == first
        while going:
            before = then[k, CORES]
            if move:
                then[k, CORES] = before + sign * max(1, int(before * _STRIDE))
            rest = math.inf
            if move == 0 or _fits(rules, then, k):
                rest = _rest(problem, path, tried, best)
            going = rest < best and move > 0
            if rest < best:
                best = rest
            else:
                then[k, CORES] = before
    return best


@compiled
def _rest(problem: Problem, path: int, tried: IntArray, limit: float) -> float:
    """Return what a path costs after the next interval if it goes on with the cores of ``then``."""
    # What is left at the end is served, too, or a plan could hide its late requests behind the
    # horizon. Nothing more is played once the cost has reached ``limit``.
    rules, queues, then = problem.rules, problem.scratch.end, problem.scratch.then
    begin_s = rules.delay_s + rules.interval_s
    horizon_s = rules.delay_s + (1 + rules.look_ahead) * rules.interval_s
    late, cores_s, backlog = 0.0, 0.0, 0.0
    for k in range(then.shape[0]):
        cores_s += _held(rules, k, then[k, CORES]) * (horizon_s - begin_s)
    if cores_s >= limit:
        return cores_s
    tandem.copy_queues(problem.scratch.middle, queues)
    for k in range(then.shape[0]):
        _resize(rules, queues, k, begin_s, tried[k], then[k, CORES])
    for beyond in range(2):
        if cores_s + rules.late_price * late + backlog >= limit:
            break
        from_s, until_s = (horizon_s, math.inf) if beyond else (begin_s, horizon_s)
        late += _serve(problem, queues, path, then, from_s, until_s)
        for k in range(then.shape[0] * (not beyond)):
            service_s = rules.service_s[k, then[k, VARIANT], then[k, CORES] - 1]
            left = tandem.unfinished(queues, k, horizon_s, service_s)
            backlog += problem.backlog_price[k, then[k, VARIANT]] * left
    return cores_s + rules.late_price * late + backlog
