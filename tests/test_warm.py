"""Warm starts: steady versions of scenarios, and where controllers settle on them."""

import dataclasses

import numpy as np
import pytest
from scenarios import SHORT, Scripted

from baselines.rules import Static
from sponge_env.interfaces import Allocation
from sponge_env.run.rollout import COUNTED, SETTLING, equally_fast, settled, steady_scenario, warm
from sponge_env.scenario.config import Arrivals, RequestClass
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import draw_workload

WARM = dataclasses.replace(SHORT, start="warm", warmup_s=5.0)
PROFILE = scenario_profile(SHORT)


def test_a_cold_start_stays_as_it_is():
    assert warm(SHORT, Static(cores=6)) is SHORT


def test_the_most_frequent_allocation_at_the_end_is_taken():
    rare, often = Allocation(16, 1), Allocation(9, 2)
    assert settled(WARM, Scripted(rare, often, often), PROFILE) == often
    assert SETTLING % 2 == 0
    assert COUNTED % 2 == 0
    assert settled(WARM, Scripted(rare, often), PROFILE) == often, "of two the latest"


@pytest.mark.parametrize(
    "arrivals",
    [
        Arrivals(kind="bursty", rate_rps=20.0),
        Arrivals(kind="flash-crowd", rate_rps=20.0),
        Arrivals(kind="diurnal", load=0.3),
    ],
    ids=lambda arrivals: arrivals.kind,
)
def test_steady_means_equal_gaps_at_the_mean_rate(arrivals):
    steady = steady_scenario(dataclasses.replace(WARM, arrivals=arrivals), PROFILE)
    sent_s = np.sort(draw_workload(steady, PROFILE, 0).sent_s)
    expected_s = 1 / rate_rps(dataclasses.replace(WARM, arrivals=arrivals), PROFILE)
    np.testing.assert_allclose(np.diff(sent_s), expected_s)
    assert (steady.intervals, steady.simulation.noise) == (SETTLING, 0.0)


def test_steady_means_no_fades():
    network = dataclasses.replace(WARM.network, fade_every_s=60.0)
    fading = dataclasses.replace(WARM, network=network)
    assert steady_scenario(fading, PROFILE) == steady_scenario(WARM, PROFILE)


def test_all_transfers_have_the_bandwidth_of_the_mean_transfer_time():
    classes = (RequestClass(1.0, 1.0, 100_000.0), RequestClass(1.0, 2.0, 400_000.0))
    steady = steady_scenario(dataclasses.replace(WARM, classes=classes), PROFILE)
    moving = draw_workload(steady, PROFILE, 0)
    base_s = steady.network.base_delay_s
    level = equally_fast(moving, base_s)
    bandwidth = level.payload_bytes / (level.arrival_s - level.sent_s - base_s)
    np.testing.assert_allclose(bandwidth, bandwidth[0])
    assert (level.arrival_s - level.sent_s).mean() == pytest.approx(
        (moving.arrival_s - moving.sent_s).mean()
    )
    assert np.all(np.diff(level.arrival_s) >= 0)
    by_id, before = np.argsort(level.id), np.argsort(moving.id)
    np.testing.assert_array_equal(level.deadline_s[by_id], moving.deadline_s[before])
