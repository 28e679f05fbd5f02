"""Replicas and cores as a fluid: the lower side of joint scaling, and plans for its upper.

Requests are served like water: in an interval, n replicas of c cores serve as many as their
largest throughput allows, of what has arrived. For each number of ready replicas and each
cost it is enough to know how many requests can have been served at most.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import FloatArray
from sponge_env.oracle.episode import KnownEpisode

LEVELS = 512
"""Costs that are told apart, in cores above the least; what costs more counts as the last."""

NOWHERE = -1.0
"""Served by a state that cannot be reached."""


class Fluid(NamedTuple):
    """An episode in requests per interval, and working space."""

    arrived: FloatArray
    """(intervals,) requests that have arrived by the end of each."""
    due: FloatArray
    """(intervals,) those of them whose deadline has passed then."""
    served: FloatArray
    """(cores_max,) requests that a replica can serve in an interval."""
    cores: IntArray
    """(replicas_max,) most cores that each of so many replicas can have on the machine."""
    mixed: FloatArray
    """(replicas_max, replicas_max - 1, costs) requests served in an interval in which replicas go
    and leave their cores to the others; see :func:`mixed`."""
    last_batch: float
    """Requests at most that a replica still answers after it was taken away."""
    cores_count: IntArray
    """(intervals,) 1 where cores count."""
    start: IntArray
    """(intervals,) cores that a replica has cost by the time it is ready, at least."""
    ready_from: int
    """First interval in which a replica that was not there at the start can serve."""
    replicas: int
    """Replicas at the start."""
    replicas_max: int
    answerable: int
    """Requests that count and can be answered."""
    violation: float
    """What it costs to leave a request out, in cores held for an interval."""
    now: FloatArray
    """(replicas_max, LEVELS) requests served at most, by ready replicas less one."""
    then: FloatArray
    """(replicas_max, LEVELS) the same an interval later."""
    origin: IntArray
    """(replicas_max, LEVELS) state in the interval before, as a flat index."""
    source: IntArray
    """(intervals, replicas_max, LEVELS) such states, for every interval."""


def fluid(e: KnownEpisode, replicas: int) -> Fluid:
    """Count an episode's requests by interval; those that nobody can answer are left out.

    ``replicas`` are those at the start.
    """
    ends_s = np.arange(1, e.intervals + 1) * e.interval_s
    possible = e.deadline_s - e.release_s >= e.fastest_s
    possible &= e.counts > 0
    release_s, deadline_s = np.sort(e.release_s[possible]), np.sort(e.deadline_s[possible])
    sizes = np.arange(1, e.batch_max + 1)[:, None]
    granted_s = e.share * (e.interval_s + e.ahead_s)
    cold = e.cold_start_s / e.interval_s
    longest = math.ceil(cold - 1e-9)
    counted = np.concatenate([np.zeros(longest, np.int64) + e.cores_count[0], e.cores_count])
    charged = np.array([counted[k : k + longest].all() for k in range(e.intervals)])
    least = int(cold / (1 + e.ahead_s.max() / e.interval_s) + 1e-9)
    if e.total_cores < 2 * e.replicas_max:
        least = max(0, least - 1)  # one may have to wait until others have gone
    cores = np.minimum(e.cores_max, e.total_cores // np.arange(1, e.replicas_max + 1))
    per_work = (sizes / e.padded_s).max(axis=0)
    steady, burst = e.share * e.interval_s * per_work, e.share * e.ahead_s * per_work
    return Fluid(
        arrived=np.searchsorted(release_s, ends_s, side="right").astype(np.float64),
        due=np.searchsorted(deadline_s, ends_s, side="left").astype(np.float64),
        served=(sizes * granted_s / e.padded_s).max(axis=0),
        cores=cores,
        mixed=mixed(cores, steady, burst, e.total_cores),
        last_batch=float(e.batch_max),
        cores_count=e.cores_count,
        start=charged * least,
        ready_from=0 if e.quota else int(cold + 1e-9),
        replicas=replicas,
        replicas_max=e.replicas_max,
        answerable=int(possible.sum()),
        violation=0.0,
        **working_space(e.intervals, e.replicas_max),
    )


def working_space(intervals: int, replicas_max: int) -> dict[str, Any]:
    """Allocate the last fields of :class:`Fluid`."""
    now, then = np.zeros((2, replicas_max, LEVELS))
    source = np.zeros((intervals, replicas_max, LEVELS), np.int64)
    return {"now": now, "then": then, "origin": np.zeros_like(now, np.int64), "source": source}


def mixed(cores: IntArray, steady: FloatArray, burst: FloatArray, total_cores: int) -> FloatArray:
    """Return what is served in an interval in which replicas that drained have gone.

    While they hold cores there may be fewer for the others, which then do not have the same cores
    all the time: what those serve lies on a line between what they serve with one number of cores
    and another, and so does what they cost.

    Args:
        cores: (replicas_max,) most cores that each of so many replicas can have.
        steady: (cores_max,) requests that a replica serves in an interval.
        burst: (cores_max,) how many more it can serve each time that its quota is written.
        total_cores: Core units of the machine.

    Returns:
        (replicas_max, replicas_max - 1, costs) by how many stay and serve, how many have gone, and
        the cost rounded down; NOWHERE where all have the same cores all the time.
    """
    least = _least_mixed_cost(cores.size, steady.size, total_cores)
    costs = np.arange(min(LEVELS, int((cores * np.arange(1, cores.size + 1)).max())))
    served = np.full((*least.shape, costs.size), NOWHERE)
    for n in range(1, cores.size):
        most = cores[n - 1]
        up_to = np.minimum((costs + 1) / n, most)
        line = _concave(steady[:most], up_to)
        for gone in range(1, cores.size - n + 1):
            alone = line + (1 + gone) * burst[:most].max()
            possible = (costs >= least[n - 1, gone - 1]) & (costs < n * most)
            served[n - 1, gone - 1, possible] = n * alone[possible]
    return served


def _least_mixed_cost(replicas_max: int, cores_max: int, total_cores: int) -> IntArray:
    """Return the (replicas_max, replicas_max - 1) least cost of such an interval; else LEVELS."""
    after, cores, starting, draining = np.ogrid[
        1 : replicas_max + 1, 1 : cores_max + 1, :replicas_max, 1:replicas_max
    ]
    held = after + starting + draining
    shared = total_cores // held
    limited = (shared > 0) & (shared < cores) & (cores * (after + starting) <= total_cores)
    # What those that start must cost is charged elsewhere.
    cost = np.minimum(shared * held, cores * (after + starting)) - starting
    cost = np.where(limited, cost, LEVELS).min(axis=(1, 2))
    cheapest: IntArray = np.minimum.accumulate(cost, axis=1)
    return cheapest


def _concave(rates: FloatArray, at: FloatArray) -> FloatArray:
    """Return the highest of all lines between two of the points (1 + k, rates[k])."""
    first, last = np.arange(1, rates.size + 1)[:, None, None], np.arange(1, rates.size + 1)[:, None]
    part = np.clip((at - first) / np.maximum(1, last - first), 0, 1)
    line = rates[:, None, None] * (1 - part) + rates[:, None] * part
    highest: FloatArray = np.where(first <= np.maximum(1, at), line, 0.0).max(axis=(0, 1))
    return highest


@entry_point
def least_fluid_cost(f: Fluid, replicas: IntArray) -> int:
    """Return the least cost of serving an episode like water; write its (intervals,) replicas."""
    f.now[:] = NOWHERE
    f.now[f.replicas - 1, 0] = 0.0
    least = 0
    for k in range(f.cores_count.size):
        _scale(f, k)
        extra = _serve(f, k)
        least += extra
        f.now[:] = NOWHERE
        _rebase(f, k, extra)
    state = 0
    for n in range(f.replicas_max):
        if f.now[n, 0] > NOWHERE:
            state = n * LEVELS
    for k in range(f.cores_count.size - 1, -1, -1):
        replicas[k] = state // LEVELS + 1
        state = f.source[k, state // LEVELS, state % LEVELS]
    return least


@compiled
def _scale(f: Fluid, k: int) -> None:
    """Let replicas be added at what they have cost by now, and be taken away.

    One that is taken away finishes its batch first, of what has arrived. That is given to it
    here at no cost, which errs on the side of the lower bound.
    """
    for n in range(f.replicas_max):
        for level in range(LEVELS):
            f.origin[n, level] = n * LEVELS + level
    arrived = f.arrived[k - 1] if k else 0.0
    if k >= f.ready_from or f.cores_count[0] == 0:
        for n in range(1, f.replicas_max):
            for level in range(LEVELS):
                costlier = min(LEVELS - 1, level + f.start[k])
                _improve(f, n, costlier, n - 1, level, f.now[n - 1, level])
    for n in range(f.replicas_max - 2, -1, -1):
        for level in range(LEVELS):
            served = f.now[n + 1, level]
            if served > NOWHERE:
                served = max(served, min(served + f.last_batch, arrived))
            _improve(f, n, level, n + 1, level, served)


@compiled
def _improve(f: Fluid, n: int, level: int, other: int, other_level: int, served: float) -> None:
    """Reach a state from another with so many requests served, if that is more."""
    if served > f.now[n, level]:
        f.now[n, level] = served
        f.origin[n, level] = f.origin[other, other_level]


@compiled
def _serve(f: Fluid, k: int) -> int:
    """Serve an interval with all numbers of cores; return the least cost of a state after it.

    Costs in ``then`` count from the least before the interval.
    """
    f.then[:] = NOWHERE
    least = LEVELS - 1
    for n in range(f.replicas_max):
        for level in range(LEVELS):
            if f.now[n, level] > NOWHERE:
                for cores in range(1, f.cores[n] + 1):
                    served = f.now[n, level] + (n + 1) * f.served[cores - 1]
                    cost = level + f.cores_count[k] * cores * (n + 1)
                    least = min(least, _reach(f, k, n, cost, served, n, level))
                    if served >= f.arrived[k]:
                        break
        for before in range(n + 1, f.replicas_max):
            least = min(least, _serve_mixed(f, k, n, before))
    return least


@compiled
def _serve_mixed(f: Fluid, k: int, n: int, before: int) -> int:
    """Serve an interval in which replicas go and leave their cores to the others."""
    gone, least = before - n, LEVELS - 1
    arrived = f.arrived[k - 1] if k else 0.0
    for core_cost in range(f.mixed.shape[2]):
        more = f.mixed[n, gone - 1, core_cost]
        if more > NOWHERE:
            for level in range(LEVELS):
                served = f.now[before, level]
                if served > NOWHERE:
                    served = max(served, min(served + gone * f.last_batch, arrived)) + more
                    cost = level + f.cores_count[k] * core_cost
                    least = min(least, _reach(f, k, n, cost, served, before, level))
    return least


@compiled
def _reach(f: Fluid, k: int, n: int, cost: int, served: float, other: int, other_level: int) -> int:
    """Reach an interval's end with so many requests served; return the cost."""
    served = min(served, f.arrived[k])
    left_out = max(0.0, f.due[k] - served)
    cost = min(cost + int(f.violation * left_out), LEVELS - 1)
    if served + left_out > f.then[n, cost]:
        f.then[n, cost] = served + left_out
        f.source[k, n, cost] = f.origin[other, other_level]
    return cost


@compiled
def _rebase(f: Fluid, k: int, least: int) -> None:
    """Count costs from the least."""
    for n in range(f.now.shape[0]):
        for level in range(LEVELS - least):
            f.now[n, level] = f.then[n, level + least]
            f.source[k, n, level] = f.source[k, n, level + least]
