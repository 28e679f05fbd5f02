"""Random streams, and the batch simulator's memory and resets."""

import dataclasses

import numpy as np
import pytest
from core_doors import draw_uniforms
from differential import simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import SHORT

from sponge_env.core.rng import ARRIVALS, FADES, NETWORK, NOISE
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import Arrivals, RequestClass
from sponge_env.scenario.scenario import load_scenario
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import OBS_DIM

PURPOSES = {"arrivals": ARRIVALS, "network": NETWORK, "fades": FADES, "noise": NOISE}


@settings(deadline=None)
@given(seed=st.integers(0, 2**63 - 1), purpose=st.sampled_from(sorted(PURPOSES)))
def test_streams_are_those_of_numpy(seed, purpose):
    drawn = np.zeros(20)
    draw_uniforms(np.zeros(4, np.uint64), seed, PURPOSES[purpose], drawn)
    assert drawn.tolist() == stream(seed, purpose).random(20).tolist()


def test_memory_per_environment_is_small():
    batch = BatchSimulator(
        [load_scenario("paper")], np.zeros(100, np.int64), replicas_max=1, queue_capacity=1024
    )
    own = [a for a in batch._arrays if len(a) == 100] + [batch._metrics]
    assert sum(a.nbytes for a in own) / 100 + batch._arrays.traces.nbytes / 100 < 40_000


def test_requests_given_to_one_environment_leave_the_others_alone():
    kinds = (RequestClass(1.0, 0.7, 1e5), RequestClass(1.0, 1.5, 4e5))
    few = dataclasses.replace(SHORT, slo_s=0.7, classes=kinds)
    many = dataclasses.replace(few, name="many", arrivals=Arrivals("poisson", 150.0))
    batch = BatchSimulator([few, many], np.array([0, 0]))
    observations = np.zeros((2, OBS_DIM), np.float32)
    allocations = np.full((2, 3), 8)
    batch.reset(np.ones(2, np.bool_), np.array([3, 3]), observations)
    alone = [batch.step(allocations)[1][0] for _ in range(10)]
    small = batch._arrays.requests.nbytes
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
    assert metrics["time_s"].tolist() == [0.0, 2.0]
    assert batch.episode_intervals.tolist() == [1, 2]


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
