from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from baselines.kubernetes import GROWTH, VPA, DecayingHistogram
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemView
from sponge_env.metrics import IntervalMetrics


def view_at(now_s: float, used: float, held: int) -> SystemView:
    last = IntervalMetrics(utilisation=used / held, cores=float(held))
    return busy_view(now_s=now_s, allocation=Allocation(held, 1), last=last)


def run(controller: VPA, used: list[float], held: int = 16) -> list[int]:
    """Return the cores after each interval, in which that many cores were used, or all."""
    controller.reset(make_spec(), seed=0)
    answers = []
    for second, wanted in enumerate(used, start=1):
        view = view_at(float(second), min(wanted, held), held)
        held = controller.decide(view).cores
        answers.append(held)
    return answers


@given(st.floats(0, 16))
def test_a_bucket_is_at_most_five_percent_wide(value: float) -> None:
    histogram = DecayingHistogram(half_life_s=60, largest=16)
    histogram.add(value, weight=1.0, now_s=0.0)
    end = histogram.percentile(0.9)
    assert value - 1e-12 <= end <= GROWTH * value + 0.01 + 1e-12


def test_percentile_counts_by_weight() -> None:
    histogram = DecayingHistogram(half_life_s=1e9, largest=16)
    histogram.add(2.0, weight=8.0, now_s=0.0)
    histogram.add(8.0, weight=2.0, now_s=0.0)
    assert histogram.percentile(0.75) == pytest.approx(2.0, rel=0.06)
    assert histogram.percentile(0.85) == pytest.approx(8.0, rel=0.06)


def test_a_sample_loses_half_its_weight_per_half_life() -> None:
    histogram = DecayingHistogram(half_life_s=10, largest=16)
    histogram.add(8.0, weight=1.0, now_s=0.0)
    histogram.add(2.0, weight=1.0, now_s=20.0)  # beside a quarter: 80 % of the weight
    assert histogram.percentile(0.79) == pytest.approx(2.0, rel=0.06)
    assert histogram.percentile(0.81) == pytest.approx(8.0, rel=0.06)


def test_a_steady_usage_gets_its_margin() -> None:
    assert set(run(VPA(margin=1.15), [4.0] * 20)) == {math.ceil(4.0 * 1.15)}


def test_grows_out_of_saturation_and_forgets_a_peak() -> None:
    cores = run(VPA(half_life_s=5.0), [12.0] * 30 + [2.0] * 60, held=1)
    assert cores[29] >= 12
    assert cores == sorted(cores[:30]) + sorted(cores[30:], reverse=True)
    assert cores[-1] == 3


def test_resizes_once_per_update_period() -> None:
    assert run(VPA(update_s=3.0), [4.0] * 3) == [16, 16, 5]


def test_first_decision_keeps_the_cores() -> None:
    controller = VPA(batch=2)
    controller.reset(make_spec(), seed=0)
    answer = controller.decide(make_view(allocation=Allocation(cores=7, batch=9)))
    assert answer == Allocation(cores=7, batch=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"percentile": 0.0}, "percentile must be"),
        ({"half_life_s": 0.0}, "half_life_s must be"),
        ({"margin": math.inf}, "margin must be"),
        ({"update_s": -1.0}, "update_s must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VPA(**options)
