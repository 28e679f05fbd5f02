"""Sponge's controller: an integer program picks cores and batch size every interval.

The published program (Razavi et al., EuroMLSys 2024) is here; the one that holds each request to
its own deadline is in :mod:`.stages`, and its forecast in :mod:`.rates`. At the end are variants of
Sponge without one of its means, to see what each contributes.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from sponge_env.control.base import BaseController, VariantPlanning, option
from sponge_env.control.split import Rule
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

from .fleet import FleetOptions, Fleets, everything
from .rates import SIGMAS, STAGE_SIGMAS, Forecast, ForecastError, forecast_arrivals
from .stages import StageProgram

_ROUNDING_MS = 1e-6  # Milliseconds that a published budget may be off by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeIPConfig(VariantPlanning, FleetOptions):
    """Options of :class:`SpongeIP`."""

    formulation: Literal["per-request", "paper"] = "per-request"
    """``per-request`` holds each one to its own deadline; ``paper`` is the published program."""
    on_infeasible: Literal["least-violations", "hold"] = "least-violations"
    """If no pair meets every budget: take one that misses the fewest, or keep the allocation in
    force, as published. Both count as infeasible."""
    solver: Literal["exact", "pulp"] = "exact"
    """Of the per-request form: compiled dynamic programming, or PuLP's CBC with equal answers."""
    slo_fraction: float = option(1.0, above=0, at_most=1)
    """Share of the SLO that ``paper`` plans with: 1 for the published answer (5 cores, batch 10 for
    ResNet18 at 100 requests/s, 50 ms of delay and an SLO of 1 s), 0.9 for the published code's."""
    budget: Literal["end-to-end", "proportional", "equal"] = "end-to-end"
    """Of a pipeline: one budget for all stages, or shares, by their latencies or all the same."""
    variant: Literal["chosen", "smallest", "largest"] = "chosen"
    """Of each stage: chosen by the program, or always the least or the most accurate."""


class SpongeIP(BaseController):
    """Sponge's reference controller, in the published and in the per-request form.

    It always asks for one replica, except in a pipeline, where :class:`~.fleet.FleetPlanner` says
    how many each stage holds. Before the first interval has passed the load is unknown: the
    per-request form then takes everything, the published one keeps what is in force.
    """

    config: SpongeIPConfig

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether one program decides for all stages: the per-request form, of a chain."""
        whole = self.config.budget == "end-to-end" or len(spec.stages) == 1
        return whole and self.config.formulation == "per-request" and spec.is_chain

    def split_by(self) -> Rule:
        """Return how the SLO is divided if it is."""
        return "equal" if self.config.budget == "equal" else "proportional"

    def begin(self, spec: SystemSpec) -> None:
        """Make the program for a system whose latency model predicts positive latencies."""
        config = self.config
        self._error = ForecastError(spec.interval_s, spec.resize_delay_s)
        in_pipeline = self.part_of_pipeline or len(spec.stages) > 1
        self._sigmas = STAGE_SIGMAS if in_pipeline else SIGMAS
        self._fleets = None
        if config.formulation == "paper":
            if config.solver == "pulp":
                raise ConfigError("solver pulp solves the per-request form only")
            return
        self._program = StageProgram(config, spec)
        if in_pipeline:
            self._fleets = Fleets(config, spec, in_pipeline)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Solve the program that follows from the view."""
        config, paper = self.config, self.config.formulation == "paper"
        replicas = [1] * len(spec.stages)
        if not view.first.arrivals.size:
            if paper:
                return dataclasses.replace(view.allocation, feasible=True)
            if self._fleets:
                replicas = [stage.replicas for stage in spec.initial.stages]
            return everything(spec, replicas)
        if paper:
            rate_rps = float(view.first.arrivals[-1]) / spec.interval_s
            delay_max_s = float(view.delays_s.max(initial=0.0))
            answer = solve_published(spec, rate_rps, delay_max_s, config.slo_fraction)
        else:
            if self._fleets:
                model = self._program.model
                self._fleets.observe(view)
                services_s = [model.service_s(k, view) for k in range(len(replicas))]
                replicas = self._fleets.replicas(services_s)
            answer = self._program.choose(view, self._forecast(spec, view), replicas)
        if not answer.feasible and config.on_infeasible == "hold":
            return dataclasses.replace(view.allocation, feasible=False)
        return answer

    def _forecast(self, spec: SystemSpec, view: SystemView) -> Forecast:
        forecast = forecast_arrivals(spec, view, self._sigmas)
        if not spec.resize_delay_s:
            return forecast
        self._error.add(float(view.first.arrivals[-1]), forecast.rate_rps)
        swing = math.exp(SIGMAS * math.sqrt(self._error.variance))
        return forecast._replace(rate_rps=forecast.rate_rps * swing)


def solve_published(
    spec: SystemSpec, rate_rps: float, delay_max_s: float, slo_fraction: float
) -> Allocation:
    """Solve the published form for one stage, a rate, its lambda, and the largest delay ``cl_max``.

    As published (Razavi et al., EuroMLSys 2024, and its code): the next second's requests count
    as queued at once and are served in batches of ``b`` one after another; each must end within
    ``slo_fraction * SLO - cl_max``, and the throughput must reach their rate. Of the pairs that
    miss the fewest deadlines, the one of the lowest ``c + b / (batch_max + 1)`` wins, which is the
    published objective with its tie-break made exact. It is feasible if it misses none.
    """
    latency_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)
    latency_ms = np.maximum(np.floor(latency_s.T * 1e3), 1)
    limit_ms = (slo_fraction * spec.slo_s - delay_max_s) * 1e3
    batches = np.arange(1, spec.first.batch_max + 1)
    in_time = batches * np.maximum(np.floor((limit_ms + _ROUNDING_MS) / latency_ms), 0)
    unserved = np.maximum(np.ceil(rate_rps - batches / latency_ms * 1e3), 0)
    late = np.maximum(math.ceil(rate_rps) - in_time, 0) + unserved
    # The first of the fewest is the cheapest: fewest cores, then the smallest batch.
    cores, batch = divmod(int(late.argmin()), batches.size)
    return Allocation(cores + 1, batch + 1, feasible=bool(late.min() == 0))


equal_split = partial(SpongeIP, budget="equal")
proportional_split = partial(SpongeIP, budget="proportional")
smallest_variant = partial(SpongeIP, variant="smallest")
largest_variant = partial(SpongeIP, variant="largest")
