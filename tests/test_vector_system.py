"""A controller cannot tell the product's system from the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from differential import check_episode, check_same
from drawn_scenarios import SEEDS, scenarios, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import make_system
from scenarios import QUOTA_PROFILE, SHORT, short

from agents import LEARNERS
from sponge_env.errors import ProfileError
from sponge_env.interfaces import Allocation
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import RequestClass, Serving, Simulation
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.simulation.system import SimulatedSystem

CLASSES = (RequestClass(1.0, 0.6, 2e5), RequestClass(2.0, 1.2, 4e5), RequestClass(1.0, 2.0, 0.0))
UNTRAINED = sorted(known_controllers().keys() - LEARNERS.keys())

SYSTEMS: dict[str, tuple[Scenario, Profile | None]] = {
    "poisson": (SHORT, None),
    "bursty": (dataclasses.replace(load_scenario("bursty"), duration_s=15.0), None),
    "quota": (short(profile="quota"), QUOTA_PROFILE),
    "classes": (short(slo_s=0.6, classes=CLASSES, serving=Serving("expired")), None),
    "fifo": (short(slo_s=0.6, classes=CLASSES, serving=Serving("expired", order="fifo")), None),
    "slow-actuation": (short(simulation=Simulation(cold_start_s=3.0, actuation_delay_s=0.3)), None),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("system"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), seed=SEEDS)
def test_any_scenario_looks_alike_under_any_allocation(
    files: Path, data: st.DataObject, seed: int
) -> None:
    check_episode(data.draw(scenarios(files)), seed)


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_kind_of_system_looks_alike(name: str) -> None:
    scenario, profile = SYSTEMS[name]
    for seed in (0, 1):
        check_episode(scenario, seed, profile)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("agent", UNTRAINED)
def test_every_controller_decides_alike(agent: str, system: str) -> None:
    scenario, profile = SYSTEMS[system]
    run = Run.of(agent, scenario, "sim", 1)
    episode, expected = (
        run_episode(each, make_controller(agent, known_controllers()), run)
        for each in (
            SimulatedSystem(scenario, 1, profile),
            make_system(scenario, 1, profile),
        )
    )
    check_same(episode.intervals, expected.intervals, "intervals")
    check_same(episode.summary, expected.summary, "summary")


def test_an_episode_without_requests_is_empty() -> None:
    quiet = short(duration_s=2.0, arrivals=dataclasses.replace(SHORT.arrivals, rate_rps=1e-6))
    check_episode(quiet, 0)


def test_what_a_controller_saw_stays_as_it_was() -> None:
    system = SimulatedSystem(SHORT, 3)
    for _ in range(5):
        system.step(Allocation(1, 2))
    view = system.view()
    assert view.first.queued_deadlines_s.size
    before = {f.name: np.copy(getattr(view, f.name)) for f in dataclasses.fields(view)[:-1]}
    view.delays_s[:] = 0.0
    system.step(Allocation(16, 16))
    del before["delays_s"]
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(view, name), value, err_msg=name)
    assert system.view().delays_s.all()


@pytest.mark.parametrize("allocation", [Allocation(17, 1), Allocation(1, 0), Allocation(1, 1, 99)])
def test_an_allocation_beyond_the_limits_is_refused(allocation: Allocation) -> None:
    with pytest.raises(ValueError, match="must be a whole number between 1 and 16"):
        SimulatedSystem(SHORT, 0).step(allocation)


def test_an_episode_that_is_over_goes_on_no_more() -> None:
    system = SimulatedSystem(short(duration_s=1.0), 0)
    system.step(Allocation(4, 4))
    with pytest.raises(RuntimeError, match="the episode is over"):
        system.step(Allocation(4, 4))


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ProfileError, match="yolov5x"):
        SimulatedSystem(short(profile="yolov5x"), 0)
