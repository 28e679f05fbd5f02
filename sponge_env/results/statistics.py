"""What can be said from a few seeds: intervals, means over a suite, who is better.

The randomness of an evaluation is its seeds. One seed draws the same arrivals and the same
network for every agent, and the same network in many cells, so seeds are resampled whole:
the same ones for all agents and all cells. Intervals are 95 % bootstrap intervals, bias
corrected and accelerated (Efron, 1987).

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
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray

Indices = NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 2000
"""More do not move the ends of an interval by what a table shows."""

SIGNIFICANCE = 0.05
"""A difference with a smaller p value counts as one."""
SIGN_FLIPS = 10_000
"""All sign flips are tried up to so many, 13 seeds; with more seeds, so many drawn ones."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    """NaN with fewer than two seeds, as is ``high``."""
    high: float


def mean(values: FloatArray) -> Estimate:
    """Return the mean of values (seeds,) or (cells, seeds); ValueError without any."""
    return _over_seeds(lambda drawn: drawn.mean(axis=(0, -1)), values)


def interquartile_mean(values: FloatArray) -> Estimate:
    """Return the mean of the middle half of all values (cells, seeds).

    Their unit has to mean the same in every cell.
    """
    from scipy import stats

    def middle(drawn: FloatArray) -> FloatArray:
        pooled = np.moveaxis(drawn, 0, -1)
        pooled = pooled.reshape(*pooled.shape[:-2], -1)
        return np.asarray(stats.trim_mean(pooled, 0.25, axis=-1), dtype=np.float64)

    return _over_seeds(middle, values)


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
    return mean((np.sign(theirs - ours) + 1.0) / 2.0)


def _require_pairs(ours: FloatArray, theirs: FloatArray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"pairs need equal shapes, not {ours.shape} and {theirs.shape}")


def _over_seeds(statistic: Callable[[FloatArray], FloatArray], values: FloatArray) -> Estimate:
    """Estimate a statistic, which takes (cells, ..., seeds) and returns (...)."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if not table.size:
        raise ValueError("nothing to average")
    seeds = table.shape[-1]
    estimate = float(statistic(table))
    if seeds < 2 or math.isnan(estimate):
        return Estimate(estimate, math.nan, math.nan)
    ends = _interval(lambda drawn, axis: statistic(table[:, drawn]), seeds, "BCa")
    if not all(map(math.isfinite, ends)):
        # Without any scatter there is nothing to correct the interval by.
        ends = _interval(lambda drawn, axis: statistic(table[:, drawn]), seeds, "percentile")
    return Estimate(estimate, *ends)


def _interval(
    of_drawn: Callable[[Indices, int], FloatArray], seeds: int, method: Literal["BCa", "percentile"]
) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(seeds),), of_drawn, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
            method=method, vectorized=True, rng=np.random.default_rng(0),  # always the same table
        )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
