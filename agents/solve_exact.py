"""The exact solver: lays a system and a view out for the compiled kernel."""

from __future__ import annotations

import numpy as np

from agents.exact_kernel import IntArray, State, Tables, solve_per_request, solve_published
from agents.forecast import Forecast
from agents.program import (
    arrivals_to_expect,
    fastest_s,
    published_table_ms,
    recovery_table,
    service_table_s,
)
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.latency import LatencyModel


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
        """Solve the published form; see :func:`agents.program.published_program`."""
        limit_ms = (slo_fraction * self._slo_s - delay_max_s) * 1e3
        cores, batch, late = solve_published(self._latency_ms, rate_rps, limit_ms)
        return Allocation(cores, batch, feasible=late == 0)

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form; see :func:`agents.program.per_request_program`."""
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
            forecast.rate_rps,
            forecast.noise,
            forecast.budget_low_s,
            forecast.budget_high_s,
        )
        arrivals = arrivals_to_expect(forecast.rate_rps, self.tables.interval_s)
        return state, np.empty((arrivals, 2))


def warm_up() -> None:
    """Compile the kernels, or load them from disk, so that no decision waits for it."""
    fit = LatencyModel(gamma_s=1.0, delta_s=1.0, epsilon_s=0.0, eta_s=0.0)
    spec = SystemSpec(1.0, 1.0, 1, 1, 1, fit, cold_start_s=0.0)
    solver = ExactSolver(spec, margin=0.0)
    solver.published(rate_rps=0.0, delay_max_s=0.0, slo_fraction=1.0)
    idle = State(0.0, np.empty(0), 0.0, np.empty((0, 2)), 1, 0.0, 0.0, 0.0, 0.0)
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
