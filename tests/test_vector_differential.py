"""The batch simulator does what the reference system does, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from differential import allocations, check_equal, simulator
from drawn_scenarios import SEEDS, scenarios, write_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import make_system

from sponge_env.interfaces import Allocation
from sponge_env.scenario.config import (
    Arrivals,
    Limits,
    Network,
    Serving,
    Simulation,
)
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.simulation.encoding import OBS_DIM


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("vector"))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), seed=SEEDS)
def test_any_scenario_runs_alike(files: Path, data: st.DataObject, seed: int) -> None:
    check_equal([data.draw(scenarios(files))], [seed])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), seeds=st.lists(SEEDS, min_size=4, max_size=4))
def test_different_scenarios_run_side_by_side(
    files: Path, data: st.DataObject, seeds: list[int]
) -> None:
    limits = Limits(12, 9, 3)
    batch = [data.draw(scenarios(files, limits, 0.5)) for _ in seeds]
    check_equal(batch, seeds)


@pytest.mark.parametrize("replicas_max", [1, 3, 16])
@pytest.mark.parametrize(
    "serving",
    [Serving("none"), Serving("expired"), Serving("late", 0.25)],
    ids=lambda s: s.drop,
)
@pytest.mark.parametrize("name", ["paper", "bursty", "local"])
def test_shipped_scenarios_run_alike(
    files: Path, name: str, serving: Serving, replicas_max: int
) -> None:
    scenario = load_scenario(name)
    changes = {"profile": str(files / "quota.json")} if name == "local" else {}
    scenario = dataclasses.replace(
        scenario,
        duration_s=40.0,
        serving=serving,
        **changes,  # type: ignore[arg-type]
    )
    check_equal([scenario] * 2, [0, 7], replicas_max)


@pytest.mark.parametrize("trace", ["arrivals-bursty-600s", "arrivals-day-600s"])
def test_recorded_arrivals_run_alike(trace: str) -> None:
    arrivals = [Arrivals("trace", file=trace), Arrivals("trace", 40.0, file=trace)]
    scenario = dataclasses.replace(load_scenario("bursty"), duration_s=60.0)
    check_equal([dataclasses.replace(scenario, arrivals=a) for a in arrivals], [3, 4], 2)


@pytest.mark.parametrize("total_cores", [None, 7, 16])
@pytest.mark.parametrize("delay_s", [0.0, 0.13])
def test_replicas_that_come_and_go_run_alike(delay_s: float, total_cores: int | None) -> None:
    """Busy ones that drain outlive several decisions here, so many are held at once."""
    scenario = Scenario(
        name="flapping",
        interval_s=0.1,
        duration_s=4.0,
        limits=Limits(2, 16, 8, total_cores),
        arrivals=Arrivals("poisson", 400.0),
        network=Network("none"),
        simulation=Simulation(noise=3.0, cold_start_s=0.0, actuation_delay_s=delay_s),
    )
    check_equal([scenario], [1])


def test_replicas_that_share_a_cpu_run_alike(files: Path) -> None:
    """Quotas add up to eight times the CPU, so parts of it change with every batch."""
    scenario = Scenario(
        name="crowded",
        profile=str(files / "quota.json"),
        interval_s=0.5,
        duration_s=20.0,
        limits=Limits(16, 8, 8, total_cores=128),
        arrivals=Arrivals("poisson", load=0.9),
        network=Network("none"),
        simulation=Simulation(cold_start_s=0.5),
    )
    check_equal([scenario] * 2, [1, 2])


@pytest.mark.parametrize("total_cores", [16, 256])
def test_there_is_room_for_all_that_drain_on_a_full_cpu(total_cores: int) -> None:
    """Whoever drains slows the others down, so that more and more are there at once."""
    scenario = dataclasses.replace(
        load_scenario("local"),
        profile="lite0",
        duration_s=40.0,
        arrivals=Arrivals("constant", 400.0),
        network=Network("none"),
        simulation=Simulation(cold_start_s=0.0),
        limits=Limits(16, 16, 16, total_cores),
    )
    batch, system = simulator([scenario]), make_system(scenario, 1)
    batch.reset(np.ones(1, np.bool_), np.array([1]), np.zeros((1, OBS_DIM), np.float32))
    for interval in range(scenario.intervals):
        allocation = Allocation(1, 16, 1 if interval % 2 else 16)
        expected = system.step(allocation)
        _, metrics = batch.step(np.array([[allocation.cores, 16, allocation.replicas]]))
        assert metrics["core_seconds"][0] == expected.core_seconds
        assert metrics["on_time"][0] == expected.on_time


@pytest.mark.parametrize("trace", ["wrapping.csv", "stalls.csv"])
@pytest.mark.parametrize("start", ["beginning", "random"])
def test_a_trace_shorter_than_the_episode_starts_again(files: Path, trace: str, start: str) -> None:
    scenario = dataclasses.replace(
        load_scenario("paper"),
        duration_s=30.0,
        interval_s=0.5,
        network=Network(str(files / trace), start),  # type: ignore[arg-type]
    )
    check_equal([scenario] * 3, [0, 1, 2], 1)


@pytest.mark.parametrize("name", ["paper", "bursty", "flash-crowd", "deep-fade", "diurnal"])
def test_whole_episodes_run_alike(name: str) -> None:
    check_equal([load_scenario(name)], [0], 1)


def test_the_same_seeds_give_the_same_bytes() -> None:
    scenario = dataclasses.replace(load_scenario("bursty"), duration_s=20.0)
    plan = np.array(allocations(scenario, 0))
    runs = []
    for threads in (1, 3):
        batch = simulator([scenario] * 5, threads=threads)
        first = np.zeros((5, OBS_DIM), np.float32)
        batch.reset(np.ones(5, np.bool_), np.arange(5), first)
        steps = [batch.step(np.tile(row, (5, 1))) for row in plan]
        runs.append(first.tobytes() + b"".join(o.tobytes() + m.tobytes() for o, m in steps))
        batch.close()
    assert runs[0] == runs[1]
