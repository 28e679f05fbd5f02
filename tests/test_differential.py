"""Batch simulator, single system and reference do the same; memory, resets and random streams."""

import dataclasses

import numpy as np
import pytest
from core_doors import draw_uniforms
from differential import allocations, check_equal, simulator
from drawn_scenarios import SEEDS, scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import SHORT, short

from sponge_env import Allocation, Scenario, load_scenario
from sponge_env.core.rng import ARRIVALS, FADES, NETWORK, NOISE
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Arrivals, Limits, Network, RequestClass, Serving, Simulation
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import OBS_DIM
from sponge_env.simulation.system import SimulatedSystem


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=SEEDS)
def test_any_scenario_runs_alike(files, data, seed):
    check_equal([data.draw(scenarios(files))], [seed])


@settings(max_examples=4, deadline=None)
@given(data=st.data(), seeds=st.lists(SEEDS, min_size=4, max_size=4))
def test_different_scenarios_run_side_by_side(files, data, seeds):
    check_equal([data.draw(scenarios(files, Limits(12, 9, 3), 0.5)) for _ in seeds], seeds)


def test_first_in_first_out_drops_by_the_first_rule_only():
    """With one class, too, where the order is the same as by deadline."""
    flood = dataclasses.replace(SHORT, arrivals=Arrivals("poisson", 60.0))
    for order in ("edf", "fifo"):
        check_equal([dataclasses.replace(flood, serving=Serving("unmeetable", order))], [1])


@pytest.mark.parametrize("total_cores", [None, 7, 16])
@pytest.mark.parametrize("delay_s", [0.0, 0.13])
def test_replicas_that_come_and_go_run_alike(delay_s, total_cores):
    """Busy ones that drain outlive several decisions here, so many are held at once."""
    scenario = Scenario(
        name="flapping", interval_s=0.1, duration_s=4.0, limits=Limits(2, 16, 8, total_cores),
        arrivals=Arrivals("poisson", 400.0), network=Network("none"),
        simulation=Simulation(noise=3.0, cold_start_s=0.0, actuation_delay_s=delay_s),
    )  # fmt: skip
    check_equal([scenario], [1])


@pytest.mark.parametrize("load", [0.3, 0.9])
def test_replicas_that_share_a_cpu_run_alike(files, load):
    """Quotas add up to eight times the CPU, so parts of it change with every batch."""
    scenario = Scenario(
        name="crowded", profile=str(files / "quota.json"), interval_s=0.5, duration_s=15.0,
        limits=Limits(16, 8, 8, total_cores=128), arrivals=Arrivals("poisson", load=load),
        network=Network("none"), simulation=Simulation(cold_start_s=0.5),
    )  # fmt: skip
    check_equal([scenario], [1])


def test_the_same_seeds_give_the_same_bytes_on_any_number_of_threads():
    scenario, runs = dataclasses.replace(load_scenario("bursty"), duration_s=20.0), []
    for threads in (1, 3):
        batch = simulator([scenario] * 5, threads=threads)
        first = np.zeros((5, OBS_DIM), np.float32)
        batch.reset(np.ones(5, np.bool_), np.arange(5), first)
        steps = [batch.step(np.tile(row, (5, 1))) for row in allocations(scenario, 0)]
        runs.append(first.tobytes() + b"".join(o.tobytes() + m.tobytes() for o, m in steps))
        batch.close()
    assert runs[0] == runs[1]


def test_a_machine_of_one_node_is_a_machine():
    """To the byte of all memory."""
    made = []
    for more in ({"total_cores": 16}, {"nodes": (16,)}):
        batch = simulator([short(limits=Limits(8, 8, 4, **more))])
        for _ in batch.play(np.ones(1, np.int64), lambda _: np.array([[3, 4, 4]])):
            pass
        made.append((batch.specs, [array.tobytes() for array in batch._arrays]))
    assert made[0] == made[1]


def test_an_episode_without_requests_is_empty():
    check_equal([short(duration_s=2.0, arrivals=Arrivals(rate_rps=1e-6))], [0])


def test_a_view_stays_as_it_was():
    system = SimulatedSystem(SHORT, 3)
    for _ in range(5):
        system.step(Allocation(1, 2))
    view = system.view()
    before, delays_s = repr(view), view.delays_s.copy()
    system.step(Allocation(16, 16))
    assert repr(view) == before
    view.delays_s[:] = view.first.queued_deadlines_s[:] = 0.0
    assert delays_s.all()
    assert system.view().delays_s.all()
    assert system.view().first.queued_deadlines_s.all()


PURPOSES = {"arrivals": ARRIVALS, "network": NETWORK, "fades": FADES, "noise": NOISE}


@settings(deadline=None)
@given(seed=st.integers(0, 2**63 - 1), purpose=st.sampled_from(sorted(PURPOSES)))
def test_streams_are_those_of_numpy(seed, purpose):
    drawn = np.zeros(20)
    draw_uniforms(np.zeros(4, np.uint64), seed, PURPOSES[purpose], drawn)
    assert drawn.tolist() == stream(seed, purpose).random(20).tolist()


def test_memory_per_environment_is_small():
    small, envs = {"replicas_max": 1, "queue_capacity": 1024}, np.zeros(100, np.int64)
    batch = BatchSimulator([load_scenario("paper")], envs, **small)
    own = [a for a in batch._arrays if len(a) == 100] + [batch._metrics]
    assert sum(a.nbytes for a in own) / 100 + batch._arrays.traces.nbytes / 100 < 40_000


def test_requests_given_to_one_environment_leave_the_others_alone():
    kinds = (RequestClass(1.0, 0.7, 1e5), RequestClass(1.0, 1.5, 4e5))
    few = dataclasses.replace(SHORT, slo_s=0.7, classes=kinds)
    many = dataclasses.replace(few, name="many", arrivals=Arrivals("poisson", 150.0))
    batch = BatchSimulator([few, many], np.array([0, 0]))
    observations, allocations = np.zeros((2, OBS_DIM), np.float32), np.full((2, 3), 8)
    batch.reset(np.ones(2, np.bool_), np.array([3, 3]), observations)
    alone, small = [batch.step(allocations)[1][0] for _ in range(10)], batch._arrays.requests.nbytes
    batch.reset(np.ones(2, np.bool_), np.array([3, 3]), observations)
    batch.step(allocations)
    batch.assignment[1] = 1
    batch.reset(np.array([False, True]), np.array([0, 3]), observations)
    assert batch._arrays.requests.nbytes > small
    assert [batch.step(allocations)[1][0] for _ in range(9)] == alone[1:]


def test_an_episode_that_is_over_stands_still():
    batch = simulator([dataclasses.replace(SHORT, duration_s=1.0), SHORT])
    batch.reset(np.ones(2, np.bool_), np.zeros(2, np.int64), np.zeros((2, OBS_DIM), np.float32))
    allocations = np.full((2, 3), 8)
    batch.step(allocations)
    assert batch.over.tolist() == [True, False]
    observations, metrics = batch.step(allocations)
    assert not observations[0].any()
    assert (metrics["time_s"].tolist(), batch.episode_intervals.tolist()) == ([0.0, 2.0], [1, 2])


def test_bad_resets_and_allocations_are_refused():
    batch = BatchSimulator([SHORT], np.zeros(2, np.int64))
    every, seeds, out = np.ones(2, np.bool_), np.zeros(2, np.int64), np.zeros((2, OBS_DIM), "f4")
    with pytest.raises(ConfigError, match="seed must be at least 0, not -1"):
        batch.reset(every, np.array([-1, 0]), out)
    with pytest.raises(ValueError, match="out must be of shape"):
        batch.reset(every, seeds, np.zeros((1, OBS_DIM), np.float32))
    with pytest.raises(ValueError, match="contiguous float32"):
        batch.reset(every, seeds, np.zeros((2, OBS_DIM)))
    with pytest.raises(ValueError, match="allocations must be of shape"):
        batch.step(np.ones((2, 2), np.int64))
    batch.assignment[1] = 1
    with pytest.raises(ConfigError, match="between 0 and 0"):
        batch.reset(every, seeds, out)
