"""Statistics against values known by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sponge_env.statistics import (
    Interval,
    interquartile_mean,
    mean,
    paired_difference,
    probability_of_improvement,
)

RNG = np.random.default_rng(1)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = RNG.exponential(size=12)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert mean(values) == Interval(values.mean(), expected.low, expected.high)


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    hits = sum(not mean(RNG.normal(3.0, 1.0, size=15)).excludes(3.0) for _ in range(200))
    assert 0.88 <= hits / 200 <= 0.98


def test_the_interquartile_mean_leaves_a_quarter_out_on_either_side() -> None:
    values = np.arange(16.0).reshape(4, 4)
    values[3, 3] = 1e9
    assert interquartile_mean(values).value == np.arange(4, 12).mean()


def test_seeds_are_drawn_whole_in_all_cells() -> None:
    # The seeds' luck cancels between the two cells; drawn apart, it would not.
    luck = RNG.normal(size=10)
    result = mean(np.stack([luck, -luck]))
    assert result.value == pytest.approx(0)
    assert result.high - result.low == pytest.approx(0, abs=1e-12)


def test_a_pair_shows_a_difference_that_the_scatter_of_seeds_hides() -> None:
    ours = RNG.normal(0.0, 10.0, size=10)
    theirs = ours + RNG.normal(1.0, 0.1, size=10)
    assert paired_difference(ours, theirs).excludes(0)
    assert not mean(ours).excludes(float(theirs.mean()))


def test_noise_alone_is_not_significant() -> None:
    noise = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 0.1, -0.1])
    assert not paired_difference(noise, np.zeros(8)).excludes(0)


def test_improvement_counts_wins_and_half_the_ties() -> None:
    ours = np.array([[1.0, 1.0], [2.0, 5.0]])
    theirs = np.array([[2.0, 1.0], [1.0, 9.0]])
    assert probability_of_improvement(ours, theirs).value == (1 + 0.5 + 0 + 1) / 4


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_improvement_of_one_is_the_others_setback(seeds: int, cells: int, random: object) -> None:
    draw = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    ours, theirs = draw.integers(0, 3, size=(2, cells, seeds)).astype(float)
    there = probability_of_improvement(ours, theirs)
    back = probability_of_improvement(theirs, ours)
    assert there.value + back.value == pytest.approx(1)
    assert there.low - 1e-12 <= there.value <= there.high + 1e-12


def test_values_without_scatter_have_an_interval_without_width() -> None:
    assert mean(np.full((3, 10), 2.5)) == Interval(2.5, 2.5, 2.5)
    assert interquartile_mean(np.full((3, 10), 2.5)) == Interval(2.5, 2.5, 2.5)


def test_one_seed_has_no_interval() -> None:
    result = mean(np.array([4.0]))
    assert result.value == 4.0
    assert math.isnan(result.low)
    assert not result.excludes(0)


def test_what_cannot_be_paired_or_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="nothing"):
        mean(np.zeros(0))
