"""What can be said from a few seeds: intervals, means over a suite, who is better.

The randomness of an evaluation is its seeds. One seed draws the same arrivals and the same
network for every agent, and the same network in many cells, so seeds are resampled whole:
the same ones for all agents and all cells. Intervals are 95 % bootstrap intervals, bias
corrected and accelerated (Efron, 1987).

Interquartile mean and probability of improvement are those of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021), with two
changes that follow from shared seeds: their library resamples the runs of each task on their
own and compares every run of one agent with every run of the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 2000
"""More do not move the ends of an interval by what a table shows."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    """NaN with fewer than two seeds, as is ``high``."""
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval tells the estimate from a value."""
        return self.low > value or self.high < value


def mean(values: FloatArray) -> Interval:
    """Return the mean.

    Args:
        values: (seeds,) or (cells, seeds).

    Raises:
        ValueError: There is none.
    """
    return _over_seeds(lambda drawn: drawn.mean(axis=(0, -1)), values)


def interquartile_mean(values: FloatArray) -> Interval:
    """Return the mean of the middle half of all values.

    Args:
        values: (cells, seeds), in a unit that means the same in every cell.

    Raises:
        ValueError: There is none.
    """

    def middle(drawn: FloatArray) -> FloatArray:
        pooled = np.moveaxis(drawn, 0, -1)
        pooled = pooled.reshape(*pooled.shape[:-2], -1)
        return np.asarray(stats.trim_mean(pooled, 0.25, axis=-1), dtype=np.float64)

    return _over_seeds(middle, values)


def paired_difference(ours: FloatArray, theirs: FloatArray) -> Interval:
    """Return the mean of ``ours - theirs``; not significant if the interval holds 0.

    Args:
        ours: (seeds,) or (cells, seeds).
        theirs: The same seeds and cells of the other agent.

    Raises:
        ValueError: There is none, or the shapes differ.
    """
    _require_pairs(ours, theirs)
    return mean(ours - theirs)


def probability_of_improvement(ours: FloatArray, theirs: FloatArray) -> Interval:
    """Return how likely ours is better on a random cell and seed; less is better.

    Both run the same seed. A tie counts as one half; 0.5 in the interval means that neither
    is shown to be better.

    Args:
        ours: (seeds,) or (cells, seeds).
        theirs: The same seeds and cells of the other agent.

    Raises:
        ValueError: There is none, or the shapes differ.
    """
    _require_pairs(ours, theirs)
    return mean((np.sign(theirs - ours) + 1.0) / 2.0)


def _require_pairs(ours: FloatArray, theirs: FloatArray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"pairs need equal shapes, not {ours.shape} and {theirs.shape}")


def _over_seeds(statistic: Callable[[FloatArray], FloatArray], values: FloatArray) -> Interval:
    """Estimate a statistic and its interval over resampled seeds.

    Args:
        statistic: Takes (cells, ..., seeds) and returns (...).
        values: (seeds,) or (cells, seeds).
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if not table.size:
        raise ValueError("nothing to average")
    seeds = table.shape[-1]
    estimate = float(statistic(table))
    if seeds < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan)

    def of_drawn(drawn: Indices, axis: int) -> FloatArray:
        return statistic(table[:, drawn])

    low, high = _ends(of_drawn, seeds, "BCa")
    if not (math.isfinite(low) and math.isfinite(high)):
        # Without any scatter there is nothing to correct the interval by.
        low, high = _ends(of_drawn, seeds, "percentile")
    return Interval(estimate, low, high)


def _ends(
    of_drawn: Callable[[Indices, int], FloatArray], seeds: int, method: Literal["BCa", "percentile"]
) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(seeds),),
            of_drawn,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method=method,
            vectorized=True,
            rng=np.random.default_rng(0),  # the same table from the same results
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
