from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.profile import QuotaService
from sponge_env.workers.service import ProfileService, QuotaBucket

UNIT = 1 / 16
PERIOD_S = 0.02


def bucket(cores: int, work_s: float, dispatch_s: float = 0.0) -> QuotaBucket:
    quota = QuotaService(PERIOD_S, (work_s,), dispatch_s)
    return QuotaBucket(quota, np.array([work_s]), UNIT, cores)


def test_a_lone_short_batch_runs_at_full_speed() -> None:
    service = bucket(cores=8, work_s=0.005)
    service.start(1.0, 1, 1.0)
    assert service.finish_s == pytest.approx(1.005)


@pytest.mark.parametrize(("cores", "expected_s"), [(8, 0.036), (2, 0.136)])
def test_saturated_work_takes_work_over_share(cores: int, expected_s: float) -> None:
    """A batch of 18 ms CPU back to back, as measured on a real quota."""
    service = bucket(cores, work_s=0.018)
    now_s = 0.0
    for _ in range(50):
        service.start(now_s, 1, 1.0)
        now_s = service.finish_s
        service.advance(now_s)
    assert now_s / 50 == pytest.approx(expected_s, rel=0.07)


def test_raising_the_quota_speeds_up_the_running_batch() -> None:
    service = bucket(cores=1, work_s=0.1)
    service.start(0.0, 1, 1.0)
    assert service.finish_s > 1.5
    service.resize(0.5, 16)
    assert 0.55 < service.finish_s < 0.6


def test_unlimited_means_no_throttling() -> None:
    service = bucket(cores=16, work_s=0.1)
    service.start(0.0, 1, 1.0)
    service.advance(service.finish_s)
    assert service.finish_s == pytest.approx(0.1)
    assert service.throttled_s == 0.0
    assert service.used_core_s * UNIT == pytest.approx(0.1)


def test_tokens_of_an_unfinished_period_are_not_refilled() -> None:
    service = bucket(cores=8, work_s=0.008)
    service.start(0.0, 1, 1.0)
    service.advance(0.008)
    service.start(0.009, 1, 1.0)
    assert service.finish_s == pytest.approx(0.02 + 0.006)


@given(
    work_s=st.floats(0.001, 0.3),
    start=st.integers(1, 16),
    resizes=st.lists(st.tuples(st.floats(0.0, 0.2), st.integers(1, 16)), max_size=4),
    looks=st.lists(st.floats(0.0, 0.3), max_size=4),
)
def test_bucket_equals_stepping_through_its_periods(
    work_s: float, start: int, resizes: list[tuple[float, int]], looks: list[float]
) -> None:
    service = bucket(start, work_s)
    service.start(0.0, 1, 1.0)
    writes = sorted((float(t), c) for t, c in resizes)
    for time_s, cores in writes:
        for look_s in looks:
            service.advance(time_s * min(1.0, look_s))
        service.resize(time_s, cores)
    # Work that ends exactly with the tokens may round to either side of a period.
    earliest_s, latest_s = (_stepped(work_s * (1 + e), start, writes) for e in (-1e-9, 1e-9))
    if all(time_s < earliest_s for time_s, _ in writes):
        assert earliest_s - 1e-9 <= service.finish_s <= latest_s + 1e-9
    service.advance(10.0)
    assert service.used_core_s * UNIT == pytest.approx(work_s)


def _stepped(work_s: float, cores: int, writes: list[tuple[float, int]]) -> float:
    """End of the work, found by walking from one period or quota write to the next."""
    now_s, left_s = 0.0, work_s
    pending = list(writes)
    while True:
        quota_s = cores * UNIT * PERIOD_S
        period_end_s = now_s + PERIOD_S
        next_write_s = pending[0][0] if pending else float("inf")
        runs_until_s = min(now_s + quota_s, next_write_s)
        if now_s + left_s <= runs_until_s:
            return now_s + left_s
        left_s -= runs_until_s - now_s
        now_s = min(period_end_s, next_write_s)
        if pending and now_s == next_write_s:
            cores = pending.pop(0)[1]


@given(
    st.integers(1, 16),
    st.lists(st.tuples(st.floats(0.001, 0.2), st.integers(1, 16)), max_size=5),
)
def test_profile_service_does_the_same_work_at_any_speed(
    start: int, resizes: list[tuple[float, int]]
) -> None:
    latency_s = np.array([[1.6 / c for c in range(1, 17)]])
    service = ProfileService(latency_s, start)
    service.start(0.0, 1, 1.0)
    now_s, cores, left = 0.0, start, 1.0
    for gap_s, new_cores in resizes:
        left -= gap_s / latency_s[0, cores - 1]
        if left <= 0:
            break
        now_s += gap_s
        service.resize(now_s, new_cores)
        cores = new_cores
    else:
        assert service.finish_s == pytest.approx(now_s + left * latency_s[0, cores - 1])
        service.advance(service.finish_s)
        assert service.used_core_s == pytest.approx(1.6)
