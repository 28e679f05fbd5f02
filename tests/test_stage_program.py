"""Sponge's program for several stages: its options counted anew, and what it decides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.sponge_ip import SpongeIP, SpongeIPConfig
from agents.stages import TICKS, PipelineProgram, StageState, tasks_of_requests
from sponge_env.control.chain import MANY, NEVER, NO_WAY
from sponge_env.interfaces import StageAllocation, SystemSpec, SystemView
from sponge_env.scenario.config import Arrivals
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.system import SimulatedSystem


def system_of(name: str, **changes: Any) -> SimulatedSystem:
    scenario = dataclasses.replace(load_scenario(name), duration_s=40.0, **changes)
    return SimulatedSystem(scenario, 1)


def spec_of(name: str) -> SystemSpec:
    scenario = load_scenario(name)
    return make_spec(scenario, scenario_profile(scenario))


@st.composite
def states(draw: st.DrawFn) -> StageState:
    """The first stage of ``pipeline-video`` at some moment."""
    times = st.floats(-0.1, 0.4)
    due_s = np.array(sorted(draw(st.lists(times, max_size=30))))
    arrivals = draw(st.lists(st.floats(0, 1), max_size=20))
    ready = draw(st.integers(1, 3))
    running = [(draw(st.floats(0, 0.05)), draw(st.integers(1, 4))) for _ in range(ready)]
    return StageState(
        due_s=due_s,
        arrivals_s=np.array([(each, each + 0.25) for each in sorted(arrivals)]).reshape(-1, 2),
        running=np.array(sorted(running), np.float64).reshape(-1, 2),
        free_s=np.empty(ready),
        variant=0,
        cores=draw(st.integers(1, 4)),
        replicas=ready,
        rate_rps=draw(st.floats(1, 90)),
        noise=draw(st.floats(0, 2)),
    )


def slack_ticks(
    program: PipelineProgram, state: StageState, cores: int, batch: int
) -> tuple[list[int], int]:
    """Return the ticks that each task has left when it is done here, and the tasks too many."""
    tables = program.tables[0]
    service_s, was_s = (tables.service_s[0, each - 1] for each in (cores, state.cores))
    free_s = [s * service_s[int(size) - 1] / was_s[int(size) - 1] for s, size in state.running]
    replicas, queued = len(free_s), len(state.due_s)
    settled = len(service_s)
    for size in range(len(service_s) - 1, 0, -1):
        expected = state.rate_rps * service_s[size - 1] / replicas
        fits = size >= expected + state.noise * math.sqrt(expected)
        settled = size if fits and size * replicas >= tables.group else settled
    own_s = service_s[min(batch, settled) - 1]
    left_s = []
    for place, due_s in enumerate(state.due_s):
        before, own = place // batch, min(batch, queued - place // batch * batch)
        start_s = free_s[before % replicas] + before // replicas * service_s[batch - 1]
        if due_s >= tables.left_s:  # else it is hopeless
            left_s.append(due_s - start_s - service_s[own - 1])
    for order, (arrival_s, due_s) in enumerate(state.arrivals_s):
        before = (queued + order) // batch
        start_s = free_s[before % replicas] + before // replicas * service_s[batch - 1]
        left_s.append(due_s - max(start_s, arrival_s + own_s / replicas) - own_s)
    served_rps = replicas * batch / service_s[batch - 1]
    short = max(0, math.ceil(state.rate_rps - served_rps - 1e-9))
    return [math.floor(each / tables.tick_s + 1e-9) for each in left_s], short


@settings(deadline=None, max_examples=60)
@given(state=states())
def test_options_are_counted_as_they_are_defined(state: StageState) -> None:
    program = PipelineProgram(SpongeIPConfig(), spec_of("pipeline-video"))
    chain, (_, cores_max, batch_max) = program.chain, program.tables[0].service_s.shape
    for late in (np.zeros((0, TICKS + 1), np.int64), chain.late):
        program.lay_out_stage(0, state, late)
        for option in range(cores_max * batch_max):
            cores, batch = option // batch_max + 1, option % batch_max + 1
            left, short = slack_ticks(program, state, cores, batch)
            assert chain.choices.cores[option] == cores * state.replicas
            if len(late):
                counted = [short + sum(each < ticks for each in left) for ticks in range(TICKS + 1)]
                assert late[option].tolist() == counted
            else:
                room = NEVER if short else max(NEVER, min([TICKS, *left]))
                assert chain.choices.room[option] == room


def random_state(random: np.random.Generator) -> StageState:
    """A stage of ``pipeline-video`` with a queue between comfortable and late."""
    due_s = np.sort(random.uniform(0.0, 1.0, random.integers(0, 20))) * random.uniform(0.2, 2.0)
    arrivals_s = np.sort(random.uniform(0.0, 1.0, random.integers(0, 10)))
    return StageState(
        due_s=due_s,
        arrivals_s=np.column_stack([arrivals_s, arrivals_s + random.uniform(0.2, 1.0)]),
        running=np.array([(random.uniform(0.0, 0.05), random.integers(0, 5))]),
        free_s=np.empty(1),
        variant=0,
        cores=int(random.integers(1, 5)),
        replicas=1,
        rate_rps=random.uniform(1.0, 40.0),
        noise=1.0,
    )


@pytest.mark.parametrize("total_cores", [5, 32])
def test_what_is_left_out_would_not_win(total_cores: int) -> None:
    spec = dataclasses.replace(spec_of("pipeline-video"), total_cores=total_cores)
    stages = tuple(
        # Two variants alike, so that options cost the same.
        dataclasses.replace(stage, latencies=stage.latencies[:1] * 2, accuracies=(0.5, 0.5))
        for stage in spec.stages
    )
    spec = dataclasses.replace(spec, stages=stages)
    program, random = PipelineProgram(SpongeIPConfig(), spec), np.random.default_rng(0)
    chain, feasible = program.chain, 0
    for _ in range(500):
        states = [random_state(random) for _ in spec.stages]
        for count_late in (False, True):
            found = program.solve(states, count_late)
            chosen = chain.options()
            for k, state in enumerate(states):
                program.lay_out_stage(k, state, chain.late_rows(count_late))
            cost = chain.cheapest(count_late)
            assert found == (cost < MANY)
            assert cost >= NO_WAY or chain.options() == chosen
            feasible += found and not count_late
    assert 50 < feasible < 450


def test_tasks_of_requests_multiply() -> None:
    spec = spec_of("pipeline-fanout")
    one, crops = tasks_of_requests(spec.stages)
    assert one.tolist() == [0.0, 1.0]
    assert crops[: len(spec.stages[0].tasks)] == pytest.approx(spec.stages[0].tasks)
    assert float(crops @ np.arange(crops.size)) == pytest.approx(spec.stages[1].mean_tasks)


def decide_twice(system: SimulatedSystem, *controllers: SpongeIP) -> list[list[Any]]:
    """Let the first serve an episode; return what each decides."""
    decided: list[list[Any]] = [[] for _ in controllers]
    for controller in controllers:
        controller.reset(system.spec, seed=0)
    while not system.done:
        view = system.view()
        for own, controller in zip(decided, controllers, strict=True):
            own.append(controller.decide(view))
        system.step(decided[0][-1])
    return decided


@pytest.mark.parametrize("name", ["pipeline-video", "variants"])
def test_pulp_decides_alike(name: str) -> None:
    exact, pulp = decide_twice(system_of(name), SpongeIP(), SpongeIP(solver="pulp"))
    for ours, theirs in zip(exact, pulp, strict=True):
        assert ours.feasible == theirs.feasible
        assert ours.total_cores == theirs.total_cores or not ours.feasible


def test_where_the_load_is_steady_it_holds_what_it_takes() -> None:
    steady = Arrivals(kind="constant", rate_rps=30.0)
    system = system_of("pipeline-video", arrivals=steady)
    (decided,) = decide_twice(system, SpongeIP())
    assert {each.total_cores for each in decided[15:]} <= {3, 4}
    assert all(each.feasible for each in decided[2:])


def test_of_equal_cores_the_most_accurate_variant() -> None:
    quiet = Arrivals(kind="constant", rate_rps=2.0)
    price = {"accuracy_price": 0.0}
    (decided,) = decide_twice(system_of("variants", arrivals=quiet), SpongeIP(**price))
    (dear,) = decide_twice(system_of("variants", arrivals=quiet), SpongeIP(accuracy_price=100.0))
    assert {each.variant for each in dear[2:]} == {2}
    assert sum(each.total_cores for each in decided) < sum(each.total_cores for each in dear)


@pytest.mark.parametrize(("which", "variant"), [("smallest", 0), ("largest", 2)])
def test_the_variant_may_be_fixed(which: str, variant: int) -> None:
    (decided,) = decide_twice(system_of("variants"), SpongeIP(variant=which))
    assert {each.variant for each in decided[1:]} == {variant}


@pytest.mark.parametrize("budget", ["end-to-end", "proportional", "equal"])
def test_a_budget_for_each_stage_or_for_all(budget: str) -> None:
    system = system_of("pipeline-nlp", arrivals=Arrivals(rate_rps=6.0))
    controller = SpongeIP(budget=budget)
    (decided,) = decide_twice(system, controller)
    outcomes = system.columns()["outcome"]
    assert np.mean(outcomes != "on_time") < 0.05
    assert np.mean([each.total_cores for each in decided[10:]]) <= 10
    assert controller.plans(system.spec) == (budget == "end-to-end")


def test_it_plans_no_more_than_the_machine() -> None:
    scenario = load_scenario("pipeline-nlp")
    small = dataclasses.replace(
        scenario, limits=dataclasses.replace(scenario.limits, total_cores=6)
    )
    crowd = dataclasses.replace(small, duration_s=30.0, arrivals=Arrivals(rate_rps=30.0))
    system = SimulatedSystem(crowd, 0)
    (decided,) = decide_twice(system, SpongeIP())
    assert max(each.total_cores for each in decided) <= 6
    assert not decided[-1].feasible
    assert all(isinstance(stage, StageAllocation) for stage in decided[-1].stages)


def test_nothing_is_forecast_before_a_request_has_come() -> None:
    system = system_of("pipeline-video")
    controller = SpongeIP()
    controller.reset(system.spec, seed=0)
    view: SystemView = system.view()
    assert controller.decide(view).total_cores == 8  # all of the replicas that there are
