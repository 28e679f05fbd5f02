"""Forecasts of the arrival rate, and their errors.

Sponge's program expects the mean of the last intervals plus their scatter; a fleet looks several
cold starts ahead, when the rate may have returned to its mean. The look-ahead program also follows
the network (:mod:`.lookahead.flow`).
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.compiled import compiled
from sponge_env.interfaces import SystemSpec, SystemView
from sponge_env.latency import quantile

ROUNDING = 1e-9  # Requests, or ticks, that a count may be off by rounding
_RATE_WINDOWS = 10
"""Past intervals over which the arrival rate is averaged. This and the next were tuned on YOLOv5s
at 20 requests per second over a 4G trace, with constant, Poisson and bursty arrivals."""
_RECENT_WINDOWS = 2  # Past intervals whose mean rate is the least to expect, for a step up
SIGMAS, STAGE_SIGMAS = 1.0, 3.0
"""Standard deviations to be ready for, in the arrivals' rate and during one batch: with one stage,
and with several, where a delay in one is missing time in the next."""
_BUDGET_QUANTILE = 0.05  # Quantile of the last interval's budgets that is the lowest expected
_DELAY_WINDOWS = 5  # Past intervals whose largest mean communication delay is expected again
_INTERVALS_FOR_DISPERSION = 5  # With fewer intervals, arrivals count as a Poisson process
SMOOTHED = 5  # Intervals over which a fleet's rates are averaged: queues absorb shorter swings
_LASTING_PRIOR = 30  # Intervals of experience that the assumption of a lasting rate counts for
_WEIGHTS = [np.full(width, 1 / max(width, 1)) for width in range(SMOOTHED + 1)]
SAMPLES = 64  # Rates that stand for the distribution of the coming ones
_ERROR_PRIOR = 10  # Intervals without a forecast error that the first ones count against
_ERRORS_MAX = 300  # Intervals that count at most
_MOST_VARIANCE = 2.0  # Largest variance of the errors that is believed
REMEMBERED = 3600  # Past intervals whose rates are remembered
_PEAK_S, _PEAK_AGO_S = 5.0, 600.0  # Seconds of a peak; how long it may come again
_FORGOTTEN, _AGAIN = 1.5, 1.25
"""A peak more than so many times the highest expected one, which came before, was forgotten too
soon: from then on peaks are expected for so many times as long as it took to come again."""


class Forecast(NamedTuple):
    """What is expected to arrive until the next decision."""

    rate_rps: float
    noise: float  # Up to ``n + noise * sqrt(n)`` requests arrive where ``n`` are expected
    budget_low_s: float  # Lowest and highest budget on arrival
    budget_high_s: float


def forecast_arrivals(spec: SystemSpec, view: SystemView, sigmas: float = SIGMAS) -> Forecast:
    """Forecast an interval's arrivals from the past ones, of which there is one at least."""
    # The rate is the mean of the last intervals plus ``sigmas`` standard errors, or the most recent
    # rate if that is higher. Plain floats, for the arrays are far too short for NumPy to pay.
    counts: list[float] = view.first.arrivals[-_RATE_WINDOWS:].tolist()
    mean = sum(counts) / len(counts)
    noise, newest = sigmas * math.sqrt(_dispersion(counts, mean)), counts[-_RECENT_WINDOWS:]
    expected = max(mean + noise * math.sqrt(mean / len(counts)), sum(newest) / len(newest))
    low_s, high_s = _budget_range_s(spec, view)
    return Forecast(expected / spec.interval_s, noise, low_s, high_s)


def _dispersion(counts: list[float], mean: float) -> float:
    """Return how much arrivals scatter: variance over mean, 0 at equal gaps, 1 for Poisson."""
    # The smaller of two estimates of the variance: that around the mean takes a slow swing for
    # scatter; that of successive differences counts twice what the network held back.
    if mean <= 0 or len(counts) < _INTERVALS_FOR_DISPERSION:
        return 1.0
    around_mean, successive, before = 0.0, 0.0, counts[0]
    for count in counts:
        around_mean += (count - mean) * (count - mean)
        successive += (count - before) * (count - before)
        before = count
    return min(around_mean, successive / 2) / (len(counts) - 1) / mean


def _budget_range_s(spec: SystemSpec, view: SystemView) -> tuple[float, float]:
    """Return the lowest and the highest budget on arrival to expect."""
    delays_s: list[float] = view.mean_delays_s[-_DELAY_WINDOWS:].tolist()
    # The intervals before the first arrival have none.
    worst_delay_s = max([delay_s for delay_s in delays_s if delay_s == delay_s], default=0.0)
    remembered_s = spec.slo_s - worst_delay_s
    if not view.budgets_s.size:
        return remembered_s, remembered_s
    budgets_s: list[float] = sorted(view.budgets_s.tolist())
    low_s = quantile(budgets_s, _BUDGET_QUANTILE)
    return min(low_s, remembered_s), quantile(budgets_s, 1 - _BUDGET_QUANTILE)


def smoothed(rates: FloatArray) -> FloatArray:
    """Return means over a few intervals each; of fewer than that, the one over all."""
    width = min(SMOOTHED, len(rates))
    return np.correlate(rates, _WEIGHTS[width])


@compiled
def pairwise_sum(values: FloatArray) -> float:
    """Add numbers in the order in which NumPy does up to 128."""
    total, eights = 0.0, values.size // 8 * 8
    if eights:
        a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(0, eights, 8):
            a, b, c, d = a + values[k], b + values[k + 1], c + values[k + 2], d + values[k + 3]
            e, f, g, h = e + values[k + 4], f + values[k + 5], g + values[k + 6], h + values[k + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for k in range(eights, values.size):
        total += values[k]
    return total


def rate_samples(smooth: FloatArray, lag: int) -> FloatArray:
    """Return equally likely rates some intervals ahead, from all the past ones."""
    # Rates revert to their mean as fast as they have so far: with ``phi`` the autocorrelation at
    # that lag, the forecast is ``mean + phi * (last - mean)`` plus one of its past errors. With few
    # intervals the rate is taken to last. ``smooth`` (intervals,) has at least one, newest last.
    mean = np.add.reduce(smooth) / smooth.size  # np.mean takes thrice as long
    swing = smooth - mean
    pairs = len(swing) - lag
    if pairs < 1:
        return smooth[-1:]
    before, after = swing[:-lag], swing[lag:]
    power = float(before.dot(before))
    seen = min(max(float(before.dot(after)) / power, 0.0), 1.0) if power > 0 else 0.0
    # Rates are taken to last, or to change as before, until enough experience says otherwise. So is
    # a rate above all that was seen: nothing says how such a rate returns.
    phi = (pairs * seen + _LASTING_PRIOR) / (pairs + _LASTING_PRIOR)
    if smooth[-1] > smooth[:-SMOOTHED].max(initial=0.0) + ROUNDING:
        phi = 1.0
    every = -max(1, pairs // SAMPLES)
    errors = after[::every] - phi * before[::every]
    samples: FloatArray = np.maximum(mean + phi * swing[-1] + errors, 0.0)
    return samples


class PastRates:
    """Remembers rates, and how long ago peaks were that are expected to come again."""

    def __init__(self, spec: SystemSpec) -> None:
        """Start with none, and the usual time."""
        ready_s = spec.resize_delay_s + spec.first.cold_start_s
        self.peak = math.ceil(_PEAK_S / spec.interval_s)
        self.cold_start = max(1, round(ready_s / spec.interval_s))
        # A cold start before the one for which a rise is kept, or chance would go beyond all known.
        self.peak_ago = max(math.ceil(_PEAK_AGO_S / spec.interval_s), 2 * self.cold_start)
        self.rates, self._means = np.empty(0), np.empty(0)

    def add(self, rates: FloatArray) -> None:
        """Take in the last interval's rate; at first, all known ones."""
        self.rates = np.concatenate([self.rates[1 - REMEMBERED :], rates])
        mean = np.add.reduce(self.rates[-self.peak :]) / min(self.peak, self.rates.size)
        # What the rise itself has brought so far is left out.
        expected = self._means[-self.peak_ago : -self.peak - self.cold_start]
        if expected.size and mean > _FORGOTTEN * np.maximum.reduce(expected):
            before = np.flatnonzero(self._means[: -self.peak_ago] >= mean)
            for ago in (self._means.size - before)[-1:]:
                self.peak_ago = min(math.ceil(_AGAIN * ago), REMEMBERED)
        self._means = np.concatenate([self._means[1 - REMEMBERED :], [mean]])


class ForecastError:
    """Compares forecasts with what arrived in the interval that they were for.

    A decision is in force for an interval, a delay later. The arrivals' own scatter does not count.
    """

    def __init__(self, interval_s: float, delay_s: float) -> None:
        self._interval_s, whole = interval_s, math.floor(delay_s / interval_s)
        self._part = delay_s / interval_s - whole
        self._delayed = delay_s > 0
        self._expected: deque[float] = deque(maxlen=whole + 2)
        self._count, self._seen, self._mean = 0.0, 0, 0.0
        self._rates: deque[float] = deque(maxlen=_ERRORS_MAX)

    def add(self, count: float, rate_rps: float) -> None:
        """Take in the last interval's arrivals, and the rate that is forecast now."""
        if not self._delayed:
            return
        if len(self._expected) == self._expected.maxlen:
            expected = self._expected[0]
            came = (1 - self._part) * self._count + self._part * count
            error = math.log((came + 0.5) / (expected + 0.5))
            self._seen = min(self._seen + 1, _ERRORS_MAX)
            step = error * error - 1 / (expected + 0.5) - self._mean
            self._mean += step / (self._seen + _ERROR_PRIOR)
        self._count = count
        self._rates.append(rate_rps)
        self._expected.append(rate_rps * self._interval_s)

    @property
    def variance(self) -> float:
        """Variance of the logarithm of the rate; 0 where a decision is in force at once."""
        return min(max(0.0, self._mean), _MOST_VARIANCE)  # which grows without end in silence

    @property
    def surge(self) -> float:
        """How many times as high as now the rate has been; 1 where a decision is in force at once.

        Bursts and crowds come back, and a variance says little of what is rare and large.
        """
        return max(self._rates) / self._rates[-1] if self._rates else 1.0
