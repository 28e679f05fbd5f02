"""The lower bound of several stages and of variants: never above what anybody attains."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from schedules import noise_free, replay_all
from test_oracle import TEAMS

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, StageAllocation
from sponge_env.oracle import bound, relaxation
from sponge_env.oracle.relaxation import StageTasks, draw_tasks, full_costs, models_of
from sponge_env.scenario.config import (
    Arrivals,
    Initial,
    Limits,
    Network,
    Serving,
    Simulation,
    Stage,
    Variant,
)
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.workload import draw_workload

LIMITS = Limits(cores=2, batch=2, replicas=2)

PLAIN = Scenario(
    name="plain",
    slo_s=0.4,
    duration_s=2.0,
    stages=(
        Stage("a", (Variant("video-detector"),), limits=LIMITS),
        Stage("b", (Variant("video-classifier"),), limits=LIMITS),
    ),
    limits=Limits(cores=2, total_cores=12),
    arrivals=Arrivals(rate_rps=15.0),
    network=Network(base_delay_s=0.01),
    simulation=Simulation(noise=0.0, cold_start_s=0.4, service_scale=2.0),
)
"""Few enough intervals and allocations to try all schedules."""


def with_stages(*changes: dict[str, Any], **more: Any) -> Scenario:
    """Return the plain scenario with changes to its stages, and to itself."""
    pairs = zip(PLAIN.stages, changes, strict=True)
    stages = tuple(dataclasses.replace(stage, **own) for stage, own in pairs)
    return dataclasses.replace(PLAIN, stages=stages, **more)


TWO = {"initial": Initial(replicas=2)}
BOTH = (Variant("video-classifier", accuracy=0.6), Variant("video-detector", accuracy=0.9))
FEWER = {"limits": Limits(cores=1, batch=2, replicas=2)}

KINDS = {
    "plain": PLAIN,
    "two replicas from the start": with_stages(TWO, TWO),
    "a machine that is soon full": with_stages(
        TWO, TWO, limits=Limits(cores=2, total_cores=5), duration_s=1.0, interval_s=0.5
    ),
    "slow to start": with_stages(
        FEWER,
        FEWER,
        duration_s=1.5,
        interval_s=0.5,
        simulation=Simulation(cold_start_s=0.5, service_scale=2.0),
    ),
    "objects in images": with_stages(
        {"fan_out_shares": (0.3, 0.3, 0.4)}, {}, serving=Serving(drop="expired")
    ),
    "little time": dataclasses.replace(PLAIN, slo_s=0.2),
    "variants": with_stages(FEWER, {"variants": BOTH, **FEWER}),
    "one stage with variants": dataclasses.replace(
        PLAIN, stages=(dataclasses.replace(PLAIN.stages[0], variants=BOTH),)
    ),
    "a warm start": dataclasses.replace(PLAIN, start="warm", warmup_s=1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_schedule_of_all_is_below(kind: str) -> None:
    scenario = KINDS[kind]
    least, tried = relaxation(scenario, 1), replay_all(scenario, 1)
    assert len(tried) >= 64
    assert min(each.violations for each in tried) >= least.violations_lower
    assert max(each.effective_accuracy for each in tried) <= least.accuracy_upper + 1e-9
    for violations in {each.violations for each in tried}:
        best = min(each.core_seconds for each in tried if each.violations <= violations)
        assert least.core_seconds(violations) <= best + 1e-6, violations
    floor = len(scenario.stages) * (scenario.duration_s - scenario.count_from_s)
    if kind in ("plain", "two replicas from the start", "objects in images", "little time"):
        fewest = min(each.violations for each in tried)
        assert least.core_seconds(fewest) > floor, "more than that each stage holds a core"


@pytest.mark.parametrize("team", TEAMS)
def test_of_one_stage_and_variant_it_is_the_lower_side_of_joint_scaling(team: str) -> None:
    plain = TEAMS[team]
    limits = dataclasses.replace(plain.limits, total_cores=None)
    stage = Stage("model", (Variant(plain.profile),), limits=limits, initial=plain.initial)
    for seed in (1, 2):
        least = relaxation(dataclasses.replace(plain, stages=(stage,)), seed)
        found = bound(plain, seed, joint=True)
        assert relaxation(plain, seed).core_seconds(9) == least.core_seconds(9)
        assert least.offered == found.offered
        assert least.violations_lower <= found.violations_lower
        assert least.core_seconds(found.violations_upper) <= found.core_seconds_upper + 1e-6
        if found.violations_upper == least.violations_lower:
            assert least.core_seconds(found.violations_upper) == found.core_seconds_lower


def tasks_of(scenario: Scenario, fastest_s: list[float]) -> tuple[list[StageTasks], Any]:
    """Return the tasks of a scenario's stages, and its requests."""
    workload = draw_workload(scenario, scenario_profile(scenario), 5)
    return draw_tasks(scenario.stages, workload, fastest_s, 5), workload


def test_a_task_comes_after_the_stages_before_and_leaves_time_for_those_after() -> None:
    (first, second), workload = tasks_of(PLAIN, [0.1, 0.03])
    np.testing.assert_allclose(first.release_s, workload.arrival_s)
    np.testing.assert_allclose(second.release_s, workload.arrival_s + 0.1)
    np.testing.assert_allclose(first.due_s, workload.deadline_s - 0.03)
    np.testing.assert_allclose(second.due_s, workload.deadline_s)


def test_nothing_need_follow_a_task_that_may_lead_to_none() -> None:
    (first, second), workload = tasks_of(KINDS["objects in images"], [0.1, 0.03])
    none = second.tasks == 0
    assert 0 < none.sum() < none.size
    np.testing.assert_allclose(first.due_s[none], workload.deadline_s[none])
    np.testing.assert_allclose(first.due_s[~none], workload.deadline_s[~none] - 0.03)
    assert second.in_time(99.0).tolist() == none.tolist()


def test_where_branches_meet_the_longer_one_counts() -> None:
    names = {"left": ("in",), "right": ("in",), "out": ("left", "right")}
    video = (Variant("video-classifier"),)
    branches = [Stage(name, video, after=after, limits=LIMITS) for name, after in names.items()]
    stages = (Stage("in", video, fan_out_shares=(0.5, 0.0, 0.5), limits=LIMITS), *branches)
    scenario = dataclasses.replace(PLAIN, stages=stages)
    found, workload = tasks_of(scenario, [0.1, 0.02, 0.05, 0.01])
    led = found[1].tasks > 0
    assert [set(each.tasks[led].tolist()) for each in found] == [{1}, {2}, {2}, {1}]
    assert [set(each.tasks[~led].tolist()) for each in found] == [{1}, {0}, {0}, {0}]
    since_s = [(each.release_s - workload.arrival_s)[led].max() for each in found]
    np.testing.assert_allclose(since_s, [0.0, 0.1, 0.1, 0.15])
    left_s = [(workload.deadline_s - each.due_s)[led].max() for each in found]
    np.testing.assert_allclose(left_s, [0.06, 0.01, 0.01, 0.0])


def test_the_tasks_are_those_of_the_core() -> None:
    scenario = noise_free(dataclasses.replace(load_scenario("pipeline-fanout"), duration_s=30.0))
    quiet = dataclasses.replace(scenario, slo_s=9.0, arrivals=Arrivals(rate_rps=3.0))
    found, workload = tasks_of(quiet, [0.0, 0.0])
    system, joined = SimulatedSystem(quiet, 5), np.zeros(2)
    for _ in range(quiet.intervals):
        system.step(Allocation(stages=(StageAllocation(4, 4, 2),) * 2))
        joined += [stage.arrivals[-1] for stage in system.view().stages]
    answered = workload.arrival_s < quiet.duration_s - 1.0
    assert system.columns()["outcome"][answered].tolist() == ["on_time"] * answered.sum()
    expected = [each.tasks[answered].sum() for each in found]
    late = [each.tasks[~answered].sum() for each in found]
    for there, least, rest in zip(joined, expected, late, strict=True):
        assert least <= there <= least + rest


def test_what_has_no_relaxation_is_refused() -> None:
    late = dataclasses.replace(PLAIN, simulation=Simulation(actuation_delay_s=0.1))
    with pytest.raises(ConfigError, match="resize to act at once"):
        relaxation(late, 1)
    limited = Stage("c", (Variant("lite0"),), limits=Limits(cores=4))
    twice = dataclasses.replace(PLAIN, stages=(limited, dataclasses.replace(limited, name="d")))
    with pytest.raises(ConfigError, match="several stages under CPU quotas"):
        relaxation(twice, 1)


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_who_gets_less_than_asked_for_finds_the_machine_nearly_full(scale: float) -> None:
    many = Limits(cores=4, batch=2, replicas=3)
    scenario = dataclasses.replace(
        PLAIN,
        duration_s=60.0,
        stages=tuple(dataclasses.replace(stage, limits=many) for stage in PLAIN.stages),
        limits=Limits(cores=4, total_cores=9),
        simulation=Simulation(noise=0.0, cold_start_s=0.4, service_scale=scale),
        interval_s=0.5,
        arrivals=Arrivals(rate_rps=60.0),
    )
    full = sum(full_costs(scenario, models_of(scenario, scenario_profile(scenario))))
    assert full == (6 if scale == 1.0 else 4), "longer batches than intervals may pile up"
    system, rng, short = SimulatedSystem(scenario, 0), np.random.default_rng(0), 0
    for _ in range(scenario.intervals):
        asked = Allocation(stages=(StageAllocation(4, 2, 3),) * 2)
        while asked.total_cores > 9:
            drawn = rng.integers(1, [5, 4], (2, 2)).tolist()
            asked = Allocation(stages=tuple(StageAllocation(c, 2, n) for c, n in drawn))
        held = system.step(asked).core_seconds / scenario.interval_s
        assert held >= min(asked.total_cores, full) - 1e-9
        short += held < asked.total_cores - 1e-6
    assert short > 5
