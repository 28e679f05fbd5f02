"""Replicas and cores as a fluid: the lower side of joint scaling, and plans for its upper.

Requests are served like water: n replicas of c cores serve at most as many as their largest
throughput allows, of what has arrived, and of each only as much as has had time. For each number
of ready replicas and each cost it is enough to know how many requests can have been served at most.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import FloatArray
from sponge_env.oracle.episode import SLACK_S, KnownEpisode

LEVELS = 512  # of cost, in cores above the least; what costs more counts as the last
STEPS = 8  # in an interval, at whose ends arrivals and deadlines are compared with what was served
NOWHERE = -1.0  # served by a state that cannot be reached


class Fluid(NamedTuple):
    """An episode in requests per interval, and working space."""

    arrived: FloatArray  # (intervals, steps) requests that have arrived by the end of each step
    due: FloatArray  # (intervals, steps) those of them whose deadline has passed then
    # (intervals, steps, cores_max) how much of them can be done then, a replica for each new one
    startable: FloatArray
    # (intervals, steps, cores_max) those that come and are due within the interval and have too
    # little time for these cores, by the step in which they are due
    hopeless: FloatArray
    # (cores_max,) requests that a replica can serve in an interval in the long run
    served: FloatArray
    # (cores_max + 1,) what more it can have served since a quota was written, by new cores; 0 first
    ahead: FloatArray
    ahead_awake: FloatArray  # (cores_max + 1,) the same since any moment
    refill: FloatArray  # (cores_max + 1,) how many more than that before an interval's end
    # (replicas_max,) most cores that each of so many replicas can have on the machine
    cores: IntArray
    # (replicas_max, replicas_max - 1, costs) requests served in an interval in which replicas go
    # and leave their cores to the others; see :func:`mixed`
    mixed: FloatArray
    # (costs,) most requests that a replica still answers when taken away, by that cost, floored
    last_batch: FloatArray
    cores_count: IntArray  # (intervals,) 1 where cores count
    start: IntArray  # (intervals,) cores that a replica has cost by the time it is ready, at least
    ready_from: int  # First interval in which a replica that was not there at the start can serve
    replicas: int  # Replicas at the start
    replicas_max: int
    answerable: int  # Requests that count and can be answered
    violation: float  # What it costs to leave a request out, in cores held for an interval
    # (replicas_max, 1 or cores_max + 1, LEVELS) requests served at most, what replicas can be ahead
    # of their quota included; by ready replicas less one and the cores that a quota was written
    # for, 0 where that does not matter or is not known
    now: FloatArray
    then: FloatArray  # (replicas_max, 1 or cores_max + 1, LEVELS) the same an interval later
    most: FloatArray  # (cores_max + 1,) requests served at most by what is cheaper, by cores
    origin: IntArray  # (replicas_max, LEVELS) state in the interval before, as a flat index
    # (intervals, replicas_max, LEVELS) such states, for every interval; none under a quota
    source: IntArray


def fluid(e: KnownEpisode) -> Fluid:
    """Count an episode's requests by interval; those that nobody can answer are left out."""
    cores = np.minimum(e.cores_max, e.total_cores // np.arange(1, e.replicas_max + 1))
    per_work = (np.arange(1, e.batch_max + 1)[:, None] / e.padded_s).max(axis=0)
    served = e.share * e.interval_s * per_work
    times_s = e.ahead_written_s, e.ahead_awake_s, e.refill_s
    ahead, awake, refill = (np.append(0.0, e.share * each * per_work) for each in times_s)
    # What a replica still answers while it holds less than a core, or than two, three, ... cores.
    best = float((served / np.arange(1, served.size + 1)).max())
    costs = np.arange(1, 1 + max(1, math.ceil(e.batch_max / best)))
    arrived, due, startable, hopeless, answerable = _requests(e)
    return Fluid(
        arrived, due, startable, hopeless, served, ahead, awake, refill, cores, **_starts(e),
        mixed=mixed(cores, served, awake[1:], e.total_cores, e.batch_max),
        last_batch=np.minimum(e.batch_max, costs * best + awake.max()), cores_count=e.cores_count,
        replicas=min(e.replicas_max, int(e.models["initial"]["replicas"][0])),
        replicas_max=e.replicas_max, answerable=answerable, violation=0.0,
        **working_space(e.intervals, e.replicas_max, e.cores_max, e.quota),
    )  # fmt: skip


def _requests(e: KnownEpisode) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, int]:
    """Return the first four fields of :class:`Fluid`, and how many requests can be answered."""
    possible = (e.deadline_s - e.release_s >= e.fastest_s) & (e.counts > 0)
    release_s, deadline_s = e.release_s[possible], e.deadline_s[possible]
    ends_s = np.arange(1, e.intervals * STEPS + 1).reshape(-1, STEPS) * (e.interval_s / STEPS)
    arrived = np.searchsorted(np.sort(release_s), ends_s, side="right").astype(np.float64)
    due = np.searchsorted(np.sort(deadline_s), ends_s, side="left").astype(np.float64)
    interval = np.searchsorted(ends_s[:, -1], release_s, side="left")
    until_s = ends_s[interval] - release_s[:, None]  # since the arrival, for all steps
    over = ends_s[interval] > deadline_s[:, None]
    startable = np.repeat(arrived[:, :, None], e.cores_max, axis=2)
    hopeless = np.zeros_like(startable)
    for c, fastest_s in enumerate(e.padded_s[0]):
        undone = np.clip(1 - (until_s + SLACK_S) / fastest_s, 0, 1) * (until_s >= 0) * ~over
        np.subtract.at(startable[:, :, c], interval, undone)
        late = (deadline_s - release_s < fastest_s - SLACK_S)[:, None] & over
        np.add.at(hopeless[:, :, c], interval, np.diff(late, axis=1, prepend=False))
    return arrived, due, startable, hopeless, int(possible.sum())


def _starts(e: KnownEpisode) -> dict[str, Any]:
    """Return what a replica has cost by the time it is ready, and when the first one can be."""
    cold = e.cold_start_s / e.interval_s
    longest = math.ceil(cold - 1e-9)
    counted = np.concatenate([np.zeros(longest, np.int64) + e.cores_count[0], e.cores_count])
    charged = np.array([counted[k : k + longest].all() for k in range(e.intervals)])
    least = int(cold / (1 + e.ahead_s.max() / e.interval_s) + 1e-9)
    if e.total_cores < 2 * e.replicas_max:
        least = max(0, least - 1)  # one may have to wait until others have gone
    return {"start": charged * least, "ready_from": 0 if e.quota else int(cold + 1e-9)}


def working_space(
    intervals: int, replicas_max: int, cores_max: int, quota: bool = False
) -> dict[str, Any]:
    """Allocate the last fields of :class:`Fluid`."""
    now, then = np.zeros((2, replicas_max, cores_max + 1 if quota else 1, LEVELS))
    return {
        "now": now, "then": then, "most": np.zeros(cores_max + 1),
        "origin": np.zeros((replicas_max, LEVELS), np.int64),
        "source": np.zeros((0 if quota else intervals, replicas_max, LEVELS), np.int64),
    }  # fmt: skip


def mixed(
    cores: IntArray, steady: FloatArray, burst: FloatArray, total_cores: int, batch_max: int
) -> FloatArray:
    """Return what is served in an interval in which replicas that drained have gone.

    While they hold cores there may be fewer for the others, which then do not have the same cores
    all the time: what those serve lies on a line between what they serve with one number of cores
    and another, and so does what they cost. ``cores`` are (replicas_max,) the most that each of so
    many can have, ``steady`` (cores_max,) requests that a replica serves in an interval, ``burst``
    how many more each time that its quota is written; each that goes has ``batch_max`` left.

    Returns:
        (replicas_max, replicas_max - 1, costs) by how many stay and serve, how many have gone, and
        the cost rounded down; NOWHERE where all have the same cores all the time.
    """
    least = _least_mixed_cost(cores.size, steady.size, total_cores)
    costs = np.arange(min(LEVELS, int((cores * np.arange(1, cores.size + 1)).max())))
    served = np.full((cores.size, cores.size - 1, costs.size), NOWHERE)
    best = float((steady / np.arange(1, steady.size + 1)).max())
    for n, starting in itertools.product(range(1, cores.size), range(cores.size)):
        most = cores[n - 1]
        line = _concave(steady[:most], np.minimum((costs + 1) / n, most))
        for gone in range(1, cores.size - n + 1):
            written = (1 + gone) * burst[:most].max()
            last_batches = np.minimum(gone * batch_max, (costs + 1 - n) * best + gone * written)
            done = n * (line + written) + last_batches
            possible = (costs >= least[n - 1, starting, gone - 1]) & (costs < n * most)
            at = served[n - 1, gone - 1]
            at[possible] = np.maximum(at[possible], done[possible])
    return served


def _least_mixed_cost(replicas_max: int, cores_max: int, total_cores: int) -> IntArray:
    """Return the least cost of such an interval; LEVELS if there is none."""
    # (replicas_max, replicas_max, replicas_max - 1) by replicas that stay, start and have gone.
    after, cores, starting, draining = np.ogrid[
        1 : replicas_max + 1, 1 : cores_max + 1, :replicas_max, 1:replicas_max
    ]
    # Those that start hold one core, which is charged elsewhere.
    shared = (total_cores - starting) // (after + draining)
    limited = (shared > 0) & (shared < cores) & (cores + after + starting - 1 <= total_cores)
    cost = np.minimum(shared * (after + draining), cores * after)
    cost = np.where(limited, cost, LEVELS).min(axis=1)
    return np.minimum.accumulate(cost, axis=2)


def _concave(rates: FloatArray, at: FloatArray) -> FloatArray:
    """Return the highest of all lines between two of the points (1 + k, rates[k])."""
    first, last = np.arange(1, rates.size + 1)[:, None, None], np.arange(1, rates.size + 1)[:, None]
    part = np.clip((at - first) / np.maximum(1, last - first), 0, 1)
    line = rates[:, None, None] * (1 - part) + rates[:, None] * part
    highest: FloatArray = np.where(first <= np.maximum(1, at), line, 0.0).max(axis=(0, 1))
    return highest


@entry_point
def least_cost(f: Fluid) -> int:
    """Return the least cost of serving an episode like water."""
    f.now[:] = NOWHERE
    f.now[f.replicas - 1, 0, 0] = 0.0
    least = 0
    for k in range(f.cores_count.size):
        _scale(f, k)
        extra = _serve(f, k)
        least += extra
        f.now[:] = NOWHERE
        for n in range(f.now.shape[0]):  # costs count from the least
            for level in range(LEVELS - extra):
                for c in range(f.now.shape[1]):
                    f.now[n, c, level] = f.then[n, c, level + extra]
                if f.source.shape[0]:
                    f.source[k, n, level] = f.source[k, n, level + extra]
    return least


def cheapest_replicas(f: Fluid) -> IntArray:
    """Return the (intervals,) replicas that :func:`least_cost` found, without a quota."""
    n, level = int(np.flatnonzero(f.now[:, 0, 0] > NOWHERE).max(initial=0)), 0
    replicas = np.zeros(f.cores_count.size, np.int64)
    for k in reversed(range(replicas.size)):
        replicas[k] = n + 1
        n, level = divmod(int(f.source[k, n, level]), LEVELS)
    return replicas


@compiled
def _arrived_before(f: Fluid, k: int) -> float:
    return f.arrived[k - 1, f.arrived.shape[1] - 1] if k else 0.0


@compiled
def _scale(f: Fluid, k: int) -> None:
    """Let replicas be added at what they have cost by now, and be taken away."""
    # One that is taken away first finishes a batch of what has arrived, at a cost rounded down.
    for n in range(f.replicas_max):
        for level in range(LEVELS):
            f.origin[n, level] = n * LEVELS + level
    arrived, in_force = _arrived_before(f, k), f.now.shape[1]
    if k >= f.ready_from or f.cores_count[0] == 0:
        for n in range(1, f.replicas_max):
            for c in range(in_force):
                for level in range(LEVELS):
                    served = f.now[n - 1, c, level]
                    if served > NOWHERE:
                        costlier = min(LEVELS - 1, level + f.start[k])
                        _improve(f, n, c, costlier, n - 1, level, served + f.ahead_awake[c])
    for n in range(f.replicas_max - 2, -1, -1):
        for c in range(in_force):
            most = arrived + (n + 2) * f.ahead_awake[c]
            for level in range(LEVELS):
                served = f.now[n + 1, c, level]
                if served > NOWHERE:
                    for core_cost in range(f.last_batch.size):
                        more = max(served, min(served + f.last_batch[core_cost], most))
                        costlier = min(LEVELS - 1, level + f.cores_count[k] * core_cost)
                        _improve(f, n, c, costlier, n + 1, level, more)


@compiled
def _improve(
    f: Fluid, n: int, c: int, level: int, other: int, other_level: int, served: float
) -> None:
    """Reach a state from another with so many requests served, if that is more."""
    if served > f.now[n, c, level]:
        f.now[n, c, level] = served
        f.origin[n, level] = f.origin[other, other_level]


@compiled
def _serve(f: Fluid, k: int) -> int:
    """Serve an interval with all numbers of cores; return the least cost of a state after it."""
    # Costs in ``then`` count from the least before the interval.
    f.then[:] = NOWHERE
    least = LEVELS - 1
    for n in range(f.replicas_max):
        least = min(least, _serve_alike(f, k, n))
        for before in range(n + 1, f.replicas_max):
            least = min(least, _serve_mixed(f, k, n, before))
    return least


@compiled
def _serve_alike(f: Fluid, k: int, n: int) -> int:
    """Serve an interval in which all replicas have the same cores all the time."""
    least = LEVELS - 1
    f.most[:] = NOWHERE
    for level in range(LEVELS):
        first = _best(f, k, n, level, 0)
        if first >= 0:
            second = _best(f, k, n, level, first)
            for cores in range(1, f.cores[n] + 1):
                served = _resized(f, k, n, level, cores, second if first == cores else first)
                if served > f.most[cores]:
                    f.most[cores] = served
                    least = min(least, _serve_steps(f, k, n, cores, level, served))
    return least


@compiled
def _best(f: Fluid, k: int, n: int, level: int, but: int) -> int:
    """Return the cores in force with which most was served, but not these; -1 if none."""
    best, most, arrived = -1, NOWHERE, _arrived_before(f, k)
    for cores in range(f.now.shape[1]):
        served = min(f.now[n, cores, level], arrived)
        if served > most and (cores == 0 or cores != but):
            best, most = cores, served
    return best


@compiled
def _resized(f: Fluid, k: int, n: int, level: int, cores: int, other: int) -> float:
    """Return what can have been served, CPU ahead included, when these cores are in force."""
    served = NOWHERE
    if f.now[n, 0, level] > NOWHERE:
        served = f.now[n, 0, level] + (n + 1) * f.ahead_awake[cores]
    if f.now.shape[1] > 1:
        served = max(served, f.now[n, cores, level])
        if other >= 0:
            before = min(f.now[n, other, level], _arrived_before(f, k))
            served = max(served, before + (n + 1) * f.ahead[cores])
    return served


@compiled
def _serve_steps(f: Fluid, k: int, n: int, cores: int, level: int, served: float) -> int:
    """Serve an interval step by step; return the cost."""
    steps, c, left_out = f.arrived.shape[1], cores - 1, 0.0
    for step in range(steps):
        startable, hopeless = f.startable[k, step, c], f.hopeless[k, step, c]
        served += (n + 1) * f.served[c] / steps + hopeless
        served = min(served, startable + (n + 1) * f.ahead_awake[cores])
        ahead = (n + 1) * f.refill[cores] * (step < steps - 1)
        missing = max(0.0, f.due[k, step] - min(served + ahead, startable))
        served += missing
        left_out += hopeless + missing
    cost = level + f.cores_count[k] * cores * (n + 1)
    return _reach(f, k, n, cores, cost, served, left_out, n, level)


@compiled
def _serve_mixed(f: Fluid, k: int, n: int, before: int) -> int:
    """Serve an interval in which replicas go and leave their cores to the others."""
    least, most, last = LEVELS - 1, NOWHERE, f.arrived.shape[1] - 1
    arrived = _arrived_before(f, k)
    for level in range(LEVELS):
        cores = _best(f, k, before, level, 0)
        served = min(f.now[before, cores, level], arrived) if cores >= 0 else NOWHERE
        if served > most:  # of what is cheaper
            most = served
            for core_cost in range(f.mixed.shape[2]):
                more = f.mixed[n, before - n - 1, core_cost]
                if more > NOWHERE:
                    done = min(served + more, f.arrived[k, last])
                    missing = max(0.0, f.due[k, last] - done)
                    cost = level + f.cores_count[k] * core_cost
                    cost = _reach(f, k, n, 0, cost, done + missing, missing, before, level)
                    least = min(least, cost)
    return least


@compiled
def _reach(
    f: Fluid, k: int, n: int, cores: int, cost: int, served: float, left_out: float, other: int,
    other_level: int,
) -> int:  # fmt: skip
    """Reach an interval's end with so many requests served or left out; return the cost."""
    cost = min(cost + int(f.violation * left_out), LEVELS - 1)
    c = cores if f.then.shape[1] > 1 else 0
    if served > f.then[n, c, cost]:
        f.then[n, c, cost] = served
        if f.source.shape[0]:
            f.source[k, n, cost] = f.origin[other, other_level]
    return cost
