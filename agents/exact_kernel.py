"""The exact solver's kernel: pruned enumeration of Sponge's program, compiled by numba.

It answers what :mod:`agents.program` defines without building its tables. Pairs are tried
in the order of the objective, those that cannot win are left out, and counting stops as soon
as a pair has lost. Every floating-point operation is the builder's, in its order and without
contraction, so that the answers are equal and not just close; change both together.

The compiled code is cached on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from agents.program import ROUNDING, ROUNDING_MS
from sponge_env.interfaces import FloatArray

Function = TypeVar("Function", bound=Callable[..., Any])
IntArray = NDArray[np.int64]
Answer = tuple[int, int, int]
"""Cores, batch and misses."""

_MANY = 2**62
"""More requests than there can be."""


def compiled(function: Function) -> Function:
    """Compile a function into the compiled functions that call it."""
    return cast(Function, numba.njit(error_model="numpy", forceinline=True)(function))


def entry_point(function: Function) -> Function:
    """Compile a function that Python calls, at its first call.

    The machine code is cached on disk, beside the source or in the user's cache directory;
    where neither can be written, every process compiles anew.
    """
    try:
        jitted = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        jitted = numba.njit(error_model="numpy")(function)
    return cast(Function, jitted)


class Tables(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds to plan a batch with; row ``c - 1``, column ``b - 1``."""
    orderly: bool
    """Whether no request is done later with more cores."""
    by_recovery: IntArray
    """(<= pairs,) flat indices of those that can miss the fewest, best throughput first."""
    coefficients_s: tuple[float, float, float, float]
    """gamma, epsilon, delta, eta of the latency model."""
    fastest_s: float
    """Requests with less slack are hopeless."""
    margin: float
    """Relative allowance on every predicted latency."""
    interval_s: float
    """Time between two decisions."""


class State(NamedTuple):
    """What one decision looks at."""

    now_s: float
    deadlines_s: FloatArray
    """(queued,) absolute, ascending."""
    ready_s: float
    """Seconds until there is a replica."""
    running: FloatArray
    """(batches, 2) size and expected end of each batch in flight."""
    cores: int
    """Cores in force."""
    rate_rps: float
    """This and the next three are the :class:`~agents.forecast.Forecast`."""
    noise: float
    budget_low_s: float
    budget_high_s: float


class Option(NamedTuple):
    """What all batch sizes share that run on the same cores."""

    service_s: FloatArray
    """(batch_max,) seconds of a batch."""
    free_s: float
    """Seconds until a replica takes the next batch."""
    settled: int
    """Size at which batches settle if nothing limits it."""


@entry_point
def solve_per_request(tables: Tables, state: State, arrivals_s: FloatArray) -> Answer:
    """Return the pair that misses the fewest requests; see :mod:`agents.program`."""
    _forecast_arrivals(state, arrivals_s)
    hopeless = _hopeless(state, tables.fastest_s)
    sizes = tables.service_s.shape[1]
    best, fewest = tables.by_recovery[0], _MANY
    row = best // sizes
    option = _option(tables, state, row)
    for pair in tables.by_recovery:
        if pair // sizes != row:
            row = pair // sizes
            option = _option(tables, state, row)
        late = _late(tables, state, arrivals_s, option, hopeless, pair % sizes + 1, fewest - 1)
        if late < fewest:
            best, fewest = pair, late
        if late == 0:
            return _cheapest(tables, state, arrivals_s, hopeless)
    return best // sizes + 1, best % sizes + 1, fewest


@entry_point
def solve_published(latency_ms: FloatArray, rate_rps: float, limit_ms: float) -> Answer:
    """Return the cheapest of the pairs that miss the fewest; see :mod:`agents.program`."""
    requests = math.ceil(rate_rps)
    cores, batch, fewest = 1, 1, _MANY
    for c in range(1, latency_ms.shape[1] + 1):
        for b in range(1, latency_ms.shape[0] + 1):
            one_ms = latency_ms[b - 1, c - 1]
            in_time = b * max(math.floor((limit_ms + ROUNDING_MS) / one_ms), 0)
            late = max(requests - in_time, 0) + max(math.ceil(rate_rps - b / one_ms * 1e3), 0)
            if late < fewest:
                cores, batch, fewest = c, b, late
            if late == 0:
                return cores, batch, fewest
    return cores, batch, fewest


@compiled
def _cheapest(tables: Tables, state: State, arrivals_s: FloatArray, hopeless: int) -> Answer:
    """Return the cheapest pair that misses nothing, where there is one."""
    low, high = 0, tables.service_s.shape[0] - 1
    while low < high:
        row = (low + high) // 2 if tables.orderly else low
        if _smallest_batch(tables, state, arrivals_s, hopeless, row):
            high = row
        else:
            low = row + 1
    return low + 1, _smallest_batch(tables, state, arrivals_s, hopeless, low), 0


@compiled
def _smallest_batch(
    tables: Tables, state: State, arrivals_s: FloatArray, hopeless: int, row: int
) -> int:
    """Return the smallest batch that misses nothing, 0 if none does."""
    option = _option(tables, state, row)
    for batch in range(1, option.service_s.size + 1):
        if _late(tables, state, arrivals_s, option, hopeless, batch, 0) == 0:
            return batch
    return 0


@compiled
def _forecast_arrivals(state: State, arrivals_s: FloatArray) -> None:
    count = arrivals_s.shape[0]
    step_s = (state.budget_high_s - state.budget_low_s) / max(count - 1, 1)
    for order in range(count):
        root = (math.sqrt(state.noise * state.noise + 4 * order) - state.noise) / 2
        arrivals_s[order, 0] = root * root / state.rate_rps
        arrivals_s[order, 1] = arrivals_s[order, 0] + (state.budget_low_s + step_s * order)


@compiled
def _option(tables: Tables, state: State, row: int) -> Option:
    service_s = tables.service_s[row]
    settled = _settled(service_s, state.rate_rps, state.noise)
    return Option(service_s, _free_after_s(tables, state, row + 1), settled)


@compiled
def _latency_s(tables: Tables, batch: float, cores: float) -> float:
    gamma_s, epsilon_s, delta_s, eta_s = tables.coefficients_s
    return gamma_s * batch / cores + epsilon_s / cores + delta_s * batch + eta_s


@compiled
def _free_after_s(tables: Tables, state: State, cores: int) -> float:
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
def _hopeless(state: State, fastest_s: float) -> int:
    """Return how many at the head of the queue do not count."""
    count = 0
    while count < state.deadlines_s.size and state.deadlines_s[count] - state.now_s < fastest_s:
        count += 1
    return count


@compiled
def _late(
    tables: Tables,
    state: State,
    arrivals_s: FloatArray,
    option: Option,
    hopeless: int,
    batch: int,
    limit: int,
) -> int:
    """Count the misses of one pair; above ``limit`` some may be left out."""
    throughput_rps = batch / option.service_s[batch - 1]
    short = (state.rate_rps - throughput_rps) * tables.interval_s - ROUNDING
    late: int = max(math.ceil(short), 0)
    # The arrivals first: behind the queue they are the first to tell that it is too long.
    if late <= limit:
        clear_s = _clear_after_s(option, state.deadlines_s.size, batch)
        late += _late_arrivals(arrivals_s, option, clear_s, batch, limit - late)
    if late <= limit:
        late += _late_queued(state, option, hopeless, batch, limit - late)
    return late


@compiled
def _late_queued(state: State, option: Option, hopeless: int, batch: int, limit: int) -> int:
    """Count the misses in the queue, batch by batch: the requests of one end together."""
    late, before = 0, hopeless // batch
    stop = before * batch
    while late <= limit and stop < state.deadlines_s.size:
        first, stop = stop, min(stop + batch, state.deadlines_s.size)
        done_s = _done_s(option, before, batch, stop - first)
        request = max(first, hopeless)
        if done_s > state.deadlines_s[stop - 1] - state.now_s:
            late += stop - request
        else:
            while request < stop and done_s > state.deadlines_s[request] - state.now_s:
                late += 1
                request += 1
        before += 1
    return late


@compiled
def _done_s(option: Option, before: int, batch: int, own: int) -> float:
    """Return when a batch of ``own`` ends that has ``before`` full ones before it."""
    done_s: float = option.free_s + before * option.service_s[batch - 1] + option.service_s[own - 1]
    return done_s


@compiled
def _clear_after_s(option: Option, queued: int, batch: int) -> float:
    """Return when the queue is done."""
    if queued == 0:
        return option.free_s
    before = (queued - 1) // batch
    return _done_s(option, before, batch, queued - before * batch)


@compiled
def _late_arrivals(
    arrivals_s: FloatArray, option: Option, clear_s: float, batch: int, limit: int
) -> int:
    """Count the misses among the forecast arrivals."""
    late, before, stop = 0, 0, 0
    settled_s = option.service_s[min(option.settled, batch) - 1]
    while late <= limit and stop < arrivals_s.shape[0]:
        behind_queue_s = clear_s + before * option.service_s[batch - 1]
        first, stop = stop, min(stop + batch, arrivals_s.shape[0])
        for order in range(first, stop):
            idle_s = arrivals_s[order, 0] + settled_s
            late += max(behind_queue_s, idle_s) + settled_s > arrivals_s[order, 1]
        before += 1
    return late
