"""How far the load strays from its forecast before a decision is in force."""

from __future__ import annotations

import math
from collections import deque

_PRIOR = 10
"""Intervals without any surprise that the first ones count against."""
_REMEMBERED = 300
"""Intervals that count at most."""


class ForecastError:
    """Watches forecasts and what arrived in the interval that they decided about.

    A decision is in force from one delay after the forecast on, for an interval. What its
    arrivals scatter by themselves does not count.
    """

    def __init__(self, interval_s: float, delay_s: float) -> None:
        self._interval_s, whole = interval_s, math.floor(delay_s / interval_s)
        self._part = delay_s / interval_s - whole
        self._delayed = delay_s > 0
        self._expected: deque[float] = deque(maxlen=whole + 2)
        self._count, self._seen, self._mean = 0.0, 0, 0.0
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, count: float, rate_rps: float) -> None:
        """Take in the last interval's arrivals, and the rate that is forecast now."""
        if not self._delayed:
            return
        if len(self._expected) == self._expected.maxlen:
            expected = self._expected[0]
            came = (1 - self._part) * self._count + self._part * count
            error = math.log((came + 0.5) / (expected + 0.5))
            self._seen = min(self._seen + 1, _REMEMBERED)
            step = error * error - 1 / (expected + 0.5) - self._mean
            self._mean += step / (self._seen + _PRIOR)
        self._count = count
        self._rates.append(rate_rps)
        self._expected.append(rate_rps * self._interval_s)

    @property
    def variance(self) -> float:
        """Variance of the logarithm of the rate; 0 where a decision is in force at once."""
        return max(0.0, self._mean)

    @property
    def surge(self) -> float:
        """How many times as high as now the rate has been; 1 where a decision is in force at once.

        Bursts and crowds come back, and a variance says little of what is rare and large.
        """
        return max(self._rates) / self._rates[-1] if self._rates else 1.0
