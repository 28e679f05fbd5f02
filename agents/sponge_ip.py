"""Sponge's controller: an integer program picks cores and batch size every interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agents.forecast import Forecast, ForecastConfig, forecast_arrivals
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

SolverName = Literal["exact", "pulp", "highs"]


class Solver(Protocol):
    """Answers the programs of :mod:`agents.program` for one system.

    Of the pairs that miss the fewest deadlines, the one of the lowest cost wins; it is
    feasible if it misses none.
    """

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve :func:`~agents.program.published_program`."""

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve :func:`~agents.program.per_request_program`."""


SolverMaker = Callable[[SystemSpec, float], Solver]
"""Takes the system and the margin of the per-request form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeIPConfig(ForecastConfig):
    """Options of :class:`SpongeIP`."""

    formulation: Literal["per-request", "paper"] = "per-request"
    """``per-request`` holds every request to its own deadline; ``paper`` is the published
    program."""
    on_infeasible: Literal["least-violations", "hold"] = "least-violations"
    """Where no pair meets every budget: take one of those that miss the fewest, or keep the
    allocation in force, as published. Both count as infeasible."""
    solver: SolverName = "exact"
    """``exact`` is compiled enumeration; ``pulp`` solves the same program with PuLP and its
    CBC, ``highs`` with PuLP and the package ``highspy``. Their answers are equal."""
    slo_fraction: float = 1.0
    """Share of the SLO that ``paper`` plans with. 1 gives the published answer (5 cores and
    batch 10 for ResNet18 at 100 requests per second, a delay of 50 ms and an SLO of 1 s);
    the published code's 0.9 gives 6 and 10."""
    margin_probability: float = 0.9
    """Probability with which ``per-request`` wants a latency to stay below prediction plus
    margin, by the residuals of the profile's fit."""

    def __post_init__(self) -> None:
        # Explicit, for a class with slots is made anew and super() would miss it.
        ForecastConfig.__post_init__(self)
        if not 0 < self.slo_fraction <= 1:
            raise ConfigError(
                f"slo_fraction must be above 0 and at most 1, not {self.slo_fraction!r}"
            )
        if not 0 <= self.margin_probability <= 1:
            raise ConfigError(
                f"margin_probability must be between 0 and 1, not {self.margin_probability!r}"
            )


class SpongeIP:
    """Sponge's reference controller, in the published and in the per-request form.

    It asks for one replica always. Before the first interval has passed the load is unknown:
    the per-request form then takes everything, the published one keeps what is in force.
    """

    options = SpongeIPConfig

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`SpongeIPConfig`.

        Raises:
            ConfigError: An option is unknown or out of range, or its solver is not installed.
        """
        self.config = from_mapping(SpongeIPConfig, options)
        self._make_solver = _solver_maker(self.config.solver)
        self._system: tuple[SystemSpec, Solver] | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        margin = spec.latency.residual_quantile(self.config.margin_probability)
        self._system = spec, self._make_solver(spec, max(0.0, margin))

    def decide(self, view: SystemView) -> Allocation:
        """Solve the program that follows from the view.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._system is None:
            raise RuntimeError("call reset() before decide()")
        spec, solver = self._system
        if not view.arrivals.size:
            return self._unknown_load(spec, view)
        answer = self._solve(spec, solver, view)
        if not answer.feasible and self.config.on_infeasible == "hold":
            return dataclasses.replace(view.allocation, feasible=False)
        return answer

    def _solve(self, spec: SystemSpec, solver: Solver, view: SystemView) -> Allocation:
        if self.config.formulation == "paper":
            rate_rps = float(view.arrivals[-1]) / spec.interval_s
            delay_max_s = float(view.delays_s.max(initial=0.0))
            return solver.published(rate_rps, delay_max_s, self.config.slo_fraction)
        return solver.per_request(view, forecast_arrivals(self.config, spec, view))

    def _unknown_load(self, spec: SystemSpec, view: SystemView) -> Allocation:
        if self.config.formulation == "paper":
            return dataclasses.replace(view.allocation, feasible=True)
        return Allocation(spec.cores_max, spec.batch_max)


def sponge_exact(**options: Any) -> SpongeIP:
    """Make the controller with the compiled solver, whatever the default is."""
    return SpongeIP(solver="exact", **options)


def _solver_maker(name: SolverName) -> SolverMaker:
    """Import a solver's library and return what makes it for a system.

    Raises:
        ConfigError: The solver is not installed.
    """
    # Each brings a library that takes a while to import and that the other does not need.
    if name == "exact":
        from agents.solve_exact import ExactSolver, warm_up

        warm_up()
        return ExactSolver
    from agents.solve_pulp import PulpSolver, make_backend

    backend = make_backend(name)
    return lambda spec, margin: PulpSolver(spec, margin, backend)
