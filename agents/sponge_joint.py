"""Joint vertical and horizontal scaling: cores cover the load until cheaper replicas are warm.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Two
parts share each decision: :class:`FleetPlanner` says how many replicas to keep, which takes a cold
start to change, and the look-ahead program of ``sponge-mpc`` with which cores and batch size they
serve the next seconds best.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sponge_env.chain import is_chain
from sponge_env.controllers import BaseController, option
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.results.schema import IntervalMetrics
from sponge_env.split import shares, stage_spec, stage_views

from .fleet import FleetOptions, Fleets
from .lookahead.options import MPCConfig
from .lookahead.planner import LookAhead, everything
from .lookahead.service_times import SEEN_RANGE, fitted_s

_PRIOR_S = 1.0
"""Service that the first guess of a service time counts for."""
_FORGET = 0.998
"""Weight that experience of service times keeps per interval."""
_SAME_BATCH = 0.1
"""Distance of a mean batch size from a whole number up to which all batches count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(MPCConfig, FleetOptions):
    """Options of :class:`SpongeJoint`: of the fleet, and of the program that chooses its cores.

    The defaults were chosen on training seeds over several scenarios and profiles at once.
    """

    margin_probability: float = option(0.95, at_least=0, at_most=1)
    """Probability with which a latency that was never seen should stay below prediction plus
    margin, by the residuals of the profile's fit."""
    safety: float = option(0.03, at_least=0)
    """Relative allowance on latencies that were seen, for single batches scatter."""


class SpongeJoint(BaseController):
    """Sponge with replicas: chooses how many, their cores, and the batch size.

    Before the first interval has passed the load is unknown, and the replicas that there are
    share all cores.
    """

    config: SpongeJointConfig

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether the stages are a chain."""
        return is_chain(spec.stages)

    def begin(self, spec: SystemSpec) -> None:
        """Start from the fitted service times and a margin; compiles at the first call."""
        config = self.config
        self._shares = shares(spec, "proportional")
        self._times = [
            [
                QuotaServiceTimes(part, self._margin(part), config.safety)
                for part in variant_specs(spec, k, share)
            ]
            for k, (share, _) in enumerate(self._shares)
        ]
        self._service_s = fitted_s(spec)
        self._program = LookAhead(spec, config, self._service_s)
        for k, stage in enumerate(spec.stages):
            for variant in range(len(stage.latencies)):
                self._learn(k, variant)
        self._fleets = Fleets(config, spec, self.part_of_pipeline or len(spec.stages) > 1)

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Choose the fleets, then their variants, cores and batch sizes."""
        if not view.arrivals.size:
            return everything(spec, [stage.allocation.replicas for stage in view.stages])
        parts = stage_views(view, spec, self._shares)
        services_s = []
        for k, (part, stage) in enumerate(zip(parts, view.stages, strict=True)):
            variant = stage.allocation.variant
            if self.config.learning:
                self._times[k][variant].observe(part)
                self._learn(k, variant)
            services_s.append(self._table_s(k, variant))
        return self._program.choose(view, self._fleets.replicas(parts, services_s))

    def _margin(self, part: SystemSpec) -> float:
        return max(0.0, part.latency.residual_quantile(self.config.margin_probability))

    def _table_s(self, k: int, variant: int) -> FloatArray:
        """Return the part of the program's tables that a stage's variant has."""
        times = self._times[k][variant]
        return self._service_s[k, variant, : times.shape[0], : times.shape[1]]

    def _learn(self, k: int, variant: int) -> None:
        """Plan with what is believed now."""
        self._table_s(k, variant)[:] = self._times[k][variant].table_s
        self._program.learnt(k, variant)


def variant_specs(spec: SystemSpec, k: int, share: float) -> list[SystemSpec]:
    """Return a stage as a system of its own with its share of the SLO, for each of its variants."""
    part = stage_spec(spec, k, share)
    return [dataclasses.replace(part, latency=fit) for fit in spec.stages[k].latencies]


class QuotaServiceTimes:
    """Seconds to plan a batch with: the fit, until experience corrects it cell by cell.

    An interval tells how long its batches ran, and their mean size. Where all were of one size,
    that is the latency of one cell of the table. What was never seen keeps the first guess.

    Under a CPU quota a lone batch runs at full speed on what the quota has left, and batches
    back to back do not. So a batch counts as long as its cores take to grant what it used,
    should that be longer than it ran.
    """

    def __init__(self, spec: SystemSpec, margin: float, safety: float) -> None:
        """Start from the fit, with a first guess of how much longer batches take than that.

        ``safety`` is the allowance on what is learned, for single batches scatter.
        """
        self._sizes, self._cpu_cores = spec.batch_max, spec.cpu_cores
        self._delayed = spec.resize_delay_s > 0
        self._fit_s = np.ascontiguousarray(spec.latency.table_s(spec.batch_max, spec.cores_max).T)
        self._guess_s = self._fit_s * (1 + margin)
        self._sums = np.zeros((3, *self._fit_s.shape))
        """Seconds that batches ran, seconds until they were granted their CPU time, and batches."""
        self._safety, self._loading, self._cores = safety, False, 0

    def observe(self, view: SystemView) -> None:
        """Take in the interval that has passed."""
        loading, self._loading = self._loading or bool(view.starting_s), bool(view.starting_s)
        resized, self._cores = self._cores not in (0, view.cores_in_force), view.cores_in_force
        last = view.last
        if self._delayed and resized:
            return  # in the middle of the interval
        if last is None or not last.service_mean_s > 0 or last.cores > self._cpu_cores:
            return  # replicas that wait for each other's CPU say nothing of their own
        size = round(last.batch_mean)
        if abs(last.batch_mean - size) <= _SAME_BATCH and size <= self._sizes:
            self._add((view.cores_in_force - 1, size - 1), last, loading)

    def _add(self, cell: tuple[int, int], last: IntervalMetrics, loading: bool) -> None:
        self._sums *= _FORGET
        batches = (last.on_time + last.late) / last.batch_mean
        ran_s = last.service_mean_s * batches
        used_s = last.utilisation * last.core_seconds / (cell[0] + 1)
        # A replica that loads its model uses its cores, too.
        granted_s = ran_s if loading or last.restarts else used_s
        self._sums[:, *cell] += ran_s, granted_s, batches

    @property
    def shape(self) -> tuple[int, int]:
        """Cores and batch sizes of the table."""
        cores, batches = self._fit_s.shape
        return cores, batches

    @property
    def table_s(self) -> FloatArray:
        """What is believed now."""
        ran_s, granted_s, batches = self._sums
        low_s, high_s = (factor * self._fit_s * batches for factor in SEEN_RANGE)
        seen_s = np.clip(np.maximum(ran_s, granted_s), low_s, high_s)
        prior = _PRIOR_S / self._guess_s
        table_s: FloatArray = (_PRIOR_S + (1 + self._safety) * seen_s) / (prior + batches)
        return table_s
