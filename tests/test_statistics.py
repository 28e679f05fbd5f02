"""Statistics against values known by other means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sponge_env.arrays import FloatArray
from sponge_env.results.statistics import Estimate, mean

RNG = np.random.default_rng(1)


def draw_normal(draw: np.random.Generator) -> FloatArray:
    return draw.normal(3.0, 1.0, size=10)


def draw_mostly_none(draw: np.random.Generator) -> FloatArray:
    return np.where(draw.random(10) < 0.6, 0.0, draw.exponential(7.5, size=10))


@pytest.mark.parametrize(("values", "least"), [(draw_normal, 0.92), (draw_mostly_none, 0.87)])
def test_intervals_of_ten_seeds_hold_the_truth_as_often_as_it_is_said(
    values: Callable[[np.random.Generator], FloatArray], least: float
) -> None:
    draw = np.random.default_rng(3)
    found = [mean(values(draw)) for _ in range(400)]
    hits = sum(interval.low <= 3.0 <= interval.high for interval in found)
    assert least <= hits / 400 <= 0.97


def test_an_interval_is_that_of_the_bootstrap_t() -> None:
    values = RNG.exponential(size=8)
    drawn = values[np.random.default_rng(0).integers(8, size=(2000, 8))]
    t = [(d.mean() - values.mean()) / stats.sem(d) for d in drawn if np.ptp(d) > 0]
    above, below = np.quantile(t, [0.975, 0.025])
    students = stats.t.ppf(0.975, 7)
    assert below < -students
    low = values.mean() - stats.sem(values) * max(above, students)
    found = mean(values)
    high = values.mean() - stats.sem(values) * below
    assert (found.low, found.high) == pytest.approx((max(0.0, low), high))


def test_where_a_single_seed_violates_the_interval_reaches_beyond_the_mean() -> None:
    found = mean(np.array([0.0] * 9 + [1.0]))
    assert (found.low, found.high) == (0.0, pytest.approx(0.1 + stats.t.ppf(0.975, 9) * 0.1))


def test_values_without_scatter_have_an_interval_without_width() -> None:
    assert mean(np.full(10, 2.5)) == Estimate(2.5, 2.5, 2.5)


def test_there_is_no_interval_of_too_few_seeds_or_events() -> None:
    for found in (mean(np.array([4.0])), mean(np.arange(5.0)), mean(np.arange(9.0), 9)):
        assert found.value in (4.0, 2.0)
        assert np.isnan([found.low, found.high]).all()
    assert mean(np.arange(6.0)).low < 2.5
    assert mean(np.arange(9.0), 10) == mean(np.arange(9.0))
