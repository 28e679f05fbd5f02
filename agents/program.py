"""Sponge's integer program, built from a view: what each (batch, cores) costs and misses.

The decision is one pair out of ``batch_max * cores_max``. Two formulations fill the same
:class:`Program`: the published one, which gives every request the worst budget, and one
that follows each request's own deadline. :mod:`.exact` solves them without building the tables;
the reference solver at the end of this file hands them to PuLP.

Arrays over the pairs have shape (batch_max, cores_max): row ``b - 1``, column ``c - 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

if TYPE_CHECKING:
    import pulp  # it takes a while to import, and only its own solver needs it

ROUNDING = 1e-9
"""Requests that a count may be off by rounding."""
ROUNDING_MS = 1e-6
"""Milliseconds that a published budget may be off by rounding."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Minimise ``sum(cost * x)`` over one-hot ``x`` subject to ``sum(late * x) <= 0``.

    The published program has one row per request r: its latency under the chosen pair
    must not exceed its budget. With ``x`` one-hot, row r reads ``sum(misses[r] * x) <= 0``
    with ``misses[r]`` the 0/1 table of the pairs under which r is late. The rows are not
    negative, so together they say the same as their sum, which is ``late``.
    """

    cost: FloatArray
    """(batch_max, cores_max) what is minimised; all different."""
    late: IntArray
    """(batch_max, cores_max) requests that would miss their deadline."""


def cost_table(spec: SystemSpec) -> FloatArray:
    """Return ``c + delta_b * b`` with ``delta_b = 1 / (batch_max + 1)``.

    That weight is the tie-break of the published objective made exact: the whole range of
    batch sizes costs less than one core, so no two pairs cost the same.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    cores = np.arange(1, spec.cores_max + 1)[None, :]
    cost: FloatArray = cores + batches / (spec.batch_max + 1)
    return cost


def recovery_table(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) ranks by throughput: 0 is the highest.

    Ranks and not the throughput itself, so that no two pairs are closer than a solver's
    tolerance; pairs of equal throughput rank by cost.
    """
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    throughput = batches / spec.latency.table_s(spec.batch_max, spec.cores_max)
    best_first = np.lexsort((cost_table(spec).ravel(), -throughput.ravel()))
    ranks = np.empty(throughput.size)
    ranks[best_first] = np.arange(throughput.size)
    return ranks.reshape(throughput.shape)


def service_table_s(spec: SystemSpec, margin: float) -> FloatArray:
    """Return (batch_max, cores_max) seconds to plan a batch with."""
    service_s: FloatArray = (1 + margin) * spec.latency.table_s(spec.batch_max, spec.cores_max)
    return service_s


def fastest_s(spec: SystemSpec) -> float:
    """Return the shortest latency there is, without margin."""
    return float(spec.latency.table_s(spec.batch_max, spec.cores_max)[0, -1])


def published_table_ms(spec: SystemSpec) -> FloatArray:
    """Return (batch_max, cores_max) latencies floored to whole milliseconds, at least 1."""
    latency_ms = np.floor(spec.latency.table_s(spec.batch_max, spec.cores_max) * 1e3)
    return np.maximum(latency_ms, 1)


def arrivals_to_expect(rate_rps: float, interval_s: float) -> int:
    """Return the arrivals of one interval, rounded up."""
    return math.ceil(rate_rps * interval_s - ROUNDING)


def published_program(
    spec: SystemSpec, rate_rps: float, delay_max_s: float, slo_fraction: float
) -> Program:
    """Build the program as published (Razavi et al., EuroMLSys 2024, and its code).

    The next second's requests count as queued at once and are served in batches of ``b``
    one after another; each must end within ``slo_fraction * SLO - cl_max``, with ``cl_max``
    the largest communication delay, and the throughput must reach their rate. Latencies
    are floored to whole milliseconds.

    Args:
        spec: The system.
        rate_rps: Requests per second, the published lambda.
        delay_max_s: The published cl_max.
        slo_fraction: Share of the SLO to plan with.
    """
    latency_ms = published_table_ms(spec)
    batches = np.arange(1, spec.batch_max + 1)[:, None]
    limit_ms = (slo_fraction * spec.slo_s - delay_max_s) * 1e3
    requests = int(np.ceil(rate_rps))
    in_time = batches * np.maximum(np.floor((limit_ms + ROUNDING_MS) / latency_ms), 0)
    misses = np.maximum(requests - in_time, 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    return Program(cost_table(spec), (misses + unserved).astype(np.int64))


def per_request_program(
    spec: SystemSpec, view: SystemView, forecast: Forecast, margin: float
) -> Program:
    """Build the program that holds each request to its own deadline.

    Queued requests leave batch by batch in order of their deadlines, after the batch that
    is running. Forecast arrivals come behind the queue. The throughput must reach the
    forecast rate. A queued request that not even the fastest service could save is
    *hopeless*: it takes its service time from the next ones, but does not count as late.

    Where no pair is without a miss, throughput is wanted instead of few cores: what is late
    already makes the next ones late until the backlog is gone.

    Args:
        spec: The system.
        view: What is queued and running.
        forecast: What will arrive.
        margin: Relative allowance on every predicted latency.
    """
    service_s = service_table_s(spec, margin)
    free_s = _free_after_s(spec, view, margin)
    slack_s = view.queued_deadlines_s - view.now_s
    done_s = _queue_done_s(service_s, free_s, slack_s.size)
    clear_s = np.maximum(free_s, done_s[-1:].max(axis=0, initial=0.0))
    hopeless = slack_s < fastest_s(spec)

    late = np.count_nonzero((done_s > slack_s[:, None, None])[~hopeless], axis=0)
    late += _late_arrivals(service_s, clear_s, forecast, spec.interval_s)
    late += _unserved(service_s, forecast.rate_rps, spec.interval_s)
    return Program(recovery_table(spec) if late.min() else cost_table(spec), late)


def _free_after_s(spec: SystemSpec, view: SystemView, margin: float) -> FloatArray:
    """Return (cores_max,) seconds until a replica takes the next batch, per core count.

    What is left of a running batch scales with the cores, for a resize acts on it at once.
    """
    cores = np.arange(1, spec.cores_max + 1)
    free_s = np.zeros(spec.cores_max)
    if not view.replicas_ready and view.starting_s:
        free_s += view.starting_s[0]
    for batch in view.running:
        whole_s = float(spec.latency.predict_s(batch.size, view.allocation.cores))
        left_s = max(0.0, batch.expected_end_s + margin * whole_s - view.now_s)
        speed_up = spec.latency.predict_s(batch.size, cores) / whole_s
        free_s = np.maximum(free_s, left_s * speed_up)
    return free_s


def _queue_done_s(service_s: FloatArray, free_s: FloatArray, queued: int) -> FloatArray:
    """Return (queued, batch_max, cores_max) seconds until each queued request is done.

    Full batches go first; the last batch holds what is left.
    """
    order = np.arange(queued)[:, None]
    batches = np.arange(1, service_s.shape[0] + 1)
    before = order // batches
    own = np.minimum(batches, queued - before * batches)
    done_s: FloatArray = free_s + before[:, :, None] * service_s + service_s[own - 1]
    return done_s


def _settled_s(service_s: FloatArray, forecast: Forecast) -> FloatArray:
    """Return (batch_max, cores_max) seconds that a batch takes once the queue is gone.

    Batches settle at the smallest size that holds what arrives during one, at most ``b``.
    """
    batches = np.arange(1, service_s.shape[0] + 1)[:, None]
    expected = forecast.rate_rps * service_s
    holds = batches >= expected + forecast.noise * np.sqrt(expected)
    holds[-1] = True
    rows = np.minimum(holds.argmax(axis=0), batches - 1)
    settled_s: FloatArray = service_s[rows, np.arange(service_s.shape[1])]
    return settled_s


def _late_arrivals(
    service_s: FloatArray, clear_s: FloatArray, forecast: Forecast, interval_s: float
) -> IntArray:
    """Count the forecast arrivals that miss their deadline: (batch_max, cores_max).

    An arrival is served behind the queue and the arrivals before it, or after the batch it
    finds in service, whichever is later. They come as early as their scatter lets them:
    number ``n`` when ``x`` are expected with ``x + noise * sqrt(x) = n``. Budgets are spread
    evenly; the first arrivals, which meet the queue, get the lowest.
    """
    count = arrivals_to_expect(forecast.rate_rps, interval_s)
    if not count:
        return np.zeros(service_s.shape, dtype=np.int64)
    order = np.arange(count)[:, None, None]
    batches = np.arange(1, service_s.shape[0] + 1)[:, None]
    root = (np.sqrt(forecast.noise * forecast.noise + 4 * order) - forecast.noise) / 2
    arrival_s = root * root / forecast.rate_rps
    step_s = (forecast.budget_high_s - forecast.budget_low_s) / max(count - 1, 1)
    deadline_s = arrival_s + (forecast.budget_low_s + step_s * order)
    settled_s = _settled_s(service_s, forecast)
    behind_queue_s = clear_s + order // batches * service_s
    done_s = np.maximum(behind_queue_s, arrival_s + settled_s) + settled_s
    late: IntArray = np.count_nonzero(done_s > deadline_s, axis=0)
    return late


def _unserved(service_s: FloatArray, rate_rps: float, interval_s: float) -> IntArray:
    """Count by how many requests an interval's throughput falls short of the rate."""
    throughput_rps = np.arange(1, service_s.shape[0] + 1)[:, None] / service_s
    short = np.ceil((rate_rps - throughput_rps) * interval_s - ROUNDING)
    return np.maximum(short, 0).astype(np.int64)


Backend = Literal["pulp", "highs"]


class PulpSolver:
    """Solves both formulations for one system."""

    def __init__(self, spec: SystemSpec, margin: float, backend: pulp.LpSolver) -> None:
        """Take a system, the margin of the per-request form, and a :func:`make_backend`."""
        self._spec, self._margin, self._backend = spec, margin, backend

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve the published form."""
        program = published_program(self._spec, rate_rps, delay_max_s, slo_fraction)
        return solve(program, self._backend)

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form."""
        program = per_request_program(self._spec, view, forecast, self._margin)
        return solve(program, self._backend)


def solve(program: Program, backend: pulp.LpSolver) -> Allocation:
    """Solve a program; of the pairs that miss the fewest deadlines, the cheapest wins.

    Where a pair meets every budget, that is the published program. Where none does, the
    bound on violations rises from 0 to the least there are, which the table of a one-hot
    choice shows without another solve.

    Raises:
        RuntimeError: The solver did not find the optimum.
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


def make_backend(name: Backend) -> pulp.LpSolver:
    """Make the solver behind PuLP; the only place that knows which there are.

    The relative gap is 0, for the weight of the batch size is below the usual tolerances.

    Raises:
        ConfigError: The solver is not installed.
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
