"""What a few seeds can show: means with intervals, and which agents differ.

The randomness of an evaluation is its seeds. One seed draws the same arrivals and the same
network for every agent, and the same network in many cells, so seeds are resampled whole:
the same ones for all agents and all cells. Intervals are 95 % bootstrap-t intervals (Efron and
Tibshirani, 1993, chapter 12), or Student's where these are wider. With ten seeds they hold the
mean of a normal or an exponential distribution in 94 to 97 of 100 cases, and in 90 where most
seeds have no violation at all; for bias corrected and accelerated ones these are 88 to 90 and 83.

Whether two agents differ is not read off such an interval: where most seeds have no violation,
it excludes 0 far more often than in one case of twenty. It is a paired permutation test, exact
for ten seeds: without a difference, each seed's could as well have had the other sign (Pitman,
1937). The tests of one column of a table are corrected with Holm's method (1979).

SciPy's statistics take a second to import, which a single evaluation should not wait for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import FloatArray

CONFIDENCE = 0.95
RESAMPLES = 2000
"""More do not move the ends of an interval by what a table shows."""

SIGNIFICANCE = 0.05
"""A difference with a smaller p value counts as one."""
MIN_SEEDS = 6
"""With fewer, no difference has so small a p value, and there are no intervals."""
SIGN_FLIPS = 10_000
"""All sign flips are tried up to so many, 13 seeds; with more seeds, so many drawn ones."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    """NaN with fewer than :data:`MIN_SEEDS`, as is ``high``."""
    high: float


def mean(values: FloatArray) -> Estimate:
    """Return the mean of values (seeds,) or (cells, seeds).

    The interval does not reach below 0 where no value does.
    """
    by_seed = _by_seed(values)
    seeds = by_seed.size
    middle = float(by_seed.mean())
    if seeds < MIN_SEEDS or math.isnan(middle):
        return Estimate(middle, math.nan, math.nan)
    from scipy import stats

    drawn = by_seed[np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))]
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
    error = float(stats.sem(by_seed))
    above, below = error * max(drawn_t[0], student_t[0]), error * min(drawn_t[1], student_t[1])
    lowest = 0.0 if np.min(values) >= 0 else -math.inf
    return Estimate(middle, max(lowest, middle - float(above)), middle - float(below))


def _by_seed(values: FloatArray) -> FloatArray:
    """Return the mean over cells of (seeds,) or (cells, seeds) values, shape (seeds,)."""
    by_seed: FloatArray = np.atleast_2d(values).mean(axis=0)
    return by_seed


def paired_p(ours: FloatArray, theirs: FloatArray) -> float:
    """Return the two-sided p value of "the mean of ``ours - theirs`` is 0".

    Both are (seeds,) or (cells, seeds), of the same seeds and cells; a seed's differences in all
    cells change sign together. The p value is at least ``2 / 2**seeds``, and NaN if a value is.
    """
    by_seed = _by_seed(ours - theirs)
    if np.isnan(by_seed).any():
        return math.nan
    if by_seed.size < 2:
        return 1.0
    from scipy import stats

    result = stats.permutation_test(
        (by_seed,), np.mean, permutation_type="samples", vectorized=True, n_resamples=SIGN_FLIPS,
        rng=np.random.default_rng(0),  # the same table from the same results
    )  # fmt: skip
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of a family of tests, corrected for how many they are.

    Holm's step-down method: with these, the chance that any difference is called one where
    there is none is as small as for a single test. NaN is no test and does not count.
    """
    values = np.array(p_values, dtype=np.float64)
    order = np.argsort(values)  # NaN last
    left = np.count_nonzero(~np.isnan(values)) - np.arange(values.size)
    values[order] = np.maximum.accumulate(np.minimum(1.0, values[order] * left))
    return [float(p) for p in values]
