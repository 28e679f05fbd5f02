"""Sponge's program for a chain of stages: the cheapest way through, options and decisions."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import decisions

from agents.learn import spec_of
from agents.program import TICKS, StageLoad, tasks_of_requests
from agents.sponge_ip import SpongeIP, SpongeIPConfig
from agents.stages import StageProgram, solve_chain
from sponge_env import StageAllocation, SystemSpec, load_scenario
from sponge_env.control.chain import BIG_M, INFEASIBLE, NEVER, Chain
from sponge_env.scenario.config import Arrivals
from sponge_env.simulation.system import SimulatedSystem


def system_of(name, **changes):
    scenario = dataclasses.replace(load_scenario(name), **{"duration_s": 40.0} | changes)
    return SimulatedSystem(scenario, 1)


VIDEO = spec_of(load_scenario("pipeline-video"))


def random_state(random, program):
    due_s = np.sort(random.uniform(-0.1, 1.0, random.integers(0, 20))) * random.uniform(0.2, 2.0)
    low_s = random.uniform(0.3, 1.0)
    ready, cores = int(random.integers(1, 4)), int(random.integers(1, 5))
    running = [(left_s, random.integers(0, 5)) for left_s in random.uniform(0.0, 0.05, ready)]
    return StageLoad(
        due_s=due_s, arrivals_s=np.empty((random.integers(0, 10), 2)), ready_s=0.0,
        running=np.array(sorted(running)), free_s=np.empty(ready), variant=0, cores=cores,
        before_s=np.ascontiguousarray(program.model.tables[0].service_s[:, cores - 1]),
        replicas=ready, rate_rps=random.uniform(1.0, 60.0), noise=random.uniform(0.0, 2.0),
        budget_low_s=low_s, budget_high_s=low_s + random.uniform(0.0, 0.3),
    )  # fmt: skip


def left_ticks(program, state, cores, batch):
    """Return the ticks that each task has left when it is done here, and the tasks too many."""
    tables, predict_s = program.model.tables[0], VIDEO.first.latency.predict_s
    service_s, replicas = tables.service_s[0, cores - 1], len(state.running)
    pace = [float(predict_s(size, cores) / predict_s(size, state.cores)) for size in range(1, 5)]
    # Where the size is 0, a replica starts.
    clocks_s = [left_s * (pace[int(size) - 1] if size else 1) for left_s, size in state.running]
    settled = len(service_s)
    for size in range(len(service_s) - 1, 0, -1):
        expected = state.rate_rps * service_s[size - 1] / replicas
        fits = size >= expected + state.noise * math.sqrt(expected)
        settled = size if fits and size * replicas >= tables.group else settled
    own_s, left_s, turn = service_s[min(batch, settled) - 1], [], 0
    for first in range(0, state.due_s.size, batch):
        due_s = state.due_s[first : first + batch]
        clocks_s[turn % replicas] += service_s[due_s.size - 1]
        counted = due_s[due_s >= tables.left_s]  # the others are hopeless
        left_s += (counted - clocks_s[turn % replicas]).tolist()
        turn += 1
    for first in range(0, len(state.arrivals_s), batch):
        for arrival_s, due_s in state.arrivals_s[first : first + batch]:
            start_s = max(clocks_s[turn % replicas], arrival_s + own_s / replicas)
            left_s.append(due_s - start_s - own_s)
        clocks_s[turn % replicas] += service_s[batch - 1]
        turn += 1
    short = max(0, math.ceil(state.rate_rps - replicas * batch / service_s[batch - 1] - 1e-9))
    return [NEVER if t < 0 else math.floor(t / tables.tick_s + 1e-9) for t in left_s], short


def test_options_are_counted_as_they_are_defined():
    program, random = StageProgram(SpongeIPConfig(), VIDEO), np.random.default_rng(1)
    chain, (_, cores_max, batch_max) = program.chain, program.model.tables[0].service_s.shape
    for _ in range(60):
        state = random_state(random, program)
        for count_late in (False, True):
            program.lay_out_stage(0, state, chain.late_rows(count_late))
            for option in range(cores_max * batch_max):
                cores, batch = option // batch_max + 1, option % batch_max + 1
                left, short = left_ticks(program, state, cores, batch)
                assert chain.choices.cores[option] == cores * state.replicas
                if count_late:
                    counted = [short + sum(t < ticks for t in left) for ticks in range(TICKS + 1)]
                    assert chain.late[option].tolist() == counted
                else:
                    assert chain.choices.room[option] == (NEVER if short else min([TICKS, *left]))


@pytest.mark.parametrize("total_cores", [5, 32])
def test_what_is_left_out_would_not_win(total_cores):
    stages = tuple(
        # Two variants alike, so that options cost the same.
        dataclasses.replace(stage, latencies=stage.latencies[:1] * 2, accuracies=(0.5, 0.5))
        for stage in VIDEO.stages
    )
    spec = dataclasses.replace(VIDEO, nodes=(total_cores,), stages=stages)
    program, random = StageProgram(SpongeIPConfig(), spec), np.random.default_rng(0)
    chain, feasible = program.chain, 0
    for _ in range(500):
        states = [random_state(random, program) for _ in spec.stages]
        for count_late in (False, True):
            solved, chosen = program.solve(states, count_late), chain.options()
            for k, state in enumerate(states):
                program.lay_out_stage(k, state, chain.late_rows(count_late))
            cost = chain.cheapest(count_late)
            assert solved == (cost < BIG_M)
            assert cost >= INFEASIBLE or chain.options() == chosen
            feasible += solved and not count_late
    assert 50 < feasible < 450


def test_tasks_of_requests_multiply():
    spec = spec_of(load_scenario("pipeline-fanout"))
    one, crops = tasks_of_requests(spec.stages)
    assert one.tolist() == [0.0, 1.0]
    assert crops[: len(spec.stages[0].tasks)] == pytest.approx(spec.stages[0].tasks)
    assert float(crops @ np.arange(crops.size)) == pytest.approx(spec.stages[1].mean_tasks)


def decide(system, controller):
    return [answer for _, answer in decisions(system, controller)]


def test_where_the_load_is_steady_it_holds_what_it_takes():
    system = system_of("pipeline-video", arrivals=Arrivals(kind="constant", rate_rps=30.0))
    decided = decide(system, SpongeIP())
    assert {each.total_cores for each in decided[15:]} <= {3, 4}
    assert all(each.feasible for each in decided[2:])


def test_of_equal_cores_the_most_accurate_variant():
    quiet = Arrivals(kind="constant", rate_rps=2.0)
    decided = decide(system_of("variants", arrivals=quiet), SpongeIP(accuracy_price=0.0))
    dear = decide(system_of("variants", arrivals=quiet), SpongeIP(accuracy_price=100.0))
    assert {each.variant for each in dear[2:]} == {2}
    assert sum(each.total_cores for each in decided) < sum(each.total_cores for each in dear)


@pytest.mark.parametrize("budget", ["end-to-end", "proportional", "equal"])
def test_a_budget_for_each_stage_or_for_all(budget):
    system = system_of("pipeline-nlp", arrivals=Arrivals(rate_rps=6.0))
    controller = SpongeIP(budget=budget)
    decided = decide(system, controller)
    assert np.mean(system.columns()["outcome"] != "on_time") < 0.05
    assert np.mean([each.total_cores for each in decided[10:]]) <= 10
    assert controller.plans(system.spec) == (budget == "end-to-end")


def test_nothing_is_forecast_before_a_request_has_come():
    system, controller = system_of("pipeline-video"), SpongeIP()
    controller.reset(system.spec, seed=0)
    assert controller.decide(system.view()).total_cores == 8  # all of the replicas that there are


@pytest.mark.parametrize(("which", "variant"), [("smallest", 0), ("largest", 2)])
def test_the_variant_may_be_fixed(which, variant):
    decided = decide(system_of("variants"), SpongeIP(variant=which))
    assert {each.variant for each in decided[1:]} == {variant}


@st.composite
def programs(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    horizon = draw(st.integers(2, 10))
    chain = Chain(sizes, horizon, draw(st.integers(len(sizes), 5 * len(sizes))))
    random, count = np.random.default_rng(draw(st.integers(0, 2**32))), sum(sizes)
    chain.choices.ticks[:] = random.integers(0, horizon + 1, count)
    chain.choices.room[:] = random.integers(-1, horizon + 1, count)
    chain.choices.cores[:] = random.integers(1, 5, count)
    chain.choices.cost[:] = random.integers(0, 50, count)
    chain.late[:] = random.integers(0, 3, (count, horizon + 1)).cumsum(axis=1)
    return chain, draw(st.booleans())


def cost_of(chain, way, count_late):
    choices = chain.choices
    if sum(choices.cores[option] for option in way) > chain.total_cores:
        return None
    cost = 0
    for place, option in enumerate(way):
        after = min(sum(choices.ticks[each] for each in way[place + 1 :]), chain.horizon)
        if count_late:
            cost += BIG_M * int(chain.late[option, after])
        elif after > choices.room[option]:
            return None
        cost += int(choices.cost[option])
    return cost


def every_way(chain):
    first = chain.choices.first
    return itertools.product(*(range(a, b) for a, b in itertools.pairwise(first.tolist())))


@settings(deadline=None, max_examples=100)
@given(programs())
def test_no_way_is_cheaper(program):
    chain, count_late = program
    costs = [cost_of(chain, way, count_late) for way in every_way(chain)]
    allowed, cost = [cost for cost in costs if cost is not None], chain.cheapest(count_late)
    if allowed:
        assert cost == min(allowed)
        assert cost_of(chain, tuple(chain.chosen.tolist()), count_late) == cost
    elif not count_late:
        assert cost >= BIG_M


@settings(deadline=None, max_examples=30)
@given(programs())
def test_pulp_finds_no_other_cost(program):
    chain, count_late = program
    cost = chain.cheapest(count_late)
    if any(cost_of(chain, way, count_late) is not None for way in every_way(chain)):
        assert cost_of(chain, solve_chain(chain, count_late), count_late) == cost
    elif not count_late:
        assert solve_chain(chain, count_late) == ()


@pytest.mark.parametrize(
    ("total_cores", "give_up", "cores", "replicas"),
    [(16, "replicas, then cores", [4, 2], [2, 4]), (5, "replicas, then cores", [3, 2], [1, 1]),
     (14, "cores", [1, 2], [3, 5]), (16, "starting replicas", [4, 2], [3, 3]),
     (22, "cores", [4, 2], [3, 5])],
)  # fmt: skip
def test_what_allocations_give_up_to_fit(total_cores, give_up, cores, replicas):
    stages = StageAllocation(4, 1, 3), StageAllocation(2, 1, 5)
    ready = (3, 1) if give_up == "starting replicas" else ()
    spec = SystemSpec(slo_s=1.0, interval_s=1.0, stages=(), nodes=(total_cores,))
    fitted = spec.fit_stages(stages, give_up, ready)
    assert [each.cores for each in fitted] == cores
    assert [each.replicas for each in fitted] == replicas


def test_a_budget_for_all_stages():
    chain = Chain([2, 2], horizon=10, total_cores=8)
    chain.choices.ticks[:] = [6, 3, 5, 2]
    chain.choices.cores[:] = chain.choices.cost[:] = [1, 3, 1, 2]
    for budget, options in {11: [0, 0], 10: [0, 1], 8: [0, 1], 7: [1, 1], 5: [1, 1]}.items():
        if budget <= chain.horizon:
            assert chain.within(budget)
            assert chain.options() == options
    assert not chain.within(4)
