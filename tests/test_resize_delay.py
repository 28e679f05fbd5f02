"""A resize that takes its time: what the core does, a view shows, and programs make of it."""

import dataclasses
import math

import numpy as np
import pytest

from agents.lookahead import SpongeJoint, SpongeMPC
from agents.rates import ForecastError
from agents.sponge_ip import SpongeIP
from sponge_env import Allocation, load_scenario
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.config import Serving, Simulation
from sponge_env.simulation.system import SimulatedSystem

DELAYED_S = 0.4


def delayed(name="paper", *, duration_s=20.0, **simulation):
    settings = {"actuation_delay_s": DELAYED_S, "noise": 0.0, **simulation}
    scenario = dataclasses.replace(load_scenario(name), duration_s=duration_s)
    own = Simulation(**settings)
    return dataclasses.replace(scenario, simulation=own, serving=Serving(drop="none"))


def in_force_s(scatter, seed):
    """Return how long each of many resizes takes."""
    scenario = delayed(duration_s=300.0, actuation_scatter=scatter)
    system = SimulatedSystem(dataclasses.replace(scenario, interval_s=5.0), seed)
    times_s = []
    for k in range(60):
        metrics = system.step(Allocation(8 + k % 2, 4))
        # 8 and 9 take turns, so the mean tells when the change was
        share = abs(metrics.cores - (8 + (k + 1) % 2 if k else system.spec.initial.cores))
        step = 1 if k else abs(8 - system.spec.initial.cores)
        times_s.append(5.0 * (1.0 - share / step) if step else math.nan)
    return times_s[1:]


def test_delays_scatter_around_the_median_that_controllers_know():
    exactly = in_force_s(0.0, seed=3)
    assert exactly == pytest.approx([DELAYED_S] * 59)
    times_s = np.array(in_force_s(0.5, seed=3))
    assert np.median(times_s) == pytest.approx(DELAYED_S, rel=0.25)
    assert np.std(np.log(times_s)) == pytest.approx(0.5, rel=0.25)
    assert in_force_s(0.5, seed=3) == times_s.tolist()
    assert in_force_s(0.5, seed=4) != times_s.tolist()


def test_no_resize_overtakes_another_and_none_is_lost():
    system = SimulatedSystem(
        delayed(duration_s=60.0, actuation_delay_s=2.0, actuation_scatter=1.0), 1
    )
    rng, asked_for = np.random.default_rng(0), []
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
    """Return core-seconds and, at 15 each, violations of an episode."""
    system = SimulatedSystem(scenario, seed)
    if not informed:
        system.spec = dataclasses.replace(system.spec, resize_delay_s=0.0)
    summary = run_episode(system, controller, Run("a", "s", "sim", seed)).summary
    return summary.core_seconds + 15 * summary.violations


@pytest.mark.parametrize("make", [SpongeIP, SpongeMPC, SpongeJoint])
def test_programs_that_know_the_delay_do_better(make):
    scenario = delayed("bursty", duration_s=100.0, actuation_delay_s=1.0)
    informed, uninformed = (cost(make(), scenario, 0, each) for each in (True, False))
    assert informed < 0.5 * uninformed


def test_a_forecast_error_is_what_it_missed_beyond_chance():
    rng = np.random.default_rng(0)
    steady, swinging, at_once = (ForecastError(1.0, delay_s) for delay_s in (0.5, 0.5, 0.0))
    rate_rps = 20.0
    for k in range(300):
        steady.add(float(rng.poisson(20.0)), 20.0)
        arrived = float(rng.poisson(rate_rps))
        swinging.add(arrived, rate_rps)
        at_once.add(arrived, rate_rps)
        rate_rps = 10.0 if (k // 4) % 2 else 40.0
    assert steady.variance < 0.02
    assert swinging.variance > 0.1
    assert at_once.variance == 0.0


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_load_that_has_been_there_may_come_back_before_a_resize_is_in_force(delay_s):
    error, surges = ForecastError(1.0, delay_s), []
    for rate_rps in [10.0] * 5 + [40.0] * 5 + [20.0] * 5:
        error.add(rate_rps, rate_rps)
        surges.append(error.surge)
    assert surges == [1.0] * 10 + ([2.0] if delay_s else [1.0]) * 5
