"""Joint vertical and horizontal scaling: cores cover the load until cheaper replicas are warm.

As Themis argues ("A Tale of Two Scales", Razavi et al., arXiv 2407.14843, 2024), replicas on
few cores are the cheapest way to serve a load and cores the fastest way to follow one. Three
parts share each decision: :class:`~agents.joint_latency.Latency` knows what batches take,
:class:`~agents.joint_fleet.Fleet` says how many replicas to hold, and
:func:`~agents.joint_kernel.cheapest_plan` with which cores and batch size the ready ones
meet every deadline at the least cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.forecast import Forecast, forecast_arrivals
from agents.joint_fleet import Fleet, FleetConfig
from agents.joint_kernel import Moment, Plant, cheapest_plan, warm_up
from agents.joint_latency import Latency
from agents.program import fastest_s
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes, and cores of the intervals to come, that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpongeJointConfig(FleetConfig):
    """Options of :class:`SpongeJoint`.

    The defaults were tuned on training seeds 1000 to 1004 of every shipped scenario, most of
    it with the YOLOv5s profile; they are the same for all.
    """

    sigmas: float = 0.7
    delay_windows: int = 1
    margin_probability: float = 0.95
    """Probability with which a latency that was never seen should stay below prediction plus
    margin, by the residuals of the profile's fit."""
    learn_latency: bool = True
    """Whether latencies that were seen replace the fit's."""
    safety: float = 0.08
    """Relative allowance on latencies that were seen, for single batches scatter."""
    intervals: int = 2
    """Intervals of arrivals that a plan covers, at least 2."""
    miss_cost: float = 4.0
    """Cores held for one interval that a missed deadline is worth."""
    clear_share: float = 0.5
    """Time after the planned intervals until the queue should be empty, relative to the SLO."""

    def __post_init__(self) -> None:
        FleetConfig.__post_init__(self)
        if not 0 <= self.margin_probability <= 1:
            raise ConfigError(
                f"margin_probability must be between 0 and 1, not {self.margin_probability!r}"
            )
        if self.intervals < 2:
            raise ConfigError(f"intervals must be at least 2, not {self.intervals!r}")
        if not 0 < self.miss_cost < math.inf:
            raise ConfigError(f"miss_cost must be a number above 0, not {self.miss_cost!r}")
        for name in ("safety", "clear_share"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}")


class SpongeJoint:
    """Sponge with replicas: chooses how many, their cores, and the batch size.

    Before the first interval has passed the load is unknown, and the replicas that there are
    take all cores.
    """

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of :class:`SpongeJointConfig`.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        self.config = from_mapping(SpongeJointConfig, options)
        self._episode: tuple[SystemSpec, Latency, Fleet] | None = None
        warm_up()

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; no random number is drawn.

        Raises:
            ProfileError: The system's latency model predicts one that is not positive.
        """
        config = self.config
        margin = max(0.0, spec.latency.residual_quantile(config.margin_probability))
        latency = Latency(spec, margin, config.safety)
        self._episode = spec, latency, Fleet(config, spec)

    def decide(self, view: SystemView) -> Allocation:
        """Choose the fleet, then its cores and batch size.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._episode is None:
            raise RuntimeError("call reset() before decide()")
        spec, latency, fleet = self._episode
        if not view.arrivals.size:
            return Allocation(spec.cores_max, spec.batch_max, view.allocation.replicas)
        if self.config.learn_latency:
            latency.observe(view)
        fleet.observe(view)
        replicas = fleet.replicas(view, latency.service_s)
        plant = self._plant(spec, latency)
        cores, batch, misses = cheapest_plan(plant, self._moment(spec, view, replicas))
        return Allocation(cores, batch, replicas, feasible=misses == 0)

    def _plant(self, spec: SystemSpec, latency: Latency) -> Plant:
        planned_s = self.config.intervals * spec.interval_s
        return Plant(
            service_s=latency.service_s,
            batches=np.array([size for size in _SIZES if size <= spec.batch_max]),
            later_cores=np.array([size for size in _SIZES if size <= spec.cores_max]),
            fastest_s=fastest_s(spec),
            interval_s=spec.interval_s,
            later=float(self.config.intervals - 1),
            miss_cost=self.config.miss_cost,
            clear_by_s=planned_s + self.config.clear_share * spec.slo_s,
        )

    def _moment(self, spec: SystemSpec, view: SystemView, replicas: int) -> Moment:
        forecast = forecast_arrivals(self.config, spec, view)
        arrivals_s = expected_arrivals_s(forecast, self.config.intervals, spec.interval_s)
        # Those that arrive hopeless are left out: to plan for them would save nobody.
        arrivals_s = arrivals_s[arrivals_s[:, 1] - arrivals_s[:, 0] >= fastest_s(spec)]
        return Moment(
            slacks_s=view.queued_deadlines_s - view.now_s,
            arrivals_s=arrivals_s,
            replicas=replica_states(spec, view, replicas),
            cores=view.allocation.cores,
            rate_rps=forecast.rate_rps,
        )


def expected_arrivals_s(forecast: Forecast, intervals: int, interval_s: float) -> FloatArray:
    """Return (arrivals, 2) when each expected request arrives and when it is due.

    They come as early as their scatter lets them: number ``n`` when ``x`` are expected with
    ``x + noise * sqrt(x) = n``. In each interval their budgets rise evenly from the lowest
    to the highest, so that the first ones, which meet the queue, have the least time.
    """
    per_interval = forecast.rate_rps * interval_s
    expected = intervals * per_interval
    order = np.arange(int(expected + forecast.noise * math.sqrt(expected)))
    root = (np.sqrt(forecast.noise**2 + 4 * order) - forecast.noise) / 2
    # No order, no division.
    arrival_s = root * root / (forecast.rate_rps or 1.0)
    place = ((order + 0.5) / max(per_interval, 1.0)) % 1.0
    budget_s = forecast.budget_low_s + (forecast.budget_high_s - forecast.budget_low_s) * place
    return np.column_stack([arrival_s, arrival_s + budget_s])


def replica_states(spec: SystemSpec, view: SystemView, held: int) -> FloatArray:
    """Return (held, 2) when each replica is free, in seconds, and the size of its batch.

    Ready ones come first, then those that start, soonest first. A batch on a replica beyond
    them is on one that goes when it is done; the view does not say which that is, so the
    batches that end last are taken to stay.
    """
    rows = np.zeros((held, 2))
    ready = min(view.replicas_ready, held)
    staying = sorted(view.running, key=lambda batch: -batch.expected_end_s)[:ready]
    for row, batch in zip(rows, staying, strict=False):
        row[:] = max(0.0, batch.expected_end_s - view.now_s), batch.size
    starting_s = view.starting_s[: held - ready]
    rows[ready : ready + len(starting_s), 0] = starting_s
    rows[ready + len(starting_s) :, 0] = spec.cold_start_s
    return rows
