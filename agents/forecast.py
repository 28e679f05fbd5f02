"""What Sponge's per-request program expects to arrive until the next decision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sponge_env.errors import ConfigError
from sponge_env.interfaces import FloatArray, SystemSpec, SystemView

_WINDOWS_FOR_DISPERSION = 5
"""With fewer windows, arrivals are taken to scatter like a Poisson process."""


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

    The rate is the mean of the last windows plus ``sigmas`` standard errors, or the most
    recent rate if that is higher. How much arrivals scatter is measured by their index of
    dispersion: variance over mean of the counts, 0 at equal gaps, 1 for a Poisson process.

    Args:
        config: Options.
        spec: The system.
        view: The state after at least one interval.
    """
    counts = view.arrivals[-config.rate_windows :]
    mean = float(counts.mean())
    noise = config.sigmas * math.sqrt(_dispersion(counts))
    recent = float(view.arrivals[-config.recent_windows :].mean())
    expected = max(mean + noise * math.sqrt(mean / counts.size), recent)
    low_s, high_s = _budget_range_s(config, spec, view)
    return Forecast(expected / spec.interval_s, noise, low_s, high_s)


def _dispersion(counts: FloatArray) -> float:
    mean = float(counts.mean())
    if mean <= 0 or counts.size < _WINDOWS_FOR_DISPERSION:
        return 1.0
    return float(counts.var(ddof=1)) / mean


def _budget_range_s(
    config: ForecastConfig, spec: SystemSpec, view: SystemView
) -> tuple[float, float]:
    """Return the lowest and the highest budget on arrival to expect."""
    # fmax skips the NaN of the intervals before the first arrival.
    worst_delay_s = np.fmax.reduce(view.mean_delays_s[-config.delay_windows :], initial=0.0)
    remembered_s = spec.slo_s - float(worst_delay_s)
    if not view.budgets_s.size:
        return remembered_s, remembered_s
    q = config.budget_quantile
    low_s, high_s = np.quantile(view.budgets_s, (q, 1 - q))
    return min(float(low_s), remembered_s), float(high_s)
