"""The per-request program of one stage, solved by enumeration in compiled code.

It tries pairs of cores and batch size in the order of the objective, leaves out those that cannot
win and stops counting when a pair has lost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point

from .program import ROUNDING, Answer, Forecast, Snapshot, Tables

_MANY = 2**62
"""More requests than there can be."""


class Problem(NamedTuple):
    """One decision."""

    tables: Tables
    state: Snapshot
    arrivals_s: FloatArray
    """(arrivals, 2) when each forecast arrival comes, and when it is due."""
    hopeless: int
    """Requests at the head of the queue that do not count."""
    before: CoresOption
    """What holds until the decision is in force."""


class CoresOption(NamedTuple):
    """What all batch sizes share that run on the same cores."""

    service_s: FloatArray
    """(batch_max,) seconds of a batch."""
    free_s: float
    """Seconds until a replica takes the next batch."""
    settled: int
    """Size at which batches settle if nothing limits it."""


@entry_point
def solve_per_request(tables: Tables, state: Snapshot, arrivals_s: FloatArray) -> Answer:
    """Return the pair that misses the fewest requests, each with a deadline of its own.

    Queued requests leave batch by batch in order of their deadlines, after the batch that is
    running, and before the forecast arrivals. The throughput must reach the forecast rate. What
    not even the fastest service could save is *hopeless*: it takes its service time from the next
    ones, but does not count as late.
    """
    problem = _problem(tables, state, arrivals_s)
    sizes = tables.service_s.shape[1]
    best, fewest = tables.by_recovery[0], _MANY
    row = best // sizes
    option = _option(problem, row)
    for pair in tables.by_recovery:
        if pair // sizes != row:
            row = pair // sizes
            option = _option(problem, row)
        late = _late(problem, option, pair % sizes + 1, fewest - 1)
        if late < fewest:
            best, fewest = pair, late
        # Where one pair misses nothing, cost decides among all that do.
        if late == 0:
            return _cheapest(problem)
    return best // sizes + 1, best % sizes + 1, fewest


@entry_point
def count_per_request(
    tables: Tables, state: Snapshot, arrivals_s: FloatArray, late: IntArray
) -> None:
    """Count the misses of every pair: (batch_max, cores_max), overwritten."""
    problem = _problem(tables, state, arrivals_s)
    for row in range(tables.service_s.shape[0]):
        option = _option(problem, row)
        for batch in range(1, tables.service_s.shape[1] + 1):
            late[batch - 1, row] = _late(problem, option, batch, _MANY)


@entry_point
def list_arrivals(forecast: Forecast, arrivals_s: FloatArray) -> None:
    """Write when each forecast arrival comes, and when it is due: (arrivals, 2)."""
    _forecast_arrivals(forecast, arrivals_s)


@compiled
def _problem(tables: Tables, state: Snapshot, arrivals_s: FloatArray) -> Problem:
    _forecast_arrivals(state.forecast, arrivals_s)
    hopeless, queued_s = 0, state.deadlines_s
    while hopeless < queued_s.size and queued_s[hopeless] - state.now_s < tables.fastest_s:
        hopeless += 1
    settled = _settled(state.before_s, state.forecast.rate_rps, state.forecast.noise)
    before = CoresOption(state.before_s, _free_after_s(tables, state, state.cores), settled)
    return Problem(tables, state, arrivals_s, hopeless, before)


@compiled
def _cheapest(problem: Problem) -> Answer:
    """Return the cheapest pair that misses nothing, where there is one."""
    tables = problem.tables
    low, high = 0, tables.service_s.shape[0] - 1
    # Where no request is done later with more cores, the fewest are found by bisection.
    while low < high:
        row = (low + high) // 2 if tables.orderly else low
        if _smallest_batch(problem, row):
            high = row
        else:
            low = row + 1
    return low + 1, _smallest_batch(problem, low), 0


@compiled
def _smallest_batch(problem: Problem, row: int) -> int:
    """Return the smallest batch that misses nothing, 0 if none does."""
    option = _option(problem, row)
    for batch in range(1, option.service_s.size + 1):
        if _late(problem, option, batch, 0) == 0:
            return batch
    return 0


@compiled
def _forecast_arrivals(forecast: Forecast, arrivals_s: FloatArray) -> None:
    """Let arrivals come as early as their scatter lets them.

    Number ``n`` comes when ``x`` are expected with ``x + noise * sqrt(x) = n``. Budgets are
    spread evenly; the first arrivals, which meet the queue, get the lowest.
    """
    count = arrivals_s.shape[0]
    step_s = (forecast.budget_high_s - forecast.budget_low_s) / max(count - 1, 1)
    for order in range(count):
        root = (math.sqrt(forecast.noise * forecast.noise + 4 * order) - forecast.noise) / 2
        arrivals_s[order, 0] = root * root / forecast.rate_rps
        arrivals_s[order, 1] = arrivals_s[order, 0] + (forecast.budget_low_s + step_s * order)


@compiled
def _option(problem: Problem, row: int) -> CoresOption:
    tables, state = problem.tables, problem.state
    service_s = tables.service_s[row]
    settled = _settled(service_s, state.forecast.rate_rps, state.forecast.noise)
    return CoresOption(service_s, _free_after_s(tables, state, row + 1), settled)


@compiled
def _latency_s(tables: Tables, batch: float, cores: float) -> float:
    gamma_s, epsilon_s, delta_s, eta_s = tables.coefficients_s
    return gamma_s * batch / cores + epsilon_s / cores + delta_s * batch + eta_s


@compiled
def _free_after_s(tables: Tables, state: Snapshot, cores: int) -> float:
    """Return seconds until a replica takes the next batch.

    What is left of a running batch scales with the cores, for a resize acts on it at once.
    """
    free_s = state.ready_s
    for index in range(state.running.shape[0]):
        size, end_s = state.running[index, 0], state.running[index, 1]
        whole_s = _latency_s(tables, size, state.cores)
        left_s = max(0.0, end_s + tables.margin * whole_s - state.now_s)
        free_s = max(free_s, left_s * (_latency_s(tables, size, cores) / whole_s))
    return free_s


@compiled
def _settled(service_s: FloatArray, rate_rps: float, noise: float) -> int:
    """Return the smallest batch that holds what arrives during it, at most the largest."""
    for batch in range(1, service_s.size):
        expected = rate_rps * service_s[batch - 1]
        if batch >= expected + noise * math.sqrt(expected):
            return batch
    return service_s.size


@compiled
def _late(problem: Problem, option: CoresOption, batch: int, limit: int) -> int:
    """Count the misses of one pair; above ``limit`` some may be left out."""
    state = problem.state
    throughput_rps = batch / option.service_s[batch - 1]
    short = (state.forecast.rate_rps - throughput_rps) * problem.tables.interval_s - ROUNDING
    late: int = max(math.ceil(short), 0)
    # The arrivals first: behind the queue they are the first to tell that it is too long.
    if late <= limit:
        late += _late_arrivals(problem, option, batch, limit - late)
    if late <= limit:
        late += _late_queued(problem, option, batch, limit - late)
    return late


@compiled
def _late_queued(problem: Problem, option: CoresOption, batch: int, limit: int) -> int:
    """Count the misses in the queue, batch by batch: the requests of one end together."""
    state, hopeless = problem.state, problem.hopeless
    late, before = 0, hopeless // batch
    stop = before * batch
    while late <= limit and stop < state.deadlines_s.size:
        first, stop = stop, min(stop + batch, state.deadlines_s.size)
        done_s = _done_s(option, before, batch, stop - first)
        if problem.tables.delay_s > 0:
            unchanged_s = _done_s(problem.before, before, batch, stop - first)
            done_s = _resized_s(problem, unchanged_s, done_s)
        request = max(first, hopeless)
        # Ascending deadlines: if the last of a batch is missed, all of it are.
        if done_s > state.deadlines_s[stop - 1] - state.now_s:
            late += stop - request
        else:
            while request < stop and done_s > state.deadlines_s[request] - state.now_s:
                late += 1
                request += 1
        before += 1
    return late


@compiled
def _done_s(option: CoresOption, before: int, batch: int, own: int) -> float:
    """Return when a batch of ``own`` ends that has ``before`` full ones before it."""
    done_s: float = option.free_s + before * option.service_s[batch - 1] + option.service_s[own - 1]
    return done_s


@compiled
def _clear_s(option: CoresOption, queued: int, batch: int) -> float:
    """Return when the last of the queue is done."""
    if queued == 0:
        return option.free_s
    before = (queued - 1) // batch
    return _done_s(option, before, batch, queued - before * batch)


@compiled
def _resized_s(problem: Problem, unchanged_s: float, resized_s: float) -> float:
    """Return when work is done that is resized at the end of the delay.

    It would be done at ``unchanged_s`` as it is, and at ``resized_s`` if the decision were in
    force now. What share of it is left after the delay goes on at the new speed.
    """
    ready_s = problem.state.ready_s
    since_s = max(problem.tables.delay_s, ready_s)
    if unchanged_s <= since_s:
        return unchanged_s
    left = (unchanged_s - since_s) / (unchanged_s - ready_s)
    return since_s + left * (resized_s - ready_s)


@compiled
def _late_arrivals(problem: Problem, option: CoresOption, batch: int, limit: int) -> int:
    """Count the misses among the forecast arrivals.

    Each is served behind all before it, or after the batch it finds in service, if that is later.
    """
    arrivals_s, delay_s, was = problem.arrivals_s, problem.tables.delay_s, problem.before
    late, before, stop = 0, 0, 0
    clear_s = _clear_s(option, problem.state.deadlines_s.size, batch)
    unchanged_s = _clear_s(was, problem.state.deadlines_s.size, batch)
    resized_s = option.service_s[min(option.settled, batch) - 1]
    was_s = was.service_s[min(was.settled, batch) - 1]
    while late <= limit and stop < arrivals_s.shape[0]:
        behind_queue_s = clear_s + before * option.service_s[batch - 1]
        if delay_s > 0:
            all_unchanged_s = unchanged_s + before * was.service_s[batch - 1]
            behind_queue_s = _resized_s(problem, all_unchanged_s, behind_queue_s)
        first, stop = stop, min(stop + batch, arrivals_s.shape[0])
        for order in range(first, stop):
            settled_s = was_s if arrivals_s[order, 0] + was_s < delay_s else resized_s
            idle_s = arrivals_s[order, 0] + settled_s
            late += max(behind_queue_s, idle_s) + settled_s > arrivals_s[order, 1]
        before += 1
    return late
