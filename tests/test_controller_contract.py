"""What every controller that needs no training must do."""

import dataclasses

import numpy as np
import pytest
from golden import cells, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenarios import decisions
from views import busy_view, make_spec, make_view, views, with_first

import agents
import baselines
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, fits
from sponge_env.run.registry import make_controller
from sponge_env.simulation.system import SimulatedSystem

REGISTRY = agents.CONTROLLERS | baselines.CONTROLLERS
TRAINED = agents.LEARNERS.keys()  # These need a policy file
VARIANTS = [
    *((name, {}) for name in sorted(REGISTRY.keys() - TRAINED)),
    ("sponge-ip", {"formulation": "paper"}),
    ("sponge-ip", {"formulation": "paper", "on_infeasible": "hold"}),
]

every_controller = pytest.mark.parametrize(
    ("name", "options"), VARIANTS,
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value,
)  # fmt: skip


def make(name, options, spec):
    controller = make_controller(name, REGISTRY, options)
    controller.reset(spec, seed=0)
    return controller


MAX_READY = 1 << 30  # Beyond how many replicas each holds one core, if it does not matter


def check(answer, spec, ready=MAX_READY):
    first, asked = spec.first, (answer.cores, answer.batch, answer.replicas)
    most = first.cores_max, first.batch_max, first.replicas_max
    for value, limit in zip(asked, most, strict=True):
        assert type(value) is int
        assert 1 <= value <= limit
    assert fits(spec.nodes, answer.stages, (ready,))
    assert answer.variant < len(spec.stages[0].accuracies)
    assert type(answer.feasible) is bool


@st.composite
def systems_with_fleets(draw):
    """A machine of few cores or many, one node or two, and replicas on it that serve or start."""
    nodes = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=2)))
    cores_max = min(draw(st.integers(1, 16)), max(nodes))
    spec = make_spec(cores_max=cores_max, replicas_max=draw(st.integers(1, 16)), nodes=nodes)
    cores = draw(st.integers(1, cores_max))
    replicas = draw(st.integers(1, spec.most_replicas(cores)))
    ready = draw(st.integers(0, replicas))
    starting_s = (draw(st.floats(0, 10)),) * (replicas - ready)
    allocation = Allocation(cores, draw(st.integers(1, 16)), replicas)
    view = dataclasses.replace(draw(views()), allocation=allocation)
    fleet = {"cores_in_force": cores, "replicas_ready": ready, "starting_s": starting_s}
    return spec, with_first(view, allocation=allocation.stages[0], **fleet)


def copy_of(view):
    return dataclasses.asdict(dataclasses.replace(view, last=None))


@every_controller
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(view=views(), interval_s=st.sampled_from([0.5, 1.0, 2.0]))
def test_answers_within_the_limits_and_leaves_the_view_alone(name, options, view, interval_s):
    spec = make_spec(interval_s=interval_s)
    before, answer = copy_of(view), make(name, options, spec).decide(view)
    check(answer, spec)
    np.testing.assert_equal(copy_of(view), before)
    again = make(name, options, spec).decide(view)
    assert (again, again.feasible) == (answer, answer.feasible)


@every_controller
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=systems_with_fleets())
def test_plans_with_the_cores_of_the_machine(name, options, drawn):
    spec, view = drawn
    controller = make(name, options, spec)
    for _ in range(3):  # some count how long a wish lasts
        ready = max(1, view.first.replicas_ready) if controller.grows_ready else MAX_READY
        check(controller.allocate(spec, view), spec, ready)


@every_controller
@pytest.mark.parametrize(
    "view",
    [make_view(), make_view(queued_deadlines_s=np.linspace(0, 1, 50)), busy_view(rate_rps=0),
     busy_view(budgets_left_s=tuple(np.linspace(-5, 1, 5_000))),
     busy_view(rate_rps=3_000, delay_s=1.4)],
    ids=["first", "first-with-queue", "idle", "long-queue", "flood"],
)  # fmt: skip
def test_extremes(name, options, view):
    spec = make_spec()
    check(make(name, options, spec).decide(view), spec)


@every_controller
def test_an_episode_begins_with_a_reset_which_forgets_the_last_system(name, options):
    with pytest.raises(ConfigError, match="unknown key 'colour'; choose from"):
        make_controller(name, REGISTRY, options | {"colour": 3})
    controller = make_controller(name, REGISTRY, options)
    with pytest.raises(RuntimeError, match="reset"):
        controller.decide(make_view())
    for limit in (16, 2, 1):
        small = make_spec(cores_max=limit, batch_max=limit, replicas_max=limit)
        controller.reset(small, seed=0)
        held = Allocation(cores=limit, batch=limit)
        check(controller.decide(busy_view(budgets_left_s=(0.1, 0.5), allocation=held)), small)


@pytest.mark.parametrize("name", ["fa2", "hpa", "ppo-joint", "sponge-joint", "themis"])
@pytest.mark.parametrize("cell", ["flash-crowd", "local", "many-replicas", "narrow"])
def test_fleets_stay_on_the_machine_in_an_episode(name, cell):
    if name in TRAINED and not cells.CELLS[cell].shipped_policies:
        pytest.skip("no policy ships for these limits")
    scenario = play.scenario(cell, "cold", duration_s=40.0)
    controller, system = make_controller(name, REGISTRY, {}), SimulatedSystem(scenario, seed=1)
    for view, answer in decisions(system, controller):
        check(answer, system.spec, max(1, view.first.replicas_ready))
