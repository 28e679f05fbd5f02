"""Episodes of a system: what adds up, what a controller is shown, warm starts, slow resizes."""

import dataclasses
import math

import numpy as np
import pytest
from fake_worker import FakeWorker
from reference import worker_settings
from scenarios import SHORT, Scripted, short

from agents.lookahead import SpongeJoint, SpongeMPC
from agents.rates import ForecastError
from agents.sponge_ip import SpongeIP
from baselines.rules import Static
from sponge_env import Allocation, load_scenario, make_system
from sponge_env.errors import ConfigError
from sponge_env.latency import latency_quantile_s
from sponge_env.live.system import LiveSystem
from sponge_env.run import rollout
from sponge_env.scenario.config import Arrivals, RequestClass, Serving, Simulation
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.summary import (
    latency_quantiles_s,
    summarise_accuracy,
    summarise_requests,
)
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import draw_workload

RUN = rollout.Run("scripted", "short", "sim", 0)


@pytest.mark.parametrize(
    "allocation", [Allocation(0, 1), Allocation(17, 1), Allocation(1, 17), Allocation(2.5, 1)]
)
def test_allocations_outside_the_limits_are_refused(allocation):
    system = make_system(SHORT, seed=0)
    with pytest.raises(ValueError, match=r"allocation\.(cores|batch) must be .* between 1 and 16"):
        system.step(allocation)


def test_an_episode_ends_with_its_duration():
    system = make_system(short(duration_s=2.0), seed=0)
    for _ in range(2):
        assert not system.done
        system.step(Allocation(1, 1))
    assert system.done
    with pytest.raises(RuntimeError, match="the episode is over"):
        system.step(Allocation(1, 1))
    with pytest.raises(ConfigError, match="the seed must be at least 0, not -1"):
        SimulatedSystem(SHORT, -1)


class Interrupted(Scripted):
    def decide(self, view):
        if len(self.views) == 5:
            raise KeyboardInterrupt
        return super().decide(view)


def test_an_interrupted_episode_is_summed_up_over_what_has_ended():
    system = SimulatedSystem(short(arrivals=Arrivals(rate_rps=30.0)), 0)
    episode = rollout.play(system, Interrupted(Allocation(1, 1)), RUN)
    summary = episode.summary
    ended = summary.on_time + summary.late + summary.dropped
    assert summary.partial
    assert summary.duration_s == len(episode.intervals) == 5
    assert summary.queued > 10
    assert summary.offered == ended + summary.queued + summary.running
    assert summary.violation_rate == (summary.late + summary.dropped) / ended
    assert summary.effective_accuracy == summary.on_time / ended
    assert math.isinf(summary.latency_p99_s) == (summary.dropped > 0)


def test_time_stands_still_while_a_controller_prepares():
    """It may compile something, which on a real worker would take seconds of the episode."""
    happened = []

    class Preparing(Scripted):
        def reset(self, spec, seed):
            happened.append("reset")
            super().reset(spec, seed)

        def decide(self, view):
            happened.append("decide")
            return super().decide(view)

    profile = load_profile("yolov5s")

    def make_worker(spec):
        worker = FakeWorker(**worker_settings(SHORT, profile, spec, 0))
        worker.diary = happened
        return worker

    live = LiveSystem(SHORT, 0, make_worker, profile)
    rollout.run_episode(live, Preparing(Allocation(8, 8)), RUN)
    still = ["hold", "reset", *["decide"] * rollout.REHEARSED, "reset", "release"]
    assert happened[: len(still) + 2] == [*still, "decide", "resize 8 x 1"]
    assert "hold" not in happened[1:]


OUTCOME = np.array(["on_time", "on_time", "late", "dropped", "failed", "queued", "running"])
LATENCY_S = np.array([0.1, 0.3, 0.9, math.nan, math.nan, math.nan, math.nan])


def test_rates_are_of_what_has_ended():
    hopeless = np.array([False, False, True, False, True, True, False])
    summary = summarise_requests(OUTCOME, LATENCY_S, hopeless)
    assert (summary["offered"], summary["violations"], summary["hopeless"]) == (7, 3, 3)
    assert (summary["violation_rate"], summary["avoidable_violation_rate"]) == (3 / 5, 1 / 5)
    assert (summary["hopeless_rate"], summary["latency_mean_s"]) == (2 / 5, pytest.approx(1.3 / 3))
    assert (summary["latency_p50_s"], summary["latency_p99_s"]) == (0.9, math.inf)


def test_accuracy_counts_answers_in_time_only():
    accuracy = np.array([0.7, 0.9, 0.8, math.nan, math.nan, math.nan, math.nan])
    found = summarise_accuracy(OUTCOME, accuracy, OUTCOME == "dropped")
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["effective_accuracy"] == pytest.approx(1.6 / 5)
    assert found["more_cores_rate"] == 1 / 5


def test_nothing_offered_has_no_latency():
    nothing = summarise_requests(OUTCOME[:0], LATENCY_S[:0], np.zeros(0, np.bool_))
    assert (nothing["offered"], nothing["violation_rate"]) == (0, 0.0)
    assert math.isnan(nothing["latency_p99_s"])


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_an_interval_has_the_quantiles_of_an_episode(probability):
    rng = np.random.default_rng(0)
    for answered, dropped in rng.integers(0, 9, (40, 2)).tolist():
        latency_s = np.sort(rng.uniform(0, 1, answered))
        outcome = np.array(["late"] * answered + ["failed"] * dropped, "U9")
        padded_s = np.append(latency_s, np.zeros(dropped))
        (found_s,) = latency_quantiles_s(outcome, padded_s, [probability])
        expected_s = latency_quantile_s(latency_s.tolist(), dropped, probability)
        assert found_s == pytest.approx(expected_s, nan_ok=True)


WARM = dataclasses.replace(SHORT, start="warm", warmup_s=5.0)
PROFILE = scenario_profile(SHORT)


def test_a_cold_start_stays_as_it_is():
    assert rollout.warm(SHORT, Static(cores=6)) is SHORT


def test_the_most_frequent_allocation_at_the_end_is_taken():
    rare, often = Allocation(16, 1), Allocation(9, 2)
    assert rollout.settled(WARM, Scripted(rare, often, often), PROFILE) == often
    assert (rollout.SETTLING % 2, rollout.COUNTED % 2) == (0, 0)
    assert rollout.settled(WARM, Scripted(rare, often), PROFILE) == often, "of two the latest"


MOVING = Arrivals("bursty", 20.0), Arrivals("flash-crowd", 20.0), Arrivals("diurnal", load=0.3)


@pytest.mark.parametrize("arrivals", MOVING, ids=lambda arrivals: arrivals.kind)
def test_steady_means_equal_gaps_at_the_mean_rate_and_no_fades(arrivals):
    moving = dataclasses.replace(WARM, arrivals=arrivals)
    steady = rollout.steady_scenario(moving, PROFILE)
    sent_s = np.sort(draw_workload(steady, PROFILE, 0).sent_s)
    np.testing.assert_allclose(np.diff(sent_s), 1 / rate_rps(moving, PROFILE))
    assert (steady.intervals, steady.simulation.noise) == (rollout.SETTLING, 0.0)
    fading = dataclasses.replace(WARM.network, fade_every_s=60.0)
    assert rollout.steady_scenario(dataclasses.replace(moving, network=fading), PROFILE) == steady


def test_all_transfers_have_the_bandwidth_of_the_mean_transfer_time():
    classes = (RequestClass(1.0, 1.0, 100_000.0), RequestClass(1.0, 2.0, 400_000.0))
    steady = rollout.steady_scenario(dataclasses.replace(WARM, classes=classes), PROFILE)
    moving, base_s = draw_workload(steady, PROFILE, 0), steady.network.base_delay_s
    level = rollout.equally_fast(moving, base_s)
    bandwidth = level.payload_bytes / (level.arrival_s - level.sent_s - base_s)
    np.testing.assert_allclose(bandwidth, bandwidth[0])
    level_s, moving_s = ((each.arrival_s - each.sent_s).mean() for each in (level, moving))
    assert level_s == pytest.approx(moving_s)
    assert np.all(np.diff(level.arrival_s) >= 0)
    by_id, before = np.argsort(level.id), np.argsort(moving.id)
    np.testing.assert_array_equal(level.deadline_s[by_id], moving.deadline_s[before])


DELAYED_S = 0.4


def delayed(name="paper", *, duration_s=20.0, **simulation):
    own = Simulation(**{"actuation_delay_s": DELAYED_S, "noise": 0.0, **simulation})
    changes = {"duration_s": duration_s, "simulation": own, "serving": Serving(drop="none")}
    return dataclasses.replace(load_scenario(name), **changes)


def in_force_s(scatter, seed):
    scenario = delayed(duration_s=300.0, actuation_scatter=scatter)
    system, times_s = SimulatedSystem(dataclasses.replace(scenario, interval_s=5.0), seed), []
    for k in range(60):
        metrics = system.step(Allocation(8 + k % 2, 4))
        # 8 and 9 take turns, so the mean tells when the change was
        share = abs(metrics.cores - (8 + (k + 1) % 2 if k else system.spec.initial.cores))
        step = 1 if k else abs(8 - system.spec.initial.cores)
        times_s.append(5.0 * (1.0 - share / step) if step else math.nan)
    return times_s[1:]


def test_delays_scatter_around_the_median_that_controllers_know():
    assert in_force_s(0.0, seed=3) == pytest.approx([DELAYED_S] * 59)
    times_s = np.array(in_force_s(0.5, seed=3))
    assert np.median(times_s) == pytest.approx(DELAYED_S, rel=0.25)
    assert np.std(np.log(times_s)) == pytest.approx(0.5, rel=0.25)
    assert in_force_s(0.5, seed=3) == times_s.tolist()
    assert in_force_s(0.5, seed=4) != times_s.tolist()


def test_no_resize_overtakes_another_and_none_is_lost():
    scattered = delayed(duration_s=60.0, actuation_delay_s=2.0, actuation_scatter=1.0)
    system, rng, asked_for = SimulatedSystem(scattered, 1), np.random.default_rng(0), []
    for _ in range(60):
        asked_for.append(int(rng.integers(1, 17)))
        system.step(Allocation(asked_for[-1], 4))
        pending = system.view().first.pending
        starts_s = [starts_s for starts_s, _ in pending]
        assert starts_s == sorted(starts_s)
        assert all(starts_s > 0 for starts_s in starts_s)
        on_their_way = [cores for _, cores in pending]
        assert on_their_way == asked_for[len(asked_for) - len(on_their_way) :]


def cost(controller, scenario, seed, informed):
    system = SimulatedSystem(scenario, seed)
    if not informed:
        system.spec = dataclasses.replace(system.spec, resize_delay_s=0.0)
    summary = rollout.run_episode(system, controller, rollout.Run("a", "s", "sim", seed)).summary
    return summary.core_seconds + 15 * summary.violations


@pytest.mark.parametrize("make", [SpongeIP, SpongeMPC, SpongeJoint])
def test_programs_that_know_the_delay_do_better(make):
    scenario = delayed("bursty", duration_s=100.0, actuation_delay_s=1.0)
    informed, uninformed = (cost(make(), scenario, 0, each) for each in (True, False))
    assert informed < 0.5 * uninformed


def test_a_forecast_error_is_what_it_missed_beyond_chance():
    rng = np.random.default_rng(0)
    steady, swinging, at_once = (ForecastError(1.0, delay_s) for delay_s in (0.5, 0.5, 0.0))
    load_rps = 20.0
    for k in range(300):
        steady.add(float(rng.poisson(20.0)), 20.0)
        arrived = float(rng.poisson(load_rps))
        swinging.add(arrived, load_rps)
        at_once.add(arrived, load_rps)
        load_rps = 10.0 if (k // 4) % 2 else 40.0
    assert steady.variance < 0.02
    assert swinging.variance > 0.1
    assert at_once.variance == 0.0


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_load_that_has_been_there_may_come_back_before_a_resize_is_in_force(delay_s):
    error, surges = ForecastError(1.0, delay_s), []
    for load_rps in [10.0] * 5 + [40.0] * 5 + [20.0] * 5:
        error.add(load_rps, load_rps)
        surges.append(error.surge)
    assert surges == [1.0] * 10 + ([2.0] if delay_s else [1.0]) * 5
