"""Joint vertical and horizontal scaling: vertical growth covers what replicas come too late for.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Two
decisions share each interval: :class:`~agents.joint_fleet.Fleet` says how many replicas to
hold, :func:`~agents.joint_kernel.cheapest_plan` the cores and the batch size with which the
ready ones meet every deadline at the least cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.forecast import Forecast, forecast_arrivals
from agents.joint_fleet import Fleet, FleetConfig
from agents.joint_kernel import Moment, Plant, cheapest_plan
from agents.joint_latency import Latency
from agents.program import fastest_s, service_table_s
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes, and later cores, that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(FleetConfig):
    """Options of :class:`SpongeJoint`."""

    margin_probability: float = 0.95
    """Probability with which a latency should stay below prediction plus margin, by the
    residuals of the profile's fit."""
    held_back: float = 1.0
    learn: bool = False
    safety: float = 0.03
    spread: bool = False
    intervals: int = 2
    """Intervals of arrivals that a plan covers."""
    miss_cost: float = 8.0
    """Cores held for one interval that a missed deadline is worth."""

    clear_share: float = 0.5
    """Time after these intervals in which the queue should be done, relative to the SLO."""

    def __post_init__(self) -> None:
        FleetConfig.__post_init__(self)
        if not 0 <= self.margin_probability <= 1:
            raise ConfigError(
                f"margin_probability must be between 0 and 1, not {self.margin_probability!r}"
            )


class SpongeJoint:
    """Sponge with replicas."""

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`SpongeJointConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(SpongeJointConfig, options)
        self._system: tuple[SystemSpec, Plant, Fleet] | None = None

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        margin = max(0.0, spec.latency.residual_quantile(self.config.margin_probability))
        service_s = np.ascontiguousarray(service_table_s(spec, margin).T)
        plant = Plant(
            service_s=service_s,
            batches=np.array([size for size in _SIZES if size <= spec.batch_max]),
            later_cores=np.array([size for size in _SIZES if size <= spec.cores_max]),
            fastest_s=fastest_s(spec),
            interval_s=spec.interval_s,
            later=float(self.config.intervals - 1),
            miss_cost=self.config.miss_cost,
            clear_by_s=self.config.intervals * spec.interval_s
            + self.config.clear_share * spec.slo_s,
        )
        self._lat = Latency(spec, margin, self.config.safety)
        self._system = spec, plant, Fleet(self.config, spec, service_s)

    def decide(self, view: SystemView) -> Allocation:
        """Choose the fleet, then its cores and batch size.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._system is None:
            raise RuntimeError("call reset() before decide()")
        spec, plant, fleet = self._system
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max, view.allocation.replicas)
        fleet.observe(view)
        replicas = fleet.replicas(view)
        if self.config.learn:
            self._lat.observe(view)
            plant = plant._replace(service_s=self._lat.service_s())
        forecast = forecast_arrivals(self.config, spec, view)
        moment = Moment(
            slacks_s=view.queued_deadlines_s - view.now_s,
            arrivals_s=self._arr(spec, view, forecast, plant),
            replicas=_replicas(spec, view, replicas),
            cores=view.allocation.cores,
            rate_rps=forecast.rate_rps,
        )
        cores, batch, misses = cheapest_plan(plant, moment)
        return Allocation(cores, batch, replicas, feasible=misses == 0)

    def _arr(self, spec, view, forecast, plant):
        base = _arrivals_s(forecast, self.config.intervals * spec.interval_s)
        if self.config.spread:
            per = max(1.0, forecast.rate_rps * spec.interval_s)
            frac = ((np.arange(len(base)) + 0.5) / per) % 1.0
            budget = forecast.budget_low_s + (forecast.budget_high_s - forecast.budget_low_s) * frac
            base[:, 1] = base[:, 0] + budget
            base[budget < plant.fastest_s, 1] = np.inf
        if self.config.held_back <= 0: return base
        counts = view.arrivals[-self.config.rate_windows-1:-1]
        if len(counts) < 3: return base
        mean = counts.mean()
        short = mean - view.arrivals[-1] - 1.0 * forecast.noise * np.sqrt(mean)
        n = int(self.config.held_back * short)
        if n <= 0: return base
        due = spec.slo_s - spec.interval_s + (np.arange(n) + 0.5) / n * spec.interval_s
        due[due < plant.fastest_s] = np.inf
        clump = np.column_stack([np.zeros(n), due])
        return np.concatenate([clump[np.isfinite(due)], base])


def _arrivals_s(forecast: Forecast, span_s: float) -> FloatArray:
    """Return (n, 2) when each expected request arrives and when it is due.

    They come as early as their scatter lets them: number ``n`` when ``x`` are expected with
    ``x + noise * sqrt(x) = n``. All have the lowest budget.
    """
    expected = forecast.rate_rps * span_s
    order = np.arange(int(expected + forecast.noise * np.sqrt(expected)))
    root = (np.sqrt(forecast.noise**2 + 4 * order) - forecast.noise) / 2
    arrival_s = root * root / max(forecast.rate_rps, 1e-9)
    return np.column_stack([arrival_s, arrival_s + forecast.budget_low_s])


def _replicas(spec: SystemSpec, view: SystemView, held: int) -> FloatArray:
    """Return (held, 2) when each replica is free and the size of its batch."""
    rows = np.zeros((held, 2))
    rows[:, 0] = spec.cold_start_s
    free = min(view.replicas_ready, held)
    rows[:free, 0] = 0.0
    running = sorted(view.running, key=lambda batch: batch.expected_end_s)[-free:] if free else []
    for row, batch in zip(rows, running, strict=False):
        row[:] = max(0.0, batch.expected_end_s - view.now_s), batch.size
    starting = view.starting_s[: held - free]
    rows[free : free + len(starting), 0] = starting
    return rows
