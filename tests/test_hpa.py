from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from baselines.kubernetes import HPA, HPAConfig, Scaler, desired_replicas, hpa_fast
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemView
from sponge_env.metrics import IntervalMetrics


def view_at(
    now_s: float, utilisation: float, replicas: int, ready: int | None = None, **changes: Any
) -> SystemView:
    """One-core replicas after an interval of one second."""
    ready = replicas if ready is None else ready
    last = IntervalMetrics(utilisation=utilisation * ready / replicas, core_seconds=float(replicas))
    return busy_view(
        now_s=now_s,
        allocation=Allocation(cores=1, batch=1, replicas=replicas),
        replicas_ready=ready,
        starting_s=(5.0,) * (replicas - ready),
        last=last,
        **changes,
    )


def started(controller: HPA, replicas: int = 4) -> HPA:
    controller.reset(make_spec(initial=Allocation(1, 1, replicas)), seed=0)
    return controller


@given(ratio=st.floats(0, 3), ready=st.integers(1, 16), starting=st.integers(0, 16), data=st.data())
def test_recommendation_never_goes_against_the_utilisation(
    ratio: float, ready: int, starting: int, data: st.DataObject
) -> None:
    current = ready + starting
    tolerance = data.draw(st.floats(0, 0.5))
    desired = desired_replicas(ratio, ready, starting, current, tolerance)
    if abs(1 - ratio) <= tolerance and not starting:
        assert desired == current
    elif ratio > 1:
        assert desired >= current
    else:
        assert desired <= max(current, math.ceil(ready * ratio))


@pytest.mark.parametrize(
    ("ratio", "ready", "starting", "desired"),
    [
        (1.5, 4, 0, 6),
        (1.09, 4, 0, 4),  # within the tolerance
        (0.91, 4, 0, 4),
        (0.5, 4, 0, 2),
        (0.0, 4, 0, 0),
        (2.0, 2, 1, 4),  # the starting one counts as unused: 3 * 2 * 2/3
        (1.2, 2, 2, 4),  # that turns the direction round: no change
        (0.5, 2, 2, 1),  # it has no say when scaling in
    ],
)
def test_recommendations_as_documented(
    ratio: float, ready: int, starting: int, desired: int
) -> None:
    assert desired_replicas(ratio, ready, starting, ready + starting, tolerance=0.1) == desired


def test_looks_once_per_period_at_the_mean_utilisation() -> None:
    controller = started(HPA(target=0.5))
    for second in range(1, 15):
        assert controller.decide(view_at(second, 1.0 if second < 8 else 0.5, 4)).replicas == 4
    # 7 s at 100 % and 8 s at 50 %: 73 % of a target of 50 %.
    assert controller.decide(view_at(15, 0.5, 4)).replicas == 6
    assert controller.decide(view_at(16, 1.0, 6)).replicas == 6


def test_scales_in_only_after_its_window() -> None:
    controller = started(hpa_fast(target=0.5))
    replicas = [controller.decide(view_at(second, 0.1, 4)).replicas for second in range(1, 40)]
    assert replicas[:20] == [4] * 20
    assert set(replicas[20:]) == {1}


def test_a_window_for_scaling_out_waits_for_agreement() -> None:
    scaler = Scaler(HPAConfig(up_window_s=3.0), replicas=2)
    assert [scaler.scale(t, 2, 4, 16) for t in (1.0, 2.0, 3.0)] == [2, 2, 2]
    assert scaler.scale(4.0, 2, 3, 16) == 3


def test_policies_bound_growth_within_their_period() -> None:
    scaler = Scaler(HPAConfig(policy_s=15.0), replicas=2)
    assert scaler.scale(1.0, 2, 50, 16) == 6
    assert scaler.scale(2.0, 6, 50, 16) == 6
    assert scaler.scale(16.0, 6, 50, 64) == 12  # doubling is more than four
    assert scaler.scale(31.0, 12, 50, 16) == 16


def test_starting_replicas_damp_scaling_out() -> None:
    ready = started(hpa_fast(target=0.5)).decide(view_at(1, 1.0, 4))
    damped = started(hpa_fast(target=0.5)).decide(view_at(1, 1.0, 4, ready=2))
    assert (ready.replicas, damped.replicas) == (8, 4)


def test_keeps_what_is_there_without_a_ready_replica() -> None:
    assert started(hpa_fast()).decide(view_at(1, 0.0, 4, ready=0)).replicas == 4


def test_first_decision_keeps_the_replicas_and_sets_the_rest() -> None:
    controller = started(HPA(cores=2, batch=3))
    answer = controller.decide(make_view(allocation=Allocation(cores=8, batch=1, replicas=4)))
    assert answer == Allocation(cores=2, batch=3, replicas=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0.0}, "target must be"),
        ({"tolerance": -0.1}, "tolerance must be"),
        ({"period_s": 0.0}, "period_s must be"),
        ({"policy_s": math.inf}, "policy_s must be"),
        ({"up_replicas": 0}, "up_replicas must be"),
        ({"cores": 0}, "cores must be"),
        ({"batch_slo_share": 2.0}, "batch_slo_share must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HPA(**options)
