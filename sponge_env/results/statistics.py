"""What can be said from a few seeds: intervals, means over a suite, who is better.

The randomness of an evaluation is its seeds. One seed draws the same arrivals and the same
network for every agent, and the same network in many cells, so seeds are resampled whole:
the same ones for all agents and all cells. Intervals are 95 % bootstrap-t intervals (Efron and
Tibshirani, 1993, chapter 12), or Student's where these are wider. With ten seeds they hold the
mean of a normal or an exponential distribution in 94 to 97 of 100 cases, and in 90 where most
seeds have no violation at all; for bias corrected and accelerated ones these are 88 to 90 and 83.

Whether two agents differ is not read off such an interval: where most seeds have no violation,
it excludes 0 far more often than in one case of twenty. It is a paired permutation test, exact
for ten seeds: without a difference, each seed's could as well have had the other sign (Pitman,
1937). Several tests in one table or sentence are corrected with Holm's method (1979).

Interquartile mean and probability of improvement are those of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021), but for pairs
of runs on shared seeds: their library resamples the runs of each task on their own and compares
every run of one agent with every run of the other.

SciPy's statistics take a second to import, which a single evaluation should not wait for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sponge_env.arrays import FloatArray

CONFIDENCE = 0.95
RESAMPLES = 2000
"""More do not move the ends of an interval by what a table shows."""

SIGNIFICANCE = 0.05
"""A difference with a smaller p value counts as one."""
FEWEST_SEEDS = 6
"""With fewer, no difference has so small a p value, and there are no intervals."""
SIGN_FLIPS = 10_000
"""All sign flips are tried up to so many, 13 seeds; with more seeds, so many drawn ones."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    """NaN with fewer than :data:`FEWEST_SEEDS`, as is ``high``."""
    high: float


def mean(values: FloatArray) -> Estimate:
    """Return the mean of values (seeds,) or (cells, seeds); ValueError without any."""
    return _over_seeds(values)


def interquartile_mean(values: FloatArray) -> Estimate:
    """Return the mean of the middle half of all values (cells, seeds).

    Their unit has to mean the same in every cell.
    """
    return _over_seeds(values, left_out=0.25)


def paired_p(ours: FloatArray, theirs: FloatArray) -> float:
    """Return the two-sided p value of "the mean of ``ours - theirs`` is 0".

    Both are (seeds,) or (cells, seeds), of the same seeds and cells. The p value is at least
    ``2 / 2**seeds``, and NaN if a value is. ValueError if there is none, or the shapes differ.
    """
    _require_pairs(ours, theirs)
    return _sign_flip_p(ours - theirs)


def improvement_p(ours: FloatArray, theirs: FloatArray) -> float:
    """Return the same of "both are as likely to be better on a random cell and seed"."""
    _require_pairs(ours, theirs)
    return _sign_flip_p(np.sign(theirs - ours))


def _sign_flip_p(differences: FloatArray) -> float:
    """Test for a mean of 0; a seed's differences in all cells change sign together."""
    by_seed = np.atleast_2d(np.asarray(differences, dtype=np.float64)).mean(axis=0)
    if not by_seed.size:
        raise ValueError("nothing to test")
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


def probability_of_improvement(ours: FloatArray, theirs: FloatArray) -> Estimate:
    """Return how likely ours is better on a random cell and seed; less is better.

    Both run the same seed. A tie counts as one half. Shapes are those of :func:`paired_p`.
    """
    _require_pairs(ours, theirs)
    found = mean((np.sign(theirs - ours) + 1.0) / 2.0)
    return replace(found, high=min(1.0, found.high)) if found.high > 1 else found


def _require_pairs(ours: FloatArray, theirs: FloatArray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"pairs need equal shapes, not {ours.shape} and {theirs.shape}")


def fewest_seeds(tests: int) -> int:
    """Return the seeds with which one of so many corrected tests can be significant at all."""
    return max(FEWEST_SEEDS, math.floor(math.log2(2 * max(1, tests) / SIGNIFICANCE)) + 1)


def _over_seeds(values: FloatArray, left_out: float = 0.0) -> Estimate:
    """Estimate the mean of (cells, seeds) values without a share of them at either end.

    The interval does not reach below 0 where no value does.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if not table.size:
        raise ValueError("nothing to average")
    seeds = table.shape[-1]
    middle, error = (float(number) for number in _trimmed_mean(table, left_out))
    if seeds < FEWEST_SEEDS or math.isnan(middle):
        return Estimate(middle, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))  # always the same
    middles, errors = _trimmed_mean(table[:, drawn], left_out)
    # A resample without scatter does not say how far off it is.
    scattered = errors > 1e-9 * np.abs(middles)
    if not scattered.any():
        return Estimate(middle, middle, middle)
    from scipy import stats

    # Where one seed alone violates, all that are left have it, and more than once at that: then
    # Student's quantiles are the wider ones.
    tails = np.array([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2])
    drawn_t = np.quantile((middles[scattered] - middle) / errors[scattered], tails)
    student_t = stats.t.ppf(tails, seeds - 1)
    above, below = error * max(drawn_t[0], student_t[0]), error * min(drawn_t[1], student_t[1])
    least = 0.0 if table.min() >= 0 else -math.inf
    return Estimate(middle, max(least, middle - float(above)), middle - float(below))


def _trimmed_mean(values: FloatArray, left_out: float) -> tuple[FloatArray, FloatArray]:
    """Return the trimmed mean of (cells, ..., seeds) and its standard error over seeds, (...).

    The error is that of the means of the winsorised values of each seed (Tukey and McLaughlin,
    1963).
    """
    pooled = np.moveaxis(values, 0, -1)
    pooled = np.sort(pooled.reshape(*pooled.shape[:-2], -1), axis=-1)
    cut = int(left_out * pooled.shape[-1])
    kept = pooled[..., cut : pooled.shape[-1] - cut]
    winsorised = np.clip(values, kept[..., :1], kept[..., -1:]).mean(axis=0) / (1 - 2 * left_out)
    seeds = values.shape[-1]
    return kept.mean(axis=-1), winsorised.std(axis=-1, ddof=min(1, seeds - 1)) / math.sqrt(seeds)
