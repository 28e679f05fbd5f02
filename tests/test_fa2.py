from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import NOTHING, busy_view, make_spec, make_view

from baselines.fa2 import FA2, largest_fleet, smallest_fleet
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.latency import LatencyModel


def search_as_published(spec: SystemSpec, rate: float, delay_s: float) -> tuple[int, int] | None:
    """Return the first (replicas, batch) that fits, by the published nested loops.

    Published for an SLO of 1 s, of which it takes the requests.
    """
    rate *= spec.slo_s
    slo_ms, delay_ms = spec.slo_s * 1e3, delay_s * 1e3
    budget_ms = slo_ms - delay_ms
    for n in range(1, spec.first.replicas_max + 1):
        for b in range(1, spec.first.batch_max + 1):
            latency_ms = max(1, math.floor(float(spec.first.latency.predict_s(b, 1)) * 1e3))
            if latency_ms > budget_ms:
                continue
            if n * math.floor(budget_ms / latency_ms) * b < rate:
                continue
            if latency_ms + math.ceil(rate / (b * n)) * latency_ms + delay_ms < 0.9 * slo_ms:
                return n, b
    return None


def decide(view: SystemView, options: dict[str, Any] | None = None, **spec: Any) -> Allocation:
    controller = FA2(**(options or {}))
    controller.reset(make_spec(**spec), seed=0)
    return controller.decide(view)


@given(
    profile=st.sampled_from(["yolov5s", "resnet18"]),
    rate=st.floats(0, 400),
    delay_s=st.floats(0, 1.2),
    slo_s=st.floats(0.1, 2.0),
)
def test_equals_the_published_search(
    profile: str, rate: float, delay_s: float, slo_s: float
) -> None:
    spec = make_spec(profile, slo_s=slo_s)
    answer = smallest_fleet(spec, rate, delay_s, slo_fraction=0.9)
    expected = search_as_published(spec, rate, delay_s)
    assert (answer and (answer.replicas, answer.batch)) == expected


@given(
    rate=st.floats(1, 400),
    delay_ms=st.integers(0, 1200),
    slo_ms=st.integers(100, 2000),
    batch_ms=st.integers(1, 100),
)
def test_the_fleet_does_not_depend_on_the_unit_of_time(
    rate: float, delay_ms: int, slo_ms: int, batch_ms: int
) -> None:
    fleets = []
    for unit_s in (1e-3, 2e-3):  # floors to whole milliseconds, twice as many of them
        eta_s = (batch_ms + 0.25) * unit_s
        latency = LatencyModel(gamma_s=5 * unit_s, delta_s=0.0, epsilon_s=0.0, eta_s=eta_s)
        spec = make_spec(slo_s=slo_ms * unit_s, latency=latency)
        rate_rps = rate * 1e-3 / unit_s
        fleets.append(smallest_fleet(spec, rate_rps, delay_ms * unit_s, slo_fraction=0.9))
    assert fleets[0] == fleets[1]


def test_one_core_replicas_for_the_reference_load() -> None:
    answer = decide(busy_view(rate_rps=20, delay_s=0.1))
    # l(1, 1) = 136 ms: five replicas serve 20 requests in 4 rounds, 136 + 4 * 136 + 100 < 900.
    assert answer == Allocation(cores=1, batch=1, replicas=5)
    assert answer.feasible


def test_keeps_the_allocation_before_the_first_request() -> None:
    held = Allocation(cores=4, batch=2, replicas=3, feasible=False)
    for view in (make_view(allocation=held), busy_view(rate_rps=0, allocation=held)):
        answer = decide(view)
        assert answer == held
        assert answer.feasible


OVERLOAD = busy_view(rate_rps=500, allocation=Allocation(cores=1, batch=2, replicas=1))


def test_asks_for_the_largest_fleet_when_nothing_fits() -> None:
    answer = decide(OVERLOAD)
    assert (answer.cores, answer.replicas) == (1, 16)
    assert not answer.feasible


def test_keeps_the_allocation_when_nothing_fits_as_published() -> None:
    answer = decide(OVERLOAD, {"when_infeasible": "keep"})
    assert answer == OVERLOAD.allocation
    assert not answer.feasible


@pytest.mark.parametrize("profile", ["yolov5s", "resnet18"])
@pytest.mark.parametrize("slo_fraction", [0.2, 0.5, 1.0])
def test_the_largest_fleet_has_the_fastest_batch_that_two_in_a_row_fit(
    profile: str, slo_fraction: float
) -> None:
    spec = make_spec(profile)
    latency_s = [
        math.floor(float(spec.first.latency.predict_s(b, 1)) * 1e3) / 1e3 for b in range(1, 17)
    ]
    fit = [b for b in range(1, 17) if 2 * latency_s[b - 1] < slo_fraction * spec.slo_s]
    fastest = max(fit, key=lambda b: b / latency_s[b - 1], default=1)
    assert largest_fleet(spec, slo_fraction).batch == fastest


def test_rate_counts_per_second() -> None:
    view = busy_view(rate_rps=20)
    assert decide(view, interval_s=2.0).replicas < decide(view, interval_s=1.0).replicas


def test_an_interval_without_arrivals_wants_one_replica() -> None:
    view = busy_view(arrivals=np.array([20.0, 20.0, 0.0]), delays_s=NOTHING)
    assert decide(view).replicas == 1


def test_a_remembered_rate_keeps_replicas_through_a_lull() -> None:
    lull = busy_view(arrivals=np.array([30.0, 20.0, 1.0]))
    assert decide(lull).replicas == 1
    assert decide(lull, {"rate_windows": 2}) == decide(busy_view(rate_rps=20))
    assert decide(lull, {"rate_windows": 3}) == decide(busy_view(rate_rps=30))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slo_fraction": 1.5}, "slo_fraction must be"),
        ({"rate_windows": 0}, "rate_windows must be"),
        ({"when_infeasible": "kep"}, "did you mean 'keep'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FA2(**options)


def test_headroom_plans_with_longer_latencies() -> None:
    view = busy_view(rate_rps=20, delay_s=0.1)
    slow = make_spec().first.latency.scaled(1.3)
    assert decide(view, {"headroom": 0.3}) == decide(view, latency=slow) != decide(view)
    with pytest.raises(ConfigError, match="headroom must be a number of at least 0"):
        FA2(headroom=-0.1)
