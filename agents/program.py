"""Sponge's integer program: what a (batch, cores) pair costs, what it misses, and the best pair.

Minimise the cost of a pair so that no request misses its deadline. Two formulations say which do:
the published one, which gives every request the worst budget, and one that follows each request's
own deadline. Where no pair is without a miss, the fewest are wanted, and of several such pairs the
one that works the backlog off fastest: what is late already makes the next ones late until it is
gone. The latter is solved by compiled enumeration: pairs are tried in the order of the objective,
those that cannot win are left out, and counting stops as soon as a pair has lost. Every pair is
counted for the solvers behind PuLP, whose answers are equal.

Arrays over the pairs have shape (batch_max, cores_max), row ``b - 1``, column ``c - 1``, but for
those of :class:`Tables`, which are the other way round.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec, SystemView

Answer = tuple[int, int, int]
"""Cores, batch and misses."""

ROUNDING = 1e-9
"""Requests that a count may be off by rounding."""
ROUNDING_MS = 1e-6
"""Milliseconds that a published budget may be off by rounding."""
_MANY = 2**62
"""More requests than there can be."""


class Forecast(NamedTuple):
    """What is expected to arrive until the next decision."""

    rate_rps: float
    """Arrivals per second."""
    noise: float
    """Fluctuation to be ready for: up to ``n + noise * sqrt(n)`` requests arrive where
    ``n`` are expected."""
    budget_low_s: float
    """Lowest budget on arrival."""
    budget_high_s: float
    """Highest budget on arrival."""


class Tables(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds to plan a batch with."""
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


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + b / (batch_max + 1)``.

    The tie-break of the published objective, made exact: all batch sizes together cost less than
    one core, so no two pairs cost the same.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    cores = np.arange(1, spec.cores_max + 1)[None, :]
    cost: FloatArray = cores + batches / (spec.batch_max + 1)
    return cost


def recovery_table(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) ranks by throughput: 0 is the highest.

    Ranks, so that no two pairs are closer than a solver's tolerance; of equal ones by cost.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    throughput = batches / spec.latency.table_s(spec.batch_max, spec.cores_max)
    best_first = np.lexsort((cost_table(spec).ravel(), -throughput.ravel()))
    ranks = np.empty(throughput.size)
    ranks[best_first] = np.arange(throughput.size)
    return ranks.reshape(throughput.shape)


def published_table_ms(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) latencies floored to whole milliseconds, at least 1."""
    latency_ms = np.floor(spec.latency.table_s(spec.batch_max, spec.cores_max) * 1e3)
    return np.maximum(latency_ms, 1)


def count_published(latency_ms: FloatArray, rate_rps: float, limit_ms: float) -> IntArray:
    """Count the misses of every pair in the published form.

    As published (Razavi et al., EuroMLSys 2024, and its code): the next second's requests count
    as queued at once and are served in batches of ``b`` one after another; each must end within
    ``slo_fraction * SLO - cl_max``, with ``cl_max`` the largest communication delay, and the
    throughput must reach their rate.

    Args:
        latency_ms: From :func:`published_table_ms`.
        rate_rps: Requests per second, the published lambda.
        limit_ms: That limit.
    """
    batches = np.arange(1, len(latency_ms) + 1)[:, None]
    in_time = batches * np.maximum(np.floor((limit_ms + ROUNDING_MS) / latency_ms), 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    return (np.maximum(math.ceil(rate_rps) - in_time, 0) + unserved).astype(np.int64)


def make_tables(spec: SystemSpec, margin: float) -> Tables:
    """Lay a system out for the kernels, with a relative allowance on every latency.

    Raises:
        ProfileError: The system's latency model predicts one that is not positive.
    """
    fit, latency_s = spec.latency, spec.latency.table_s(spec.batch_max, spec.cores_max)
    # A fit may have it otherwise; then more cores may make a request late.
    orderly = np.all(np.diff(latency_s, axis=0) >= 0) and np.all(np.diff(latency_s, axis=1) <= 0)
    return Tables(
        service_s=np.ascontiguousarray(((1 + margin) * latency_s).T),
        orderly=bool(orderly),
        by_recovery=_recovery_order(spec, bool(orderly)),
        coefficients_s=(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s),
        fastest_s=float(latency_s[0, -1]),
        margin=margin,
        interval_s=spec.interval_s,
    )


def _recovery_order(spec: SystemSpec, orderly: bool) -> IntArray:
    """Return flat indices of the pairs that can miss the fewest, best throughput first.

    In an orderly system those with all the cores are enough: none with fewer misses less, and it
    comes behind them by throughput unless that is the same.
    """
    ranks = recovery_table(spec).T
    order = np.argsort(ranks, axis=None)
    if orderly and np.all(ranks[-1] <= ranks):
        return order[order >= (spec.cores_max - 1) * spec.batch_max]
    return order


def make_state(view: SystemView, forecast: Forecast, interval_s: float) -> tuple[State, FloatArray]:
    """Lay a decision out for the kernels; no array of the view is copied.

    With it come (arrivals, 2) for when each forecast arrival comes and when it is due.
    """
    waiting = not view.replicas_ready and view.starting_s
    running = np.empty((len(view.running), 2))
    for row, batch in enumerate(view.running):
        running[row, 0], running[row, 1] = batch.size, batch.expected_end_s
    ready_s = view.starting_s[0] if waiting else 0.0
    queued_s, cores = view.queued_deadlines_s, view.allocation.cores
    state = State(view.now_s, queued_s, ready_s, running, cores, forecast)
    arrivals = math.ceil(forecast.rate_rps * interval_s - ROUNDING)
    return state, np.empty((arrivals, 2))


class Problem(NamedTuple):
    """One decision."""

    tables: Tables
    state: State
    arrivals_s: FloatArray
    """(arrivals, 2) when each forecast arrival comes, and when it is due."""
    hopeless: int
    """Requests at the head of the queue that do not count."""


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
    """Return the pair that misses the fewest requests, each with a deadline of its own.

    Queued requests leave batch by batch in order of their deadlines, after the batch that
    is running. Forecast arrivals come behind the queue. The throughput must reach the
    forecast rate. A queued request that not even the fastest service could save is
    *hopeless*: it takes its service time from the next ones, but does not count as late.
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
def count_per_request(tables: Tables, state: State, arrivals_s: FloatArray, late: IntArray) -> None:
    """Count the misses of every pair: (batch_max, cores_max), overwritten."""
    problem = _problem(tables, state, arrivals_s)
    for row in range(tables.service_s.shape[0]):
        option = _option(problem, row)
        for batch in range(1, tables.service_s.shape[1] + 1):
            late[batch - 1, row] = _late(problem, option, batch, _MANY)


@compiled
def _problem(tables: Tables, state: State, arrivals_s: FloatArray) -> Problem:
    _forecast_arrivals(state.forecast, arrivals_s)
    hopeless, queued_s = 0, state.deadlines_s
    while hopeless < queued_s.size and queued_s[hopeless] - state.now_s < tables.fastest_s:
        hopeless += 1
    return Problem(tables, state, arrivals_s, hopeless)


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
def _free_after_s(tables: Tables, state: State, cores: int) -> float:
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
        clear_s = _clear_after_s(option, state.deadlines_s.size, batch)
        late += _late_arrivals(problem.arrivals_s, option, clear_s, batch, limit - late)
    if late <= limit:
        late += _late_queued(state, option, problem.hopeless, batch, limit - late)
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
    """Count the misses among the forecast arrivals.

    Each is served behind all before it, or after the batch it finds in service, if that is later.
    """
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
