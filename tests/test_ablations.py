"""Sponge without batching or without scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact import random_spec, random_view
from views import busy_view, make_spec, make_view

from agents.sponge_ip import Ablated, SpongeIP, bundled, no_batching, no_scaling
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation


@given(cores=st.integers(1, 16), profile=st.sampled_from(["yolov5s", "resnet18"]))
def test_a_bundle_is_as_fast_as_its_cores(cores: int, profile: str) -> None:
    spec = make_spec(profile)
    one = bundled(spec, cores)
    expected_s = spec.first.latency.table_s(16, 16)[:, cores - 1]
    np.testing.assert_allclose(one.first.latency.table_s(16, 1)[:, 0], expected_s, rtol=1e-12)


@pytest.mark.parametrize("options", [{"cores_fixed": 3}, {"batch_limit": 2}])
def test_solvers_agree_on_random_states(options: dict[str, int]) -> None:
    rng = np.random.default_rng(5)
    exact, pulp = Ablated(solver="exact", **options), Ablated(solver="pulp", **options)
    for _ in range(50):
        spec = random_spec(rng, largest=8)
        view = random_view(rng, spec)
        exact.reset(spec, seed=0)
        pulp.reset(spec, seed=0)
        answer = exact.decide(view)
        assert (answer, answer.feasible) == (pulp.decide(view), pulp.decide(view).feasible)


@settings(max_examples=20, deadline=None)
@given(cores=st.integers(1, 16), budget_s=st.floats(0.1, 0.9), queued=st.integers(0, 30))
def test_no_scaling_takes_the_smallest_batch_that_is_feasible_on_its_cores(
    cores: int, budget_s: float, queued: int
) -> None:
    view = busy_view(budgets_left_s=(budget_s,) * queued, allocation=Allocation(cores, 1))
    controller = Ablated(cores_fixed=cores)
    controller.reset(make_spec(), seed=0)
    answer = controller.decide(view)
    assert answer.cores == cores
    free = SpongeIP()
    free.reset(make_spec(), seed=0)
    chosen = free.decide(view)
    if chosen.feasible and chosen.cores <= cores:
        assert answer.feasible
        assert answer.batch <= chosen.batch


def test_no_batching_never_asks_for_a_batch() -> None:
    controller = no_batching(formulation="paper", on_infeasible="hold")
    controller.reset(make_spec(), seed=0)
    for view in (make_view(), busy_view(rate_rps=200), busy_view(rate_rps=5)):
        assert controller.decide(view).batch == 1


def test_fixed_cores_stay_within_the_limit() -> None:
    controller = no_scaling()
    controller.reset(make_spec(cores_max=6), seed=0)
    assert controller.decide(make_view()).cores == 6
    assert controller.decide(busy_view()).cores == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cores_fixed": 0}, "cores_fixed must be at least 1, not 0"),
        ({"batch_limit": 1.5}, r"batch_limit must be a whole number, not 1\.5"),
    ],
)
def test_bad_options(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Ablated(**options)
