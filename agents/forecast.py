"""What Sponge's per-request program expects to arrive until the next decision."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from sponge_env.errors import ConfigError
from sponge_env.interfaces import SystemSpec, SystemView
from sponge_env.latency import quantile

_INTERVALS_FOR_DISPERSION = 5
"""With fewer intervals, arrivals are taken to scatter like a Poisson process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastConfig:
    """Options of the forecast.

    The defaults were tuned on the YOLOv5s profile at 20 requests per second over a 4G trace,
    with constant, Poisson and bursty arrivals.
    """

    rate_windows: int = 10
    """Past intervals over which the arrival rate is averaged."""
    recent_windows: int = 2
    """Past intervals whose mean rate the forecast never falls below, so that it follows a
    step up at once."""
    sigmas: float = 1.0
    """Standard deviations of the arrivals to be ready for, in their rate and during one
    batch."""
    budget_quantile: float = 0.05
    """Quantile of the last interval's budgets on arrival that is the lowest expected."""
    delay_windows: int = 5
    """Past intervals whose largest mean communication delay may come again."""

    def __post_init__(self) -> None:
        for name in ("rate_windows", "recent_windows", "delay_windows"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if not 0 <= self.sigmas < math.inf:
            raise ConfigError(f"sigmas must be a number of at least 0, not {self.sigmas!r}")
        if not 0 <= self.budget_quantile <= 0.5:
            raise ConfigError(
                f"budget_quantile must be between 0 and 0.5, not {self.budget_quantile!r}"
            )


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected to arrive until the next decision."""

    rate_rps: float
    """Arrivals per second."""
    noise: float
    """Fluctuation to be ready for: up to ``n + noise * sqrt(n)`` requests arrive where
    ``n`` are expected."""
    budget_low_s: float
    """Lowest budget on arrival."""
    budget_high_s: float
    """Highest budget on arrival."""


def forecast_arrivals(config: ForecastConfig, spec: SystemSpec, view: SystemView) -> Forecast:
    """Forecast an interval's arrivals from the past ones.

    The rate is the mean of the last intervals plus ``sigmas`` standard errors, or the most
    recent rate if that is higher. Plain floats, for the arrays are far too short for NumPy
    to pay.

    Args:
        config: Options.
        spec: The system.
        view: The state after at least one interval.
    """
    counts: list[float] = view.arrivals[-config.rate_windows :].tolist()
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
    config: ForecastConfig, spec: SystemSpec, view: SystemView
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
