"""Sponge's controller: an integer program picks cores and batch size every interval."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp

from agents.forecast import ForecastConfig, forecast_arrivals
from agents.program import Program, per_request_program, published_program
from sponge_env.config import from_mapping
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

Solver = Literal["cbc", "highs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeIPConfig(ForecastConfig):
    """Options of :class:`SpongeIP`."""

    formulation: Literal["per-request", "paper"] = "per-request"
    """``per-request`` holds every request to its own deadline; ``paper`` is the published
    program."""
    on_infeasible: Literal["least-violations", "hold"] = "least-violations"
    """Where no pair meets every budget: take the cheapest of those that miss the fewest,
    or keep the allocation in force, as published. Both count as infeasible."""
    solver: Solver = "cbc"
    """``cbc`` comes with PuLP; ``highs`` needs the package ``highspy``."""
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

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`SpongeIPConfig`.

        Raises:
            ConfigError: An option is unknown or out of range, or its solver is missing.
        """
        self.config = from_mapping(SpongeIPConfig, options)
        self._solver = make_solver(self.config.solver)
        self._spec: SystemSpec | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn."""
        self._spec = spec

    def decide(self, view: SystemView) -> Allocation:
        """Build the program from the view, solve it and return its answer.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._spec is None:
            raise RuntimeError("call reset() before decide()")
        if not view.arrivals.size:
            return self._unknown_load(self._spec, view)
        answer = solve(build_program(self.config, self._spec, view), self._solver)
        if not answer.feasible and self.config.on_infeasible == "hold":
            return dataclasses.replace(view.allocation, feasible=False)
        return answer

    def _unknown_load(self, spec: SystemSpec, view: SystemView) -> Allocation:
        if self.config.formulation == "paper":
            return dataclasses.replace(view.allocation, feasible=True)
        return Allocation(spec.cores_max, spec.batch_max)


def build_program(config: SpongeIPConfig, spec: SystemSpec, view: SystemView) -> Program:
    """Build the configured formulation's program."""
    if config.formulation == "paper":
        rate_rps = float(view.arrivals[-1]) / spec.interval_s
        delay_max_s = float(view.delays_s.max(initial=0.0))
        return published_program(spec, rate_rps, delay_max_s, config.slo_fraction)
    margin = spec.latency.residual_quantile(config.margin_probability)
    return per_request_program(spec, view, forecast_arrivals(config, spec, view), max(0.0, margin))


def solve(program: Program, solver: pulp.LpSolver) -> Allocation:
    """Solve a program; of the pairs that miss the fewest deadlines, the cheapest wins.

    Where a pair meets every budget, that is the published program. Where none does, the
    bound on violations rises from 0 to the least there are, which the table of a one-hot
    choice shows without another solve.

    Raises:
        RuntimeError: The solver did not find the optimum.
    """
    fewest = int(program.late.min())
    pairs = list(np.ndindex(program.cost.shape))
    model = pulp.LpProblem("sponge", pulp.LpMinimize)
    chosen = [model.add_variable(f"b{b + 1}_c{c + 1}", cat=pulp.LpBinary) for b, c in pairs]
    model += pulp.lpDot(program.cost.ravel().tolist(), chosen)
    model += pulp.lpSum(chosen) == 1
    model += pulp.lpDot(program.late.ravel().tolist(), chosen) <= fewest
    if model.solve(solver) != pulp.LpStatusOptimal:
        raise RuntimeError(f"{solver.name} ended as {pulp.LpStatus[model.status]}")
    row, column = next(pair for pair, x in zip(pairs, chosen, strict=True) if x.varValue > 0.5)
    return Allocation(cores=column + 1, batch=row + 1, feasible=fewest == 0)


def make_solver(name: Solver) -> pulp.LpSolver:
    """Make the solver; the only place that knows which there are.

    The relative gap is 0, for the weight of the batch size is below the usual tolerances.

    Raises:
        ConfigError: The solver is not installed.
    """
    if name == "cbc":
        # PuLP 3.3 warns that its class for the bundled CBC will go; the binary is the same.
        solver = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0)
    else:
        solver = pulp.HiGHS(msg=False, gapRel=0.0)
    if not solver.available():
        raise ConfigError(
            f"the solver {name!r} is not installed; choose another (cbc, highs) or install "
            f"{'PuLP with its bundled CBC' if name == 'cbc' else 'the package highspy'}"
        )
    return solver
