"""The service of whole cores, of core and reference; that under a quota is in test_bucket.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from core_doors import CoreService
from hypothesis import given
from hypothesis import strategies as st
from reference.worker import ProfileService

MakeService = Callable[[np.ndarray, int], CoreService | ProfileService]
SERVICES: dict[str, MakeService] = {
    "core": lambda latency_s, cores: CoreService(cores, latency_s=latency_s),
    "reference": ProfileService,
}


@pytest.fixture(params=SERVICES, scope="module")
def make_service(request: pytest.FixtureRequest) -> MakeService:
    return SERVICES[request.param]


def test_loading_takes_its_time_on_any_cores(make_service: MakeService) -> None:
    service = make_service(np.array([[1.0, 0.5]]), 1)
    service.load(1.0, 10.0, 3)
    service.resize(2.0, 2)
    service.advance(11.0)
    assert service.finish_s == 11.0
    assert service.used_core_s == 0.0


@given(
    st.integers(1, 16),
    st.lists(st.tuples(st.floats(0.001, 0.2), st.integers(1, 16)), max_size=5),
)
def test_profile_service_does_the_same_work_at_any_speed(
    make_service: MakeService, start: int, resizes: list[tuple[float, int]]
) -> None:
    latency_s = np.array([[1.6 / c for c in range(1, 17)]])
    service = make_service(latency_s, start)
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
