from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from baselines.themis import Themis, grow, one_core_replicas
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

SPEC = make_spec()


def decide(*views: SystemView, spec: SystemSpec = SPEC, **options: Any) -> Allocation:
    """Return the answer to the last of some views in a row."""
    controller = Themis(**options)
    controller.reset(spec, seed=0)
    return [controller.decide(view) for view in views][-1]


def meets(spec: SystemSpec, answer: Allocation, rate_rps: float, budget_s: float) -> bool:
    """Return whether replicas keep up, and whether the first request of a batch is in time."""
    latency_s = float(spec.first.latency.predict_s(answer.batch, answer.cores))
    filling_s = (answer.batch - 1) * answer.replicas / rate_rps
    keeps_up = answer.replicas * answer.batch / latency_s >= rate_rps
    return keeps_up and filling_s + latency_s <= budget_s


@given(
    profile=st.sampled_from(["yolov5s", "resnet18"]),
    replicas=st.integers(1, 6),
    rate_rps=st.floats(0.5, 300.0),
    budget_s=st.floats(-0.2, 1.0),
)
def test_growth_is_the_fewest_cores_that_keep_up_in_time(
    profile: str, replicas: int, rate_rps: float, budget_s: float
) -> None:
    spec = make_spec(profile)
    answer = grow(spec, replicas, rate_rps, budget_s, spec.first.cores_max)
    if answer.feasible:
        assert meets(spec, answer, rate_rps, budget_s)
    fewer = [
        Allocation(cores, batch, replicas)
        for cores in range(1, answer.cores if answer.feasible else spec.first.cores_max + 1)
        for batch in range(1, spec.first.batch_max + 1)
    ]
    assert not any(meets(spec, other, rate_rps, budget_s) for other in fewer)


def test_where_nothing_fits_all_cores_run_at_the_highest_throughput() -> None:
    answer = grow(SPEC, 1, rate_rps=200.0, budget_s=0.8, cores_max=16)
    latency_s = SPEC.first.latency.table_s(16, 16)[:, -1]
    assert not answer.feasible
    assert answer.cores == 16
    assert answer.batch == int(np.argmax(np.arange(1, 17) / latency_s)) + 1


def test_the_fewest_one_core_replicas_serve_the_reference_load() -> None:
    # l(1, 1) = 137 ms: a replica serves 7.3 requests per second.
    assert one_core_replicas(SPEC, 20.0, 0.8) == 3
    assert one_core_replicas(SPEC, 5.0, 0.8) == 1
    assert one_core_replicas(SPEC, 5.0, 0.1) == 0


def test_a_surge_grows_the_replicas_there_are() -> None:
    answer = decide(busy_view(rate_rps=20, delay_s=0.1))
    assert answer.replicas == 1
    assert answer.cores > 1
    assert answer.feasible


def test_a_load_that_stays_moves_to_one_core_replicas() -> None:
    view = busy_view(rate_rps=20, delay_s=0.1)
    asked = decide(view, view, view)
    assert asked.replicas == 3
    assert asked.cores > 1, "one replica serves until the others are warm"
    warm = busy_view(rate_rps=20, delay_s=0.1, allocation=asked, replicas_ready=3)
    assert decide(warm, warm, warm) == Allocation(cores=1, batch=1, replicas=3)


def test_a_load_that_moves_changes_no_replicas() -> None:
    calm, busy = busy_view(rate_rps=5), busy_view(rate_rps=20)
    assert decide(calm, busy, calm, busy, rate_windows=1).replicas == 1
    assert decide(calm, busy, calm, busy, rate_windows=1, stable_windows=1).replicas == 3


def test_replicas_start_only_beside_the_cores_that_are_needed_until_then() -> None:
    machine, view = make_spec(total_cores=16), busy_view(rate_rps=20, delay_s=0.1)
    asked = decide(view, view, view, spec=machine)
    assert (asked.cores, asked.replicas) == (7, 2)
    flood = busy_view(rate_rps=200, allocation=Allocation(1, 1, 4), replicas_ready=4)
    grown = decide(flood, spec=machine)
    assert (grown.cores, grown.replicas) == (4, 4), "warm replicas do not go for larger ones"


def test_nothing_changes_before_the_first_request() -> None:
    assert decide(make_view(allocation=Allocation(2, 3, 4))) == Allocation(2, 3, 4)


def test_episodes_are_independent() -> None:
    controller, view = Themis(), busy_view()
    controller.reset(SPEC, seed=0)
    first = [controller.decide(view) for _ in range(4)]
    controller.reset(SPEC, seed=0)
    assert [controller.decide(view) for _ in range(4)] == first


@pytest.mark.parametrize(
    "options", [{"stable_windows": 0}, {"rate_windows": 0}, {"slo_fraction": 0.0}]
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Themis(**options)


def test_a_decision_before_reset_is_refused() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        Themis().decide(busy_view())


def test_headroom_plans_with_longer_latencies() -> None:
    view = busy_view(rate_rps=20, delay_s=0.1)
    slow = make_spec(latency=SPEC.first.latency.scaled(1.3))
    assert decide(view, headroom=0.3) == decide(view, spec=slow) != decide(view)
