"""Schedules: to replay in the real system what the oracle has found."""

import itertools

import numpy as np
from scenarios import Scripted

from sponge_env import make_system
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import changed
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.memory import ledger_columns
from sponge_env.simulation.summary import VIOLATIONS
from sponge_env.simulation.workload import draw_workload


def noise_free(scenario):
    """Return the scenario with a service that takes exactly its usual time."""
    return changed(scenario, {"simulation.noise": 0.0})


def replay(scenario, profile, seed, schedule):
    """Run a schedule on the simulated system without noise."""
    system = make_system(noise_free(scenario), seed, profile=profile)
    return run_episode(system, Scripted(*schedule), Run.of("oracle", scenario, "sim", seed)).summary


def replay_all(scenario, seed, replicas):
    """Run all schedules with at most so many replicas: their violations and core-seconds."""
    profile, limits, quiet = scenario_profile(scenario), scenario.limits, noise_free(scenario)
    largest = limits.cores, limits.batch, replicas
    choices = itertools.product(*(range(1, most + 1) for most in largest))
    allocations = [each for each in choices if each[0] * each[2] <= limits.machine_cores]
    schedules = np.array(list(itertools.product(allocations, repeat=scenario.intervals)))
    count, workload = len(schedules), draw_workload(quiet, profile, seed)
    simulator = BatchSimulator([quiet], np.zeros(count, np.int64), workloads=[workload] * count)
    intervals, core_seconds = iter(range(scenario.intervals)), np.zeros(count)
    played = simulator.play(np.full(count, seed), lambda _: schedules[:, next(intervals)])
    for interval, metrics in enumerate(played, 1):
        counts = interval * scenario.interval_s > scenario.count_from_s + 1e-9
        core_seconds += counts * metrics["core_seconds"]
    simulator.drain()
    violations = []
    for i in range(count):
        arrays = simulator.only(i)
        columns = ledger_columns(arrays, workload.first(int(arrays.envs["sent"][0]) - 1))
        late = np.isin(columns["outcome"], VIOLATIONS)
        violations.append(int((late & (columns["arrival_s"] >= scenario.count_from_s)).sum()))
    return list(zip(violations, core_seconds.tolist(), strict=True))
