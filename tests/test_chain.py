"""The cheapest way through a chain of stages, against all ways and against PuLP."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.solvers import solve_chain
from sponge_env.control.chain import BIG_M, Chain
from sponge_env.interfaces import StageAllocation, SystemSpec


@st.composite
def programs(draw):
    """A program of one to three stages with a few options each, and whether late ones count."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    horizon = draw(st.integers(2, 10))
    chain = Chain(sizes, horizon, draw(st.integers(len(sizes), 5 * len(sizes))))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = sum(sizes)
    chain.choices.ticks[:] = random.integers(0, horizon + 1, count)
    chain.choices.room[:] = random.integers(-1, horizon + 1, count)
    chain.choices.cores[:] = random.integers(1, 5, count)
    chain.choices.cost[:] = random.integers(0, 50, count)
    chain.late[:] = random.integers(0, 3, (count, horizon + 1)).cumsum(axis=1)
    return chain, draw(st.booleans())


def cost_of(chain, way, count_late):
    """Return what a way costs, None if it is not allowed."""
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
    allowed = [cost for cost in costs if cost is not None]
    cost = chain.cheapest(count_late)
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
    [
        (16, "replicas, then cores", [4, 2], [2, 4]),
        (5, "replicas, then cores", [3, 2], [1, 1]),
        (14, "cores", [1, 2], [3, 5]),
        (16, "starting replicas", [4, 2], [3, 3]),
        (22, "cores", [4, 2], [3, 5]),
    ],
)
def test_what_allocations_give_up_to_fit(total_cores, give_up, cores, replicas):
    stages = StageAllocation(4, 1, 3), StageAllocation(2, 1, 5)
    ready = (3, 1) if give_up == "starting replicas" else ()
    spec = SystemSpec(slo_s=1.0, interval_s=1.0, stages=(), total_cores=total_cores)
    fitted = spec.fit_stages(stages, give_up, ready)
    assert [each.cores for each in fitted] == cores
    assert [each.replicas for each in fitted] == replicas


def test_a_budget_for_all_stages():
    chain = Chain([2, 2], horizon=10, total_cores=8)
    chain.choices.ticks[:] = [6, 3, 5, 2]
    chain.choices.cores[:] = chain.choices.cost[:] = [1, 3, 1, 2]
    wanted = {11: [0, 0], 10: [0, 1], 8: [0, 1], 7: [1, 1], 5: [1, 1]}
    for budget, options in wanted.items():
        if budget <= chain.horizon:
            assert chain.within(budget)
            assert chain.options() == options
    assert not chain.within(4)


@pytest.mark.parametrize("total_cores", [3, 4])
def test_the_machine_is_one_for_all(total_cores):
    chain = Chain([2, 2], horizon=4, total_cores=total_cores)
    chain.choices.cores[:] = [1, 3, 1, 3]
    chain.choices.cost[:] = [9, 0, 9, 0]
    chain.choices.room[:] = 4
    assert chain.cheapest() == (18 if total_cores == 3 else 9)
