"""How fast the simulators are: batch, single environment, whole episodes.

    python -m benchmarks.throughput

The system is that of the scenario ``paper``: full observations, 4G traces made anew for every
episode, in-flight resizes, noise, random actions. Under other loads than 20 requests per
second its worker is as much faster as the load is higher, so that the same share of requests
meets its deadline everywhere. All simulators serve episodes of 60 intervals, resets included,
and each number is the best of several runs.
"""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from sponge_env.env.single import SpongeEnv
from sponge_env.results.layout import aligned
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Arrivals
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import control_named
from sponge_env.simulation.memory import allocations
from sponge_env.simulation.system import SimulatedSystem

LOADS_RPS = (10, 20, 100, 1000)
ENVS = (16, 256, 1024, 4096)
THREADS = (1, 2)
INTERVALS = 60
PAPER_RPS = 20
EPISODES = ("paper", "bursty", "mixed"), ("static-16", "sponge-ip", "fa2")


def make_scenario(rate_rps: int) -> Scenario:
    """Return the paper's system, made for another load."""
    changes = {
        "arrivals": Arrivals("constant", float(rate_rps)),
        "duration_s": float(INTERVALS),
        "simulation.service_scale": PAPER_RPS / rate_rps,
    }
    return changed(load_scenario("paper"), changes)


def best_s(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of several runs, after one to warm up."""
    return min(timeit.repeat(run, "import gc; gc.enable()", repeat=repeats + 1, number=1)[1:])


def steps_per_s(begin: Callable[[], Callable[[Any], object]], actions: Iterable[Any]) -> float:
    """Measure episodes, which begin with a call that returns what makes a step."""

    def episode() -> None:
        step = begin()
        for action in actions:
            step(action)

    return INTERVALS / best_s(episode, 3)


def batch_steps_per_s(scenario: Scenario, envs: int, threads: int) -> float:
    """Measure the batch simulator in environment steps per second, under random actions."""
    spec = make_spec(scenario, scenario_profile(scenario))
    control = control_named("vertical", spec)
    choices = control.spaces(spec)[0].nvec
    simulator = BatchSimulator(
        [scenario], np.zeros(envs, np.int64), threads=threads, obs_dim=control.obs_dim,
        queue_capacity=4096, replicas_max=1,
    )  # fmt: skip
    requested, _ = allocations(envs, len(spec.stages))
    actions = np.random.default_rng(0).integers(0, choices, (INTERVALS, envs, choices.size))
    observations = np.zeros((envs, control.obs_dim), np.float32)

    def begin() -> Callable[[Any], object]:
        simulator.reset(np.ones(envs, np.bool_), np.arange(envs), observations)

        def step(chosen: Any) -> None:
            control.write(chosen, requested)
            simulator.step(requested)

        return step

    with closing(simulator):
        return envs * steps_per_s(begin, actions)


def single_steps_per_s(scenario: Scenario) -> float:
    """Measure one environment, under random actions."""
    env = SpongeEnv(scenario)
    actions = np.random.default_rng(0).integers(0, 16, (INTERVALS, 2))

    def begin() -> Callable[[Any], object]:
        env.reset()
        return env.step

    with closing(env):
        return steps_per_s(begin, actions)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title, an aligned table and a blank line."""
    print("\n".join([f"{title}:\n", *aligned([header, *rows]), ""]))


def print_speeds() -> None:
    """Print environment steps per second."""
    rows = []
    for envs, threads in itertools.product(ENVS, THREADS):
        speeds = {
            # A large batch under a high load takes long and shows nothing new.
            rate: batch_steps_per_s(make_scenario(rate), envs, threads)
            for rate in LOADS_RPS
            if envs * rate <= max(ENVS) * 100
        }
        cells = (f"{speeds[rate]:,.0f}" if rate in speeds else "-" for rate in LOADS_RPS)
        rows.append([str(envs), str(threads), *cells])
    title = "Environment steps per second of the batch simulator"
    print_table(title, ["envs", "threads", *(f"{rate} rps" for rate in LOADS_RPS)], rows)


def print_single() -> None:
    """Print environment steps per second of one environment."""
    speed = single_steps_per_s(make_scenario(PAPER_RPS))
    print(f"One environment, Sponge-v0, at {PAPER_RPS} rps: {speed:,.0f} steps/s\n")


def print_episodes() -> None:
    """Print the shortest wall time of whole episodes, as suites and evaluations run them."""
    rows, controllers, seed = [], known_controllers(), EVALUATION_SEEDS
    for name, agent in itertools.product(*EPISODES):
        scenario = load_scenario(name)
        run = Run.of(agent, scenario, "sim", seed)

        def episode(scenario: Scenario = scenario, run: Run = run) -> None:
            system = SimulatedSystem(scenario, seed)
            run_episode(system, make_controller(run.agent, controllers), run)

        taken_s = best_s(episode, 5)
        per_interval_us = 1e6 * taken_s / scenario.intervals
        rows.append([name, agent, f"{1000 * taken_s:.0f}", f"{per_interval_us:.0f}"])
    title = "Episodes of 600 intervals, as suites and evaluations run them"
    print_table(title, ["scenario", "agent", "ms", "microseconds per interval"], rows)


if __name__ == "__main__":
    print_speeds()
    print_single()
    print_episodes()
