"""The service of whole cores; that under a quota is in test_bucket.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sponge_env.workers.service import ProfileService


def test_loading_takes_its_time_on_any_cores() -> None:
    service = ProfileService(np.array([[1.0, 0.5]]), 1)
    service.load(1.0, 10.0, crowd=3)
    service.resize(2.0, 2)
    service.advance(11.0)
    assert service.finish_s == 11.0
    assert service.used_core_s == 0.0


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
