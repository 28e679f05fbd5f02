"""Means over a few seeds with intervals.

The randomness of an evaluation is its seeds. Intervals are 95 % bootstrap-t intervals (Efron and
Tibshirani, 1993, chapter 12), or Student's where these are wider. With ten seeds they hold the
mean of a normal or an exponential distribution in 94 to 97 of 100 cases, and in 90 where most
seeds have no violation at all; for bias corrected and accelerated ones these are 88 to 90 and 83.

SciPy's statistics take a second to import, which a single evaluation should not wait for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import FloatArray

CONFIDENCE = 0.95
RESAMPLES = 2000
"""More do not move the ends of an interval by what a table shows."""

MIN_SEEDS = 6
"""With fewer there are no intervals."""
MIN_EVENTS = 10
"""Nor for a rate of fewer violations in all seeds: they would hold the truth too rarely."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    """NaN without an interval, as is ``high``."""
    high: float


def mean(values: FloatArray, events: float = math.inf) -> Estimate:
    """Return the mean of (seeds,) values, with an interval if enough events are behind them.

    The interval does not reach below 0 where no value does.
    """
    seeds, middle = values.size, float(values.mean())
    if seeds < MIN_SEEDS or events < MIN_EVENTS or math.isnan(middle):
        return Estimate(middle, math.nan, math.nan)
    from scipy import stats

    drawn = values[np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))]
    middles, errors = drawn.mean(axis=-1), np.asarray(stats.sem(drawn, axis=-1))
    # A resample without scatter does not say how far off it is.
    scattered = errors > 1e-9 * np.abs(middles)
    if not scattered.any():
        return Estimate(middle, middle, middle)
    # Where one seed alone violates, all that are left have it, and more than once at that: then
    # Student's quantiles are the wider ones.
    tails = np.array([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2])
    drawn_t = np.quantile((middles[scattered] - middle) / errors[scattered], tails)
    student_t = stats.t.ppf(tails, seeds - 1)
    error = float(stats.sem(values))
    above, below = error * max(drawn_t[0], student_t[0]), error * min(drawn_t[1], student_t[1])
    lowest = 0.0 if np.min(values) >= 0 else -math.inf
    return Estimate(middle, max(lowest, middle - float(above)), middle - float(below))
