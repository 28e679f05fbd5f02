"""Schedules as controllers: to replay in the real system what the oracle has found."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from sponge_env.env.factory import make_system
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.metrics import EpisodeMetrics
from sponge_env.run.rollout import Run, run_episode
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile


class ScheduleController:
    """Asks for one allocation after the other, whatever it sees."""

    def __init__(self, schedule: Sequence[Allocation]) -> None:
        """Take the allocation of each interval."""
        self._schedule = schedule
        self._next = 0

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Begin with the first."""
        self._next = 0

    def decide(self, view: SystemView) -> Allocation:
        """Return the next."""
        self._next += 1
        return self._schedule[self._next - 1]


def noise_free(scenario: Scenario) -> Scenario:
    """Return the scenario with a service that takes exactly its usual time."""
    simulation = dataclasses.replace(scenario.simulation, noise=0.0)
    return dataclasses.replace(scenario, simulation=simulation)


def replay(
    scenario: Scenario, profile: Profile, seed: int, schedule: Sequence[Allocation]
) -> EpisodeMetrics:
    """Run a schedule on the simulated system without noise.

    Raises:
        SpongeError: The scenario cannot be used.
    """
    system = make_system(noise_free(scenario), seed, profile=profile)
    run = Run.of("oracle", scenario, "sim", seed)
    return run_episode(system, ScheduleController(schedule), run).summary


def replay_all(scenario: Scenario, seed: int, replicas: int) -> list[EpisodeMetrics]:
    """Run all schedules with at most so many replicas."""
    profile, limits = scenario_profile(scenario), scenario.limits
    choices = itertools.product(
        range(1, limits.cores + 1), range(1, limits.batch + 1), range(1, replicas + 1)
    )
    allocations = [
        Allocation(cores, batch, count)
        for cores, batch, count in choices
        if cores * count <= limits.machine_cores
    ]
    schedules = itertools.product(allocations, repeat=scenario.intervals)
    return [replay(scenario, profile, seed, schedule) for schedule in schedules]
