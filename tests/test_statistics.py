"""Statistics against values known by other means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sponge_env.arrays import FloatArray
from sponge_env.results.statistics import SIGNIFICANCE, Estimate, holm, mean, paired_p

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


def test_seeds_are_drawn_whole_in_all_cells() -> None:
    # The seeds' luck cancels between the two cells; drawn apart, it would not.
    luck = RNG.normal(size=10)
    result = mean(np.stack([luck, -luck]))
    assert result.value == pytest.approx(0)
    assert result.high - result.low == pytest.approx(0, abs=1e-12)


def by_hand(differences: Sequence[float]) -> float:
    """Return the share of sign flips whose sum is as far from 0, by trying all of them."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= abs(sum(differences)) - 1e-9 for total in sums) / len(sums)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=7))
def test_the_test_tries_all_signs(differences: list[int]) -> None:
    ours = np.array(differences, dtype=float)
    expected = pytest.approx(by_hand(differences))
    assert paired_p(ours, np.zeros(ours.size)) == expected
    assert paired_p(np.zeros(ours.size), ours) == expected


def test_a_pair_shows_a_difference_that_the_scatter_of_seeds_hides() -> None:
    ours = RNG.normal(0.0, 10.0, size=10)
    theirs = ours + RNG.normal(1.0, 0.1, size=10)
    assert paired_p(ours, theirs) == 2 / 2**10
    assert mean(ours).low < theirs.mean() < mean(ours).high


def test_where_most_differences_are_zero_it_rejects_no_more_often_than_it_says() -> None:
    draw = np.random.default_rng(2)
    draws = draw.integers(-1, 2, size=(400, 10)) * (draw.random((400, 10)) < 0.5)
    rejected = sum(paired_p(d.astype(float), np.zeros(10)) < SIGNIFICANCE for d in draws)
    assert rejected / 400 <= 0.05


def test_the_cells_of_a_seed_change_sign_together() -> None:
    once = RNG.normal(0.5, 1.0, size=8)
    often = np.stack([once] * 6)
    assert paired_p(often, np.zeros((6, 8))) == paired_p(once, np.zeros(8))


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    corrected = holm([0.01, 0.04, math.nan, 0.03, 0.9])
    assert corrected[:2] == pytest.approx([0.04, 0.09])
    assert math.isnan(corrected[2])
    assert corrected[3:] == pytest.approx([0.09, 0.9])
    assert holm([]) == []


def test_values_without_scatter_have_an_interval_without_width() -> None:
    assert mean(np.full((3, 10), 2.5)) == Estimate(2.5, 2.5, 2.5)


def test_too_few_seeds_have_neither_interval_nor_significance() -> None:
    for values in (np.array([4.0]), np.arange(5.0)):
        found = mean(values)
        assert found.value == values.mean()
        assert np.isnan([found.low, found.high]).all()
    assert mean(np.arange(6.0)).low < 2.5
    assert paired_p(np.ones(6), np.zeros(6)) == 2 / 2**6 < SIGNIFICANCE
    assert paired_p(np.ones(5), np.zeros(5)) == 2 / 2**5 > SIGNIFICANCE
    assert paired_p(np.ones(1), np.zeros(1)) == 1.0
    assert math.isnan(paired_p(np.array([1.0, math.nan]), np.zeros(2)))
