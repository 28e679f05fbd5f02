"""Sponge's integer program, and who solves it: compiled enumeration, or PuLP.

Minimise the cost of a (batch, cores) pair so that no request misses its deadline. Two formulations
say which do: the published one, which gives every request the worst budget, and one that follows
each request's own deadline. Where no pair is without a miss, the fewest are wanted, and of several
such pairs the one that works the backlog off fastest: what is late already makes the next ones late
until it is gone. The enumeration tries pairs in the order of the objective, leaves out those that
cannot win and stops counting when a pair has lost. PuLP gets all counts; its answers are equal.

Arrays over the pairs have shape (batch_max, cores_max), row ``b - 1``, column ``c - 1``, but for
those of :class:`Tables`, which are the other way round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.chain import Chain
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.latency import LatencyModel

if TYPE_CHECKING:
    import pulp  # it takes a while to import, and only its own solver needs it

SolverName = Literal["exact", "pulp", "highs"]

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
    noise: float
    """Up to ``n + noise * sqrt(n)`` requests arrive where ``n`` are expected."""
    budget_low_s: float
    """Lowest and highest budget on arrival."""
    budget_high_s: float


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
    delay_s: float
    """Time until the decision is in force."""


class Snapshot(NamedTuple):
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
    before_s: FloatArray
    """(batch_max,) seconds of a batch, on average, until the decision is in force."""
    forecast: Forecast


class Program(NamedTuple):
    """Minimise ``sum(cost * x)`` over one-hot ``x`` subject to ``sum(late * x) <= 0``.

    The published program has one row per request r: ``sum(misses[r] * x) <= 0``, with the 0/1
    table of the pairs under which r is late. The rows are not negative, so together they say the
    same as their sum, which is ``late``.
    """

    cost: FloatArray
    """(batch_max, cores_max) what is minimised; all different."""
    late: IntArray
    """(batch_max, cores_max) requests that would miss their deadline."""


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + b / (batch_max + 1)``: fewest cores, then the smallest batch.

    It is the published objective, its tie-break made exact: no two pairs cost the same.
    """
    batches, cores = np.ogrid[1 : spec.batch_max + 1, 1 : spec.cores_max + 1]
    cost: FloatArray = cores + batches / (spec.batch_max + 1)
    return cost


def recovery_table(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) ranks by throughput: 0 is the highest.

    Ranks, so that no two pairs are closer than a solver's tolerance; of equal ones by cost.
    """
    latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)
    throughput = np.arange(1, spec.batch_max + 1)[:, None] / latency_s
    best_first = np.lexsort((cost_table(spec).ravel(), -throughput.ravel()))
    return best_first.argsort().astype(np.float64).reshape(throughput.shape)


def published_table_ms(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) latencies floored to whole milliseconds, at least 1."""
    latency_ms = np.floor(spec.latency.table_s(spec.batch_max, spec.cores_max) * 1e3)
    return np.maximum(latency_ms, 1)


def count_published(latency_ms: FloatArray, rate_rps: float, limit_ms: float) -> IntArray:
    """Count the misses of every pair in the published form.

    As published (Razavi et al., EuroMLSys 2024, and its code): the next second's requests count
    as queued at once and are served in batches of ``b`` one after another; each must end within
    ``slo_fraction * SLO - cl_max``, with ``cl_max`` the largest communication delay, and the
    throughput must reach their rate. The rate is the published lambda, the limit that time.
    """
    batches = np.arange(1, len(latency_ms) + 1)[:, None]
    in_time = batches * np.maximum(np.floor((limit_ms + ROUNDING_MS) / latency_ms), 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    return (np.maximum(math.ceil(rate_rps) - in_time, 0) + unserved).astype(np.int64)


def make_tables(spec: SystemSpec, margin: float) -> Tables:
    """Lay a system out for the kernels, with a relative allowance on every latency.

    A ProfileError if its latency model predicts one that is not positive.
    """
    fit, latency_s = spec.latency, spec.latency.table_s(spec.batch_max, spec.cores_max)
    # A fit may have it otherwise; then more cores may make a request late.
    orderly = np.all(np.diff(latency_s, axis=0) >= 0) and np.all(np.diff(latency_s, axis=1) <= 0)
    ranks = recovery_table(spec).T
    by_recovery = np.argsort(ranks, axis=None)
    # In an orderly system all the cores are enough: no pair with fewer misses less, and it comes
    # behind them by throughput unless that is the same.
    if orderly and np.all(ranks[-1] <= ranks):
        by_recovery = by_recovery[by_recovery >= (spec.cores_max - 1) * spec.batch_max]
    return Tables(
        service_s=np.ascontiguousarray(((1 + margin) * latency_s).T),
        orderly=bool(orderly),
        by_recovery=by_recovery,
        coefficients_s=(fit.gamma_s, fit.epsilon_s, fit.delta_s, fit.eta_s),
        fastest_s=float(latency_s[0, -1]),
        margin=margin,
        interval_s=spec.interval_s,
        delay_s=spec.resize_delay_s,
    )


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


class ExactSolver:
    """Solves both formulations for one system, by enumeration.

    Of the pairs that miss the fewest deadlines, the one of the lowest cost wins; it is feasible
    if it misses none.
    """

    def __init__(self, spec: SystemSpec, margin: float) -> None:
        self._spec, self._latency_ms = spec, published_table_ms(spec)
        self.tables = make_tables(spec, margin)

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve the published form; see :func:`count_published`."""
        limit_ms = (slo_fraction * self._spec.slo_s - delay_max_s) * 1e3
        return self._cheapest(count_published(self._latency_ms, rate_rps, limit_ms))

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form; see :func:`solve_per_request`."""
        cores, batch, late = solve_per_request(self.tables, *self.arguments(view, forecast))
        return Allocation(cores, batch, feasible=late == 0)

    def arguments(self, view: SystemView, forecast: Forecast) -> tuple[Snapshot, FloatArray]:
        """Lay a decision out for the kernels, with room for the forecast arrivals."""
        waiting = not view.replicas_ready and view.starting_s
        running = np.empty((len(view.running), 2))
        for row, batch in enumerate(view.running):
            running[row, 0], running[row, 1] = batch.size, batch.expected_end_s
        ready_s = view.starting_s[0] if waiting else 0.0
        queued_s, spec = view.queued_deadlines_s, self._spec
        cores, before_s = view.cores_in_force, self._before_s(view)
        state = Snapshot(view.now_s, queued_s, ready_s, running, cores, before_s, forecast)
        until_s = spec.interval_s + spec.resize_delay_s
        return state, np.empty((math.ceil(forecast.rate_rps * until_s - ROUNDING), 2))

    def _before_s(self, view: SystemView) -> FloatArray:
        """Return (batch_max,) seconds of a batch until this decision is in force."""
        service_s, delay_s = self.tables.service_s, self._spec.resize_delay_s
        if not view.pending:
            row_s: FloatArray = service_s[view.cores_in_force - 1]
            return row_s
        # A mean of speeds: what is asked for already comes into force one after the other.
        speed, cores, from_s = np.zeros(service_s.shape[1]), view.cores_in_force, 0.0
        for starts_s, wanted in (*view.pending, (delay_s, 0)):
            until_s = min(starts_s, delay_s)
            speed += (until_s - from_s) / service_s[cores - 1]
            cores, from_s = wanted, until_s
        mean_s: FloatArray = delay_s / speed
        return mean_s

    def _cheapest(self, late: IntArray) -> Allocation:
        # The first of the fewest is the cheapest: fewest cores, then the smallest batch.
        cores, batch = divmod(int(late.T.argmin()), len(late))
        return Allocation(cores + 1, batch + 1, feasible=bool(late.min() == 0))


class PulpSolver(ExactSolver):
    """Solves them as integer programs."""

    def __init__(self, spec: SystemSpec, margin: float, backend: pulp.LpSolver) -> None:
        super().__init__(spec, margin)
        self._backend, self._cost, self._recovery = backend, cost_table(spec), recovery_table(spec)

    def _cheapest(self, late: IntArray) -> Allocation:
        return solve(Program(self._cost, late), self._backend)

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form."""
        return solve(self.per_request_program(view, forecast), self._backend)

    def per_request_program(self, view: SystemView, forecast: Forecast) -> Program:
        """Build the program; throughput is wanted where no pair is without a miss."""
        late = np.empty(self._cost.shape, np.int64)
        count_per_request(self.tables, *self.arguments(view, forecast), late)
        return Program(self._recovery if late.min() else self._cost, late)


def solve(program: Program, backend: pulp.LpSolver) -> Allocation:
    """Solve a program; of the pairs that miss the fewest deadlines, the cheapest wins.

    Where none meets every budget, the bound on violations rises from 0 to the least there are,
    which the table shows without another solve. A RuntimeError if the optimum was not found.
    """
    import pulp

    fewest = int(program.late.min())
    pairs = list(np.ndindex(program.cost.shape))
    model = pulp.LpProblem("sponge", pulp.LpMinimize)
    chosen = [model.add_variable(f"b{b + 1}_c{c + 1}", cat=pulp.LpBinary) for b, c in pairs]
    model += pulp.lpDot(program.cost.ravel().tolist(), chosen)
    model += pulp.lpSum(chosen) == 1
    model += pulp.lpDot(program.late.ravel().tolist(), chosen) <= fewest
    if model.solve(backend) != pulp.LpStatusOptimal:
        raise RuntimeError(f"{backend.name} ended as {pulp.LpStatus[model.status]}")
    row, column = next(pair for pair, x in zip(pairs, chosen, strict=True) if x.varValue > 0.5)
    return Allocation(cores=column + 1, batch=row + 1, feasible=fewest == 0)


def solve_chain(chain: Chain, count_late: bool, backend: pulp.LpSolver) -> tuple[int, ...]:
    """Solve the program of a chain of stages as :meth:`Chain.cheapest` does; return the options.

    An option that is chosen bounds the ticks of the stages after it. Where late requests count,
    their fewest are found first, and bounded then. There are no options where each way makes some
    late that must not; a RuntimeError if the optimum was not found.
    """
    import pulp

    choices, stages = chain.choices, list(itertools.pairwise(chain.choices.first.tolist()))
    model = pulp.LpProblem("stages", pulp.LpMinimize)
    count = int(choices.first[-1])
    chosen = [model.add_variable(f"option{k}", cat=pulp.LpBinary) for k in range(count)]
    for first, stop in stages:
        model += pulp.lpSum(chosen[first:stop]) == 1
    model += pulp.lpDot(choices.cores.tolist(), chosen) <= chain.total_cores
    most = int(choices.ticks.sum()) + 1
    late: list[Any] = []
    for first, stop in stages:
        after = pulp.lpDot(choices.ticks[stop:].tolist(), chosen[stop:])
        if count_late:
            late += _late_terms(model, chain, chosen, (first, stop), after, most)
            continue
        for option in range(first, stop):
            if (room := int(choices.room[option])) < chain.horizon:
                model += after <= room + (most + 1) * (1 - chosen[option])
    goals = [pulp.lpSum(late)] if late else []
    for goal in (*goals, pulp.lpDot(choices.cost.tolist(), chosen)):
        model.setObjective(goal)
        status = model.solve(backend)
        if status == pulp.LpStatusInfeasible and not count_late:
            return ()
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"{backend.name} ended as {pulp.LpStatus[status]}")
        model += goal <= round(pulp.value(goal) or 0)
    return tuple(k for k in range(count) if chosen[k].varValue > 0.5)


def _late_terms(
    model: pulp.LpProblem,
    chain: Chain,
    chosen: Sequence[pulp.LpVariable],
    stage: tuple[int, int],
    after: Any,
    most: int,
) -> list[Any]:
    """Return what adds up to the late requests of a stage, by the ticks after it."""
    import pulp

    late, options = chain.late, range(*stage)
    terms = [int(late[option, 0]) * chosen[option] for option in options]
    for ticks in range(1, chain.horizon + 1):
        reached = model.add_variable(f"reached{stage[0]}_{ticks}", cat=pulp.LpBinary)
        model += after - (ticks - 1) <= most * reached
        for option in options:
            if more := int(late[option, ticks] - late[option, ticks - 1]):
                both = model.add_variable(f"late{option}_{ticks}", lowBound=0)
                model += both >= chosen[option] + reached - 1
                terms.append(more * both)
    return terms


def make_backend(name: SolverName) -> pulp.LpSolver:
    """Make the solver behind PuLP, or raise a ConfigError if it is not installed.

    The relative gap is 0, for the weight of the batch size is below the usual tolerances.
    """
    import pulp

    if name == "pulp":
        # PuLP 3.3 warns that its class for the bundled CBC will go; the binary is the same.
        backend = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0)
    else:
        backend = pulp.HiGHS(msg=False, gapRel=0.0)
    if not backend.available():
        raise ConfigError(
            f"the solver {name!r} is not installed; choose another (exact, pulp, highs) or "
            f"install {'PuLP with its bundled CBC' if name == 'pulp' else 'the package highspy'}"
        )
    return backend


def solver_maker(name: SolverName) -> Callable[[SystemSpec, float], ExactSolver]:
    """Return what makes a solver for a system, with the margin of the per-request form."""
    if name == "exact":
        _compile()
        return ExactSolver
    backend = make_backend(name)
    _compile(counting=True)
    return partial(PulpSolver, backend=backend)


def _compile(counting: bool = False) -> None:
    """Compile a solver's kernel, or load it from disk, so that no decision waits for it."""
    fit = LatencyModel(gamma_s=1.0, delta_s=1.0, epsilon_s=0.0, eta_s=0.0)
    tables = make_tables(SystemSpec(1.0, 1.0, 1, 1, 1, fit, cold_start_s=0.0), 0.0)
    nothing = Forecast(0.0, 0.0, 0.0, 0.0)
    before_s, running = tables.service_s[0], np.empty((0, 2))
    idle = Snapshot(0.0, np.empty(0), 0.0, running, 1, before_s, nothing)
    if counting:
        count_per_request(tables, idle, np.empty((0, 2)), np.zeros((1, 1), np.int64))
    else:
        solve_per_request(tables, idle, np.empty((0, 2)))
