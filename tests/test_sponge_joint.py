"""``sponge-joint``: its queue, its fleet, and what it makes of an episode."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import busy_view, make_spec, make_view

from agents.forecast import Forecast
from agents.joint_fleet import Fleet, FleetConfig, rate_samples
from agents.joint_kernel import Moment, Plant, cheapest_plan
from agents.joint_latency import Latency
from agents.sponge_joint import SpongeJoint, expected_arrivals_s, replica_states
from sponge_env.errors import ConfigError
from sponge_env.factory import make_system
from sponge_env.interfaces import Allocation, RunningBatch
from sponge_env.metrics import WindowMetrics
from sponge_env.rollout import Run, run_episode
from sponge_env.scenario import load_scenario

SPEC = make_spec(replicas_max=8)
SIZES = np.array([1, 2, 4])


def plant(**changes: Any) -> Plant:
    table_s = np.ascontiguousarray(SPEC.latency.table_s(4, 6).T)
    return Plant(table_s, SIZES, np.array([1, 2, 4, 6]), 0.05, 1.0, 1.0, 4.0, 2.5)._replace(
        **changes
    )


def misses(plant: Plant, moment: Moment, now: int, later: int, batch: int) -> int:
    """Count a plan's misses with a queue that is as plain as it is slow."""

    def service_s(cores: int, size: int) -> float:
        return float(plant.service_s[cores - 1, size - 1])

    def end_s(begin_s: float, work: float, size: int) -> float:
        """Work is the share of the batch that is left."""
        if begin_s < 1.0:
            first_s = begin_s + work * service_s(now, size)
            if first_s <= 1.0:
                return first_s
            work, begin_s = (first_s - 1.0) / service_s(now, size), 1.0
        return begin_s + work * service_s(later, size)

    free_s = [
        end_s(0.0, left_s / service_s(moment.cores, int(size)), int(size)) if size else left_s
        for left_s, size in moment.replicas.tolist()
    ]
    waiting = [(due_s, 0.0) for due_s in moment.slacks_s.tolist()]
    coming = [(due_s, arrival_s) for arrival_s, due_s in moment.arrivals_s.tolist()]
    missed, done_s = 0, 0.0
    while waiting or coming:
        replica = free_s.index(min(free_s))
        begin_s = free_s[replica] if waiting else max(free_s[replica], coming[0][1])
        chosen: list[tuple[float, float]] = []
        while len(chosen) < batch:
            here = waiting[:1] + [request for request in coming[:1] if request[1] <= begin_s]
            if not here:
                break
            chosen.append(min(here, key=lambda request: request[0]))
            (waiting if chosen[-1] in waiting[:1] else coming).pop(0)
        free_s[replica] = end_s(begin_s, 1.0, len(chosen))
        done_s = max(done_s, free_s[replica])
        for due_s, arrival_s in chosen:
            hopeless = arrival_s == 0.0 and due_s < plant.fastest_s
            missed += not hopeless and free_s[replica] > due_s
    return missed + int(max(0.0, done_s - plant.clear_by_s) * moment.rate_rps)


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    slacks_s = np.sort(np.array(draw(st.lists(st.floats(-0.5, 1.0), max_size=12))))
    arrival_s = np.sort(np.array(draw(st.lists(st.floats(0.01, 2.0), max_size=12))))
    budget_s = draw(st.floats(0.02, 1.0))
    replicas = draw(
        st.lists(
            st.tuples(st.floats(0.0, 0.5), st.sampled_from([0, 1, 2, 4])), min_size=1, max_size=4
        )
    )
    return Moment(
        slacks_s,
        np.column_stack([arrival_s, arrival_s + budget_s]),
        np.array(replicas, dtype=np.float64),
        draw(st.integers(1, 6)),
        draw(st.floats(0.0, 50.0)),
    )


@settings(max_examples=60, deadline=None)
@given(moment=moments())
def test_the_plan_is_the_cheapest_of_all(moment: Moment) -> None:
    here = plant()
    costs = {
        (now, later, batch): len(moment.replicas) * (now + later)
        + here.miss_cost * misses(here, moment, now, later, batch)
        for now in range(1, 7)
        for later in {now, *here.later_cores.tolist()}
        for batch in here.batches.tolist()
    }
    cores, batch, missed = cheapest_plan(here, moment)
    least = min(costs.values())
    reached = [
        cost
        for (now, later, size), cost in costs.items()
        if (now, size) == (cores, batch) and misses(here, moment, now, later, size) == missed
    ]
    assert min(reached) == pytest.approx(least)


def test_an_idle_system_needs_one_core() -> None:
    idle = Moment(np.empty(0), np.empty((0, 2)), np.zeros((3, 2)), 4, 0.0)
    assert cheapest_plan(plant(), idle) == (1, 1, 0)


def test_more_replicas_need_fewer_cores() -> None:
    arrival_s = np.arange(0.0, 2.0, 0.05)
    arrivals_s = np.column_stack([arrival_s, arrival_s + 0.6])
    cores = [
        cheapest_plan(plant(), Moment(np.empty(0), arrivals_s, np.zeros((held, 2)), 1, 20.0))[0]
        for held in (1, 2, 3, 4)
    ]
    assert cores == sorted(cores, reverse=True)
    assert cores[0] > cores[-1] == 1


def test_a_queue_that_lasts_needs_cores_though_nothing_in_it_can_be_saved() -> None:
    hopeless = Moment(np.full(60, -1.0), np.empty((0, 2)), np.zeros((1, 2)), 1, 20.0)
    assert cheapest_plan(plant(), hopeless)[0] > 1
    assert cheapest_plan(plant(), hopeless._replace(rate_rps=0.0))[0] == 1


def test_expected_arrivals_come_early_and_the_first_have_the_least_time() -> None:
    forecast = Forecast(rate_rps=20.0, noise=1.0, budget_low_s=0.4, budget_high_s=0.8)
    arrivals_s = expected_arrivals_s(forecast, intervals=2, interval_s=1.0)
    budgets_s = arrivals_s[:, 1] - arrivals_s[:, 0]
    assert len(arrivals_s) == int(40 + np.sqrt(40))
    assert np.all(np.diff(arrivals_s[:, 0]) > 0)
    assert np.sum(arrivals_s[:, 0] < 1.0) > 20
    assert budgets_s.min() >= 0.4
    assert budgets_s.max() <= 0.8
    assert np.all(np.diff(budgets_s[:20]) > 0)
    assert budgets_s[20] == pytest.approx(budgets_s[0])
    assert not len(expected_arrivals_s(dataclasses.replace(forecast, rate_rps=0.0), 2, 1.0))


def test_replicas_are_ready_or_start_or_are_asked_for_now() -> None:
    view = make_view(
        now_s=5.0,
        replicas_ready=2,
        starting_s=(3.0,),
        running=(RunningBatch(4, 4.9, 5.3), RunningBatch(1, 4.9, 4.95), RunningBatch(2, 4.9, 5.1)),
    )
    states = replica_states(SPEC, view, held=4)
    assert states == pytest.approx(np.array([[0.3, 4], [0.1, 2], [3.0, 0], [10.0, 0]]))
    assert replica_states(SPEC, view, held=1) == pytest.approx(np.array([[0.3, 4]]))


def test_a_steady_rate_is_expected_to_stay() -> None:
    assert rate_samples(np.full(100, 20.0), lag=20) == pytest.approx(20.0)
    assert rate_samples(np.array([20.0]), lag=20) == pytest.approx([20.0])


def test_a_rate_that_lasts_is_followed_and_a_short_burst_is_not() -> None:
    slow = 20 + 10 * np.sin(np.arange(400) / 80)
    assert rate_samples(slow, lag=10).mean() == pytest.approx(slow[-1], abs=2)
    bursts = np.where(np.arange(400) % 40 < 8, 60.0, 20.0)
    assert rate_samples(bursts[:366], lag=20).mean() < 45
    assert np.all(rate_samples(bursts, lag=20) >= 0)


def fleet_size(
    rates: list[float], held: int, ready: int, starting_s: tuple[float, ...] = ()
) -> int:
    fleet = Fleet(FleetConfig(), SPEC)
    answer = 0
    for rate in rates:
        view = busy_view(
            rate_rps=round(rate),
            allocation=Allocation(4, 1, held),
            replicas_ready=ready,
            starting_s=starting_s,
        )
        fleet.observe(view)
        answer = fleet.replicas(view, np.ascontiguousarray(SPEC.latency.table_s(16, 16).T))
    return answer


def test_a_fleet_grows_with_a_load_that_lasts_and_shrinks_again() -> None:
    assert fleet_size([20.0] * 60, held=1, ready=1) > 1
    assert fleet_size([20.0] * 60, held=4, ready=4) == 3
    assert fleet_size([5.0] * 60, held=4, ready=4) == 1


def test_replicas_that_start_are_not_cancelled_as_long_as_they_are_wanted() -> None:
    assert fleet_size([20.0] * 60, held=3, ready=2, starting_s=(4.0,)) == 3


def test_latencies_are_learned_where_batches_are_of_one_size() -> None:
    latency = Latency(SPEC, margin=0.1, safety=0.0)
    guess_s = latency.service_s
    assert guess_s == pytest.approx(1.1 * SPEC.latency.table_s(16, 16).T)
    # On three replicas of two cores 100 batches of one request took 15 s: 0.15 s each.
    last = WindowMetrics(
        requested_cores=2, core_seconds=60.0, utilisation=0.5, on_time=90, late=10, batch_mean=1.0
    )
    latency.observe(make_view(last=last))
    latency.observe(make_view(last=dataclasses.replace(last, requested_cores=3, batch_mean=1.5)))
    latency.observe(make_view(last=dataclasses.replace(last, batch_mean=np.nan)))
    learned_s = latency.service_s
    assert learned_s[1, 0] == pytest.approx(0.15, abs=0.01)
    others = np.ones(learned_s.shape, np.bool_)
    others[1, 0] = False
    assert learned_s[others] == pytest.approx(guess_s[others])


@pytest.mark.parametrize(
    "options",
    [
        {"margin_probability": 1.5},
        {"intervals": 1},
        {"miss_cost": 0.0},
        {"safety": -0.1},
        {"clear_share": -1.0},
        {"utilisation": 0.0},
        {"batch_share": 2.0},
        {"cold_starts_ahead": 0},
        {"reluctance": 1.0},
        {"sigmas": -1.0},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SpongeJoint(**options)


def test_a_decision_before_reset_is_refused() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        SpongeJoint().decide(busy_view())


def test_it_holds_fewer_cores_than_the_vertical_program_and_misses_hardly_anything() -> None:
    scenario = dataclasses.replace(load_scenario("paper"), duration_s=120.0)
    system = make_system(scenario, 1000)
    run = Run.of("sponge-joint", scenario, "sim", 1000)
    episode = run_episode(system, SpongeJoint(), run)
    settled = episode.windows[60:]
    assert np.mean([window.cores for window in settled]) < 4
    assert sum(window.avoidable_violations for window in settled) == 0
    assert episode.summary.avoidable_violation_rate < 0.01
