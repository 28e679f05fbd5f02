"""What answers Sponge's program: compiled enumeration, or an integer program through PuLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.latency import LatencyModel

from .program import (
    Forecast,
    State,
    cost_table,
    count_per_request,
    count_published,
    make_state,
    make_tables,
    published_table_ms,
    recovery_table,
    solve_per_request,
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
        """Solve the published form; see :func:`.program.count_published`."""
        late = self._late(rate_rps, delay_max_s, slo_fraction).T
        # The first of the fewest is the cheapest: fewest cores, then the smallest batch.
        cores, batch = divmod(int(late.argmin()), late.shape[1])
        return Allocation(cores + 1, batch + 1, feasible=bool(late.min() == 0))

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form; see :func:`.program.solve_per_request`."""
        cores, batch, late = solve_per_request(self.tables, *self.arguments(view, forecast))
        return Allocation(cores, batch, feasible=late == 0)

    def arguments(self, view: SystemView, forecast: Forecast) -> tuple[State, FloatArray]:
        """Return what the kernels take beside the tables; see :func:`.program.make_state`."""
        return make_state(view, forecast, self._spec.interval_s)

    def _late(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> IntArray:
        limit_ms = (slo_fraction * self._spec.slo_s - delay_max_s) * 1e3
        return count_published(self._latency_ms, rate_rps, limit_ms)


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


class PulpSolver(ExactSolver):
    """Solves them as integer programs."""

    def __init__(self, spec: SystemSpec, margin: float, backend: pulp.LpSolver) -> None:
        super().__init__(spec, margin)
        self._backend, self._cost, self._recovery = backend, cost_table(spec), recovery_table(spec)

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve the published form."""
        late = self._late(rate_rps, delay_max_s, slo_fraction)
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
    idle = State(0.0, np.empty(0), 0.0, np.empty((0, 2)), 1, Forecast(0.0, 0.0, 0.0, 0.0))
    if counting:
        count_per_request(tables, idle, np.empty((0, 2)), np.zeros((1, 1), np.int64))
    else:
        solve_per_request(tables, idle, np.empty((0, 2)))
