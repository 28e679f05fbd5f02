"""The exact solver: pruned enumeration of Sponge's program, compiled by numba.

It answers what :mod:`.program` defines without building its tables. Pairs are tried in the order
of the objective, those that cannot win are left out, and counting stops as soon as a pair has
lost. Every floating-point operation is the builder's, in its order and without contraction, so
that the answers are equal and not just close; change both together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.latency import LatencyModel
from sponge_env.vector.compiler import compiled, entry_point

from .program import (
    ROUNDING,
    ROUNDING_MS,
    Forecast,
    arrivals_to_expect,
    fastest_s,
    published_table_ms,
    recovery_table,
    service_table_s,
)

Answer = tuple[int, int, int]
"""Cores, batch and misses."""

_MANY = 2**62
"""More requests than there can be."""


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
    forecast: Forecast


class CoresOption(NamedTuple):
    """What all batch sizes share that run on the same cores."""

    service_s: FloatArray
    """(batch_max,) seconds of a batch."""
    free_s: float
    """Seconds until a replica takes the next batch."""
    settled: int
    """Size at which batches settle if nothing limits it."""


@entry_point
def solve_per_request(tables: Tables, state: State, arrivals_s: FloatArray) -> Answer:
    """Return the pair that misses the fewest requests; see :mod:`.program`."""
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
    """Return the cheapest of the pairs that miss the fewest; see :mod:`.program`."""
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
    forecast, count = state.forecast, arrivals_s.shape[0]
    step_s = (forecast.budget_high_s - forecast.budget_low_s) / max(count - 1, 1)
    for order in range(count):
        root = (math.sqrt(forecast.noise * forecast.noise + 4 * order) - forecast.noise) / 2
        arrivals_s[order, 0] = root * root / forecast.rate_rps
        arrivals_s[order, 1] = arrivals_s[order, 0] + (forecast.budget_low_s + step_s * order)


@compiled
def _option(tables: Tables, state: State, row: int) -> CoresOption:
    service_s = tables.service_s[row]
    settled = _settled(service_s, state.forecast.rate_rps, state.forecast.noise)
    return CoresOption(service_s, _free_after_s(tables, state, row + 1), settled)


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
    option: CoresOption,
    hopeless: int,
    batch: int,
    limit: int,
) -> int:
    """Count the misses of one pair; above ``limit`` some may be left out."""
    throughput_rps = batch / option.service_s[batch - 1]
    short = (state.forecast.rate_rps - throughput_rps) * tables.interval_s - ROUNDING
    late: int = max(math.ceil(short), 0)
    # The arrivals first: behind the queue they are the first to tell that it is too long.
    if late <= limit:
        clear_s = _clear_after_s(option, state.deadlines_s.size, batch)
        late += _late_arrivals(arrivals_s, option, clear_s, batch, limit - late)
    if late <= limit:
        late += _late_queued(state, option, hopeless, batch, limit - late)
    return late


@compiled
def _late_queued(state: State, option: CoresOption, hopeless: int, batch: int, limit: int) -> int:
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
def _done_s(option: CoresOption, before: int, batch: int, own: int) -> float:
    """Return when a batch of ``own`` ends that has ``before`` full ones before it."""
    done_s: float = option.free_s + before * option.service_s[batch - 1] + option.service_s[own - 1]
    return done_s


@compiled
def _clear_after_s(option: CoresOption, queued: int, batch: int) -> float:
    """Return when the queue is done."""
    if queued == 0:
        return option.free_s
    before = (queued - 1) // batch
    return _done_s(option, before, batch, queued - before * batch)


@compiled
def _late_arrivals(
    arrivals_s: FloatArray, option: CoresOption, clear_s: float, batch: int, limit: int
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


class ExactSolver:
    """Solves both formulations for one system."""

    def __init__(self, spec: SystemSpec, margin: float) -> None:
        """Lay the system's tables out for the kernel.

        Args:
            spec: The system.
            margin: Relative allowance on every latency that the per-request form predicts.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        fit, orderly = spec.latency, _is_orderly(spec)
        self._slo_s = spec.slo_s
        self._latency_ms = published_table_ms(spec)
        self.tables = Tables(
            service_s=np.ascontiguousarray(service_table_s(spec, margin).T),
            orderly=orderly,
            by_recovery=_recovery_order(spec, orderly),
            coefficients_s=(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s),
            fastest_s=fastest_s(spec),
            margin=margin,
            interval_s=spec.interval_s,
        )

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve the published form; see :func:`.program.published_program`."""
        limit_ms = (slo_fraction * self._slo_s - delay_max_s) * 1e3
        cores, batch, late = solve_published(self._latency_ms, rate_rps, limit_ms)
        return Allocation(cores, batch, feasible=late == 0)

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form; see :func:`.program.per_request_program`."""
        cores, batch, late = solve_per_request(self.tables, *self.arguments(view, forecast))
        return Allocation(cores, batch, feasible=late == 0)

    def arguments(self, view: SystemView, forecast: Forecast) -> tuple[State, FloatArray]:
        """Return what the kernel takes beside the tables; no array of the view is copied.

        Returns:
            The state, and memory for when each forecast arrival comes and when it is due:
            (arrivals, 2).
        """
        waiting = not view.replicas_ready and view.starting_s
        running = np.empty((len(view.running), 2))
        for row, batch in enumerate(view.running):
            running[row, 0], running[row, 1] = batch.size, batch.expected_end_s
        state = State(
            view.now_s,
            view.queued_deadlines_s,
            view.starting_s[0] if waiting else 0.0,
            running,
            view.allocation.cores,
            forecast,
        )
        arrivals = arrivals_to_expect(forecast.rate_rps, self.tables.interval_s)
        return state, np.empty((arrivals, 2))


def warm_up() -> None:
    """Compile the kernels, or load them from disk, so that no decision waits for it."""
    fit = LatencyModel(gamma_s=1.0, delta_s=1.0, epsilon_s=0.0, eta_s=0.0)
    spec = SystemSpec(1.0, 1.0, 1, 1, 1, fit, cold_start_s=0.0)
    solver = ExactSolver(spec, margin=0.0)
    solver.published(rate_rps=0.0, delay_max_s=0.0, slo_fraction=1.0)
    idle = State(0.0, np.empty(0), 0.0, np.empty((0, 2)), 1, Forecast(0.0, 0.0, 0.0, 0.0))
    solve_per_request(solver.tables, idle, np.empty((0, 2)))


def _is_orderly(spec: SystemSpec) -> bool:
    """Return whether latency falls with cores and grows with the batch, as it should.

    Then no request is done later with more cores, however it is rounded. A fit may have it
    otherwise.
    """
    latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
    grows = np.all(np.diff(latency_s, axis=0) >= 0)
    return bool(grows and np.all(np.diff(latency_s, axis=1) <= 0))


def _recovery_order(spec: SystemSpec, orderly: bool) -> IntArray:
    """Return flat indices of the pairs that can miss the fewest, best throughput first.

    In an orderly system the pairs with all the cores are enough: none with fewer cores
    misses less, and it comes behind them by throughput unless that is the same.
    """
    ranks = recovery_table(spec).T
    order = np.argsort(ranks, axis=None)
    if orderly and np.all(ranks[-1] <= ranks):
        return order[order >= (spec.cores_max - 1) * spec.batch_max]
    return order
