"""Sponge's controller: an integer program picks cores and batch size every interval.

The published program (Razavi et al., EuroMLSys 2024) and one that holds each request to its own
deadline are in :mod:`.program`; what the latter expects to arrive is forecast here. At the end
stands Sponge without one of its means, to see what each contributes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from sponge_env.control.base import BaseController, option
from sponge_env.control.chain import is_chain
from sponge_env.control.split import Rule
from sponge_env.errors import ConfigError
from sponge_env.interfaces import ACCURACY_PRICE, Allocation, SystemSpec, SystemView
from sponge_env.latency import quantile

from .fleet import FleetOptions
from .program import Forecast
from .solvers import PublishedProgram, SolverName, make_backend
from .stages import StagePlanner
from .surprise import ForecastError

_INTERVALS_FOR_DISPERSION = 5
"""With fewer intervals, arrivals are taken to scatter like a Poisson process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeIPConfig(FleetOptions):
    """Options of :class:`SpongeIP`.

    Those of the forecast were tuned on the YOLOv5s profile at 20 requests per second over a 4G
    trace, with constant, Poisson and bursty arrivals.
    """

    formulation: Literal["per-request", "paper"] = "per-request"
    """``per-request`` holds every request to its own deadline; ``paper`` is the published
    program."""
    on_infeasible: Literal["least-violations", "hold"] = "least-violations"
    """Where no pair meets every budget: take one of those that miss the fewest, or keep the
    allocation in force, as published. Both count as infeasible."""
    solver: SolverName = "exact"
    """``exact`` is compiled enumeration; ``pulp`` solves the same program with PuLP and its
    CBC, ``highs`` with PuLP and the package ``highspy``. Their answers are equal."""
    slo_fraction: float = option(1.0, above=0, at_most=1)
    """Share of the SLO that ``paper`` plans with. 1 gives the published answer (5 cores and
    batch 10 for ResNet18 at 100 requests per second, a delay of 50 ms and an SLO of 1 s);
    the published code's 0.9 gives 6 and 10."""
    margin_probability: float = option(0.9, at_least=0, at_most=1)
    """Probability with which ``per-request`` wants a latency to stay below prediction plus
    margin, by the residuals of the profile's fit."""
    rate_windows: int = option(10, at_least=1)
    """Past intervals over which the forecast averages the arrival rate."""
    recent_windows: int = option(2, at_least=1)
    """Past intervals whose mean rate the forecast never falls below, so that it follows a
    step up at once."""
    sigmas: float = option(1.0, at_least=0)
    """Standard deviations of the arrivals to be ready for, in their rate and during one
    batch."""
    stage_sigmas: float = option(3.0, at_least=0)
    """The same of the stages of a pipeline: what one of them holds up is missing in the next."""
    budget_quantile: float = option(0.05, at_least=0, at_most=0.5)
    """Quantile of the last interval's budgets on arrival that is the lowest expected."""
    delay_windows: int = option(5, at_least=1)
    """Past intervals whose largest mean communication delay may come again."""
    budget: Literal["end-to-end", "proportional", "equal"] = "end-to-end"
    """Of a pipeline: one budget for all stages, or for each stage its share, in proportion to the
    latencies of the stages or the same for all."""
    accuracy_price: float = option(ACCURACY_PRICE, at_least=0)
    """Cores that a percent of accuracy is worth, where there are variants."""
    variant: Literal["chosen", "smallest", "largest"] = "chosen"
    """Of each stage: chosen by the program, or always the least or the most accurate."""


class SpongeIP(BaseController):
    """Sponge's reference controller, in the published and in the per-request form.

    It asks for one replica always, but in a pipeline, where :class:`~.fleet.FleetPlanner` says how
    many each stage holds. Before the first interval has passed the load is unknown:
    the per-request form then takes everything, the published one keeps what is in force.
    A solver that is not installed is a :class:`~sponge_env.errors.ConfigError`.
    """

    config: SpongeIPConfig

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        if self.config.solver != "exact":
            make_backend(self.config.solver)

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether the program is one for all stages: its own form, for a chain."""
        whole = self.config.budget == "end-to-end" or len(spec.stages) == 1
        return whole and self.config.formulation == "per-request" and is_chain(spec.stages)

    def split_by(self) -> Rule:
        """Return how the SLO is divided if it is."""
        return "equal" if self.config.budget == "equal" else "proportional"

    def begin(self, spec: SystemSpec) -> None:
        """Make the program for a system whose latency model predicts positive latencies."""
        config = self.config
        self._error = ForecastError(spec.interval_s, spec.resize_delay_s)
        in_pipeline = self.part_of_pipeline or len(spec.stages) > 1
        sigmas = config.stage_sigmas if in_pipeline else config.sigmas
        self._forecasting = dataclasses.replace(config, sigmas=sigmas)
        if config.formulation == "paper":
            self._published = PublishedProgram(spec, config.solver)
        else:
            self._planner = StagePlanner(config, spec, scaled_out=in_pipeline)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Solve the program that follows from the view."""
        config, paper = self.config, self.config.formulation == "paper"
        if not view.first.arrivals.size:
            held = dataclasses.replace(view.allocation, feasible=True)
            return held if paper else self._planner.everything()
        if paper:
            rate_rps = float(view.first.arrivals[-1]) / spec.interval_s
            delay_max_s = float(view.delays_s.max(initial=0.0))
            answer = self._published.choose(rate_rps, delay_max_s, config.slo_fraction)
        else:
            answer = self._planner.choose(view, self._forecast(spec, view))
        if not answer.feasible and config.on_infeasible == "hold":
            return dataclasses.replace(view.allocation, feasible=False)
        return answer

    def _forecast(self, spec: SystemSpec, view: SystemView) -> Forecast:
        forecast = forecast_arrivals(self._forecasting, spec, view)
        self._error.add(float(view.first.arrivals[-1]), forecast.rate_rps)
        swing = math.exp(self.config.sigmas * math.sqrt(self._error.variance))
        return forecast._replace(rate_rps=forecast.rate_rps * swing)


def sponge_exact(**options: object) -> SpongeIP:
    """Make the controller with the compiled solver, whatever the default is."""
    return SpongeIP(solver="exact", **options)


def forecast_arrivals(config: SpongeIPConfig, spec: SystemSpec, view: SystemView) -> Forecast:
    """Forecast an interval's arrivals from the past ones, of which there is one at least.

    The rate is the mean of the last intervals plus ``sigmas`` standard errors, or the most recent
    rate if that is higher.
    """
    # Plain floats, for the arrays are far too short for NumPy to pay.
    counts: list[float] = view.first.arrivals[-config.rate_windows :].tolist()
    mean = sum(counts) / len(counts)
    noise = config.sigmas * math.sqrt(_dispersion(counts, mean))
    newest = counts[-config.recent_windows :]
    recent = sum(newest) / len(newest)
    expected = max(mean + noise * math.sqrt(mean / len(counts)), recent)
    low_s, high_s = _budget_range_s(config, spec, view)
    return Forecast(expected / spec.interval_s, noise, low_s, high_s)


def _dispersion(counts: list[float], mean: float) -> float:
    """Return how much arrivals scatter: variance over mean, 0 at equal gaps, 1 for Poisson.

    The variance is the smaller of two estimates. That around the mean takes a slow swing of
    the rate for scatter; that from successive differences counts requests twice which the
    network held back in one interval and delivered in the next.
    """
    if mean <= 0 or len(counts) < _INTERVALS_FOR_DISPERSION:
        return 1.0
    around_mean = sum((count - mean) ** 2 for count in counts)
    successive = sum((after - before) ** 2 for before, after in itertools.pairwise(counts)) / 2
    return min(around_mean, successive) / (len(counts) - 1) / mean


def _budget_range_s(
    config: SpongeIPConfig, spec: SystemSpec, view: SystemView
) -> tuple[float, float]:
    """Return the lowest and the highest budget on arrival to expect."""
    delays_s: list[float] = view.mean_delays_s[-config.delay_windows :].tolist()
    # The intervals before the first arrival have none.
    worst_delay_s = max((delay_s for delay_s in delays_s if not math.isnan(delay_s)), default=0.0)
    remembered_s = spec.slo_s - worst_delay_s
    if not view.budgets_s.size:
        return remembered_s, remembered_s
    budgets_s: list[float] = np.sort(view.budgets_s).tolist()
    low_s = quantile(budgets_s, config.budget_quantile)
    return min(low_s, remembered_s), quantile(budgets_s, 1 - config.budget_quantile)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblatedConfig(SpongeIPConfig):
    """Options of :class:`Ablated`."""

    cores_fixed: int | None = option(None, at_least=1)
    """Cores to hold always, never more than the scenario's limit; chosen by the program if left
    out."""
    batch_limit: int | None = option(None, at_least=1)
    """Largest batch to plan with; the scenario's limit if left out."""


class Ablated(SpongeIP):
    """Sponge without batching or without scaling: its program sees a smaller system.

    The third of its means, order, is the system's: ``serving.order = "fifo"`` in the scenario.
    """

    config: AblatedConfig

    def begin(self, spec: SystemSpec) -> None:
        """Plan for a system with less to choose from; a ConfigError if it has several stages."""
        config = self.config
        if self.part_of_pipeline or not spec.is_one_model:
            raise ConfigError("Sponge without one of its means is for one stage and one variant")
        batch_max = min(config.batch_limit or spec.first.batch_max, spec.first.batch_max)
        self._smaller = spec.with_first(batch_max=batch_max)
        if config.cores_fixed is not None:
            self._smaller = bundled(self._smaller, min(config.cores_fixed, spec.first.cores_max))
        super().begin(self._smaller)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Solve the smaller program."""
        fixed, smaller = self.config.cores_fixed, self._smaller
        batch = min(view.allocation.batch, smaller.first.batch_max)
        cores = view.allocation.cores if fixed is None else 1
        seen = dataclasses.replace(
            view, allocation=view.allocation.changed(cores=cores, batch=batch)
        )
        if fixed is not None:
            seen = seen.with_first(cores_in_force=1, pending=())
        answer = super().allocate(smaller, seen)
        return answer if fixed is None else answer.changed(cores=min(fixed, spec.first.cores_max))


def bundled(spec: SystemSpec, cores: int) -> SystemSpec:
    """Return a system of a single core unit that is as fast as ``cores`` of this one."""
    fit = spec.first.latency
    latency = dataclasses.replace(fit, gamma_s=fit.gamma_s / cores, epsilon_s=fit.epsilon_s / cores)
    core_unit = spec.first.core_unit * cores
    return spec.with_first(cores_max=1, latencies=(latency,), core_unit=core_unit)


no_batching = partial(Ablated, batch_limit=1)
no_scaling = partial(Ablated, cores_fixed=16)
equal_split = partial(SpongeIP, budget="equal")
proportional_split = partial(SpongeIP, budget="proportional")
smallest_variant = partial(SpongeIP, variant="smallest")
largest_variant = partial(SpongeIP, variant="largest")
