"""Who solves the programs: compiled code, or PuLP, whose answers are equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control.chain import Chain
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, StageSpec, SystemSpec, SystemView
from sponge_env.latency import LatencyModel

from .enumeration import count_per_request, solve_per_request
from .program import (
    ROUNDING,
    Forecast,
    Program,
    Snapshot,
    cost_table,
    count_published,
    make_tables,
    published_table_ms,
    recovery_table,
)

if TYPE_CHECKING:
    import pulp  # it takes a while to import, and only its own solver needs it

SolverName = Literal["exact", "pulp", "highs"]


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
        waiting = not view.first.replicas_ready and view.first.starting_s
        running = np.empty((len(view.first.running), 2))
        for row, batch in enumerate(view.first.running):
            running[row, 0], running[row, 1] = batch.size, batch.expected_end_s
        ready_s = view.first.starting_s[0] if waiting else 0.0
        queued_s, spec = view.first.queued_deadlines_s, self._spec
        cores, before_s = view.first.cores_in_force, self._before_s(view)
        state = Snapshot(view.now_s, queued_s, ready_s, running, cores, before_s, forecast)
        until_s = spec.interval_s + spec.resize_delay_s
        return state, np.empty((math.ceil(forecast.rate_rps * until_s - ROUNDING), 2))

    def _before_s(self, view: SystemView) -> FloatArray:
        """Return (batch_max,) seconds of a batch until this decision is in force."""
        service_s, delay_s = self.tables.service_s, self._spec.resize_delay_s
        if not view.first.pending:
            row_s: FloatArray = service_s[view.first.cores_in_force - 1]
            return row_s
        # A mean of speeds: what is asked for already comes into force one after the other.
        speed, cores, from_s = np.zeros(service_s.shape[1]), view.first.cores_in_force, 0.0
        for starts_s, wanted in (*view.first.pending, (delay_s, 0)):
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
    only = StageSpec("model", 1, 1, 1, latencies=(fit,), cold_start_s=0.0)
    tables = make_tables(SystemSpec(1.0, 1.0, stages=(only,)), 0.0)
    nothing = Forecast(0.0, 0.0, 0.0, 0.0)
    before_s, running = tables.service_s[0], np.empty((0, 2))
    idle = Snapshot(0.0, np.empty(0), 0.0, running, 1, before_s, nothing)
    if counting:
        count_per_request(tables, idle, np.empty((0, 2)), np.zeros((1, 1), np.int64))
    else:
        solve_per_request(tables, idle, np.empty((0, 2)))
