from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from baselines.throttle import Captain, Throttle, ThrottleConfig, signals
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.metrics import IntervalMetrics

TARGET = 0.05


def captain(limit: float, usage_windows: int = 2) -> Captain:
    config = ThrottleConfig(target=TARGET, usage_windows=usage_windows)
    return Captain(config, limit, limit_max=16)


def test_growth_is_one_plus_the_excess() -> None:
    moved = captain(limit=4.0)
    moved.move(throttled=0.65, usage=4.0)
    assert moved.limit == pytest.approx(4.0 * 1.5)
    assert moved.margin == pytest.approx(3.0 + 0.65 - TARGET)


def test_shrinks_to_recent_usage_and_margin() -> None:
    moved = captain(limit=16.0)
    moved.move(throttled=0.0, usage=10.0)
    assert moved.limit == 16.0  # the usage of both intervals is needed
    moved.move(throttled=0.0, usage=11.0)
    assert moved.limit == pytest.approx(11.0 + (3.0 - 2 * TARGET) * 0.5**0.5)


def test_shrinks_to_half_at_most_and_not_for_a_little() -> None:
    idle = captain(limit=16.0)
    for _ in range(2):
        idle.move(throttled=0.0, usage=1.0)
    assert idle.limit == 8.0
    near = captain(limit=10.0)
    for _ in range(2):
        near.move(throttled=0.0, usage=9.5)
    assert near.limit == 10.0


def test_throttling_after_a_shrink_takes_it_back_twice() -> None:
    moved = captain(limit=8.0)
    for _ in range(2):
        moved.move(throttled=0.0, usage=6.0)
    assert moved.limit == 6.0
    moved.move(throttled=0.5, usage=6.0)
    assert moved.limit == pytest.approx(8.0 + 2.0)
    moved.move(throttled=0.25, usage=6.0)  # now a growth like any other
    assert moved.limit == pytest.approx(10.0 * 1.1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 16)), max_size=40))
def test_the_limit_stays_within_bounds(intervals: list[tuple[float, float]]) -> None:
    moved = captain(limit=4.0)
    for throttled, usage in intervals:
        moved.move(throttled, usage)
        assert 1 <= moved.limit <= 16
        assert moved.margin >= 0


def test_under_a_quota_stopped_time_tells_throttled_periods() -> None:
    # At 4/16 core a replica that never rests is stopped for three quarters of each period.
    last = IntervalMetrics(requested_cores=4, cores=4.0, utilisation=1.0, throttled_share=0.75)
    assert signals(last, core_unit=1 / 16) == (1.0, 4.0)
    last = IntervalMetrics(requested_cores=8, cores=8.0, utilisation=0.5, throttled_share=0.1)
    assert signals(last, core_unit=1 / 16) == pytest.approx((0.2, 4.0))


@pytest.mark.parametrize(("cores", "core_unit"), [(4, 1.0), (16, 1 / 16)])
def test_without_a_quota_load_stands_in(cores: int, core_unit: float) -> None:
    last = IntervalMetrics(
        requested_cores=cores, cores=float(cores), utilisation=0.8, batch=4, batch_mean=2.0
    )
    assert signals(last, core_unit) == pytest.approx((0.4**2, 0.4 * cores))


def test_a_batch_longer_than_the_interval_counts_as_full() -> None:
    last = IntervalMetrics(requested_cores=2, cores=2.0, utilisation=1.0, batch=4)
    assert signals(last, core_unit=1.0) == (1.0, 2.0)


def test_cores_are_the_limit_rounded_up() -> None:
    controller = Throttle(batch=1)
    controller.reset(make_spec(initial=Allocation(cores=4, batch=1)), seed=0)
    assert controller.decide(make_view()).cores == 4
    last = IntervalMetrics(requested_cores=4, cores=4.0, utilisation=1.0, batch=1, batch_mean=1.0)
    assert controller.decide(busy_view(last=last)) == Allocation(cores=8, batch=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"target": 0.0}, "target must be"), ({"usage_windows": 1}, "usage_windows must be")],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Throttle(**options)
