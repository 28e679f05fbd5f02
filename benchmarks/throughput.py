"""How fast the simulators are: batch, chain, single environment, whole episodes.

    python -m benchmarks.throughput

The system is that of the scenario ``paper``: full observations, 4G traces made anew for every
episode, in-flight resizes, noise, random actions. Under other loads than 20 requests per
second its worker is as much faster as the load is higher, so that the same share of requests
meets its deadline everywhere. All simulators serve episodes of 60 intervals, resets included,
and each number is the best of several runs.
"""

from __future__ import annotations

import itertools
import math
import sys
import timeit
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sponge_env.env.single import SpongeEnv
from sponge_env.results.layout import aligned
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Arrivals, Initial, Limits, Serving, Stage, Variant
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, stream
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import control_named
from sponge_env.simulation.memory import allocations
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.simulation.workload import draw_workload

LOADS_RPS = (10, 20, 100, 1000)
ENVS = (16, 256, 1024, 4096)
THREADS = (1, 2)
INTERVALS = 60
PAPER_RPS = 20
CHAIN_RPS = 10.0
EPISODES = ("paper", "bursty", "mixed"), ("static-16", "sponge-ip", "fa2")


def make_scenario(rate_rps: int) -> Scenario:
    """Return the paper's system, made for another load."""
    changes = {
        "arrivals": Arrivals("constant", float(rate_rps)),
        "duration_s": float(INTERVALS),
        "simulation.service_scale": PAPER_RPS / rate_rps,
    }
    return changed(load_scenario("paper"), changes)


def make_chain() -> Scenario:
    """Return three stages one after the other: each image has two objects on average."""
    limits = Limits(cores=4, batch=4, replicas=4)
    stages = [
        Stage(name, (Variant(profile),), limits=limits, initial=Initial(cores=4), **more)
        for name, profile, more in (
            ("detector", "video-detector", {"fan_out_shares": (0.1, 0.2, 0.4, 0.2, 0.1)}),
            ("classifier", "video-classifier", {}),
            ("text", "sentiment-text", {}),
        )
    ]
    paper = load_scenario("paper")
    return Scenario(
        "chain",
        slo_s=0.5,
        duration_s=float(INTERVALS),
        stages=tuple(stages),
        limits=Limits(cores=4, total_cores=32),
        arrivals=Arrivals("poisson", CHAIN_RPS),
        network=paper.network,
        simulation=paper.simulation,
        serving=Serving("expired"),
    )


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
    control = control_named("pipeline" if scenario.stages else "vertical", spec)
    choices = control.spaces(spec)[0].nvec
    simulator = BatchSimulator(
        [scenario], np.zeros(envs, np.int64), threads=threads, obs_dim=control.obs_dim,
        queue_capacity=4096, replicas_max=None if scenario.stages else 1,
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


def envs_steps_per_s(envs: SpongeEnv | VecEnv, shape: tuple[int, ...]) -> float:
    """Measure what takes actions of a shape, and close it."""
    actions = np.random.default_rng(0).integers(0, 16, (INTERVALS, *shape))
    envs.reset()

    def begin() -> Callable[[Any], object]:
        if isinstance(envs, SpongeEnv):  # others begin episodes by themselves
            envs.reset()
        return envs.step

    with closing(envs):
        return math.prod(shape[:-1]) * steps_per_s(begin, actions)


def simpy_steps_per_s(scenario: Scenario) -> float:
    """Measure the model in SimPy, which is a reference of the tests."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from reference.simpy_model import Server
    from reference.system import requests_of
    from reference.worker import noise_source

    profile = scenario_profile(scenario)
    spec = make_spec(scenario, profile)
    latency_s = profile.service_table_s(spec.first.batch_max, spec.first.cores_max)

    def begin() -> Callable[[Any], object]:
        noise = noise_source(profile.noise_quantiles, 1.0, stream(0, "noise"))
        server = Server(spec, requests_of(draw_workload(scenario, profile, 0)), latency_s, noise)
        return lambda chosen: server.step(*chosen)

    plan = np.random.default_rng(0).integers(1, 17, (INTERVALS, 2)).tolist()
    return steps_per_s(begin, plan)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title, an aligned table and a blank line."""
    print("\n".join([f"{title}:\n", *aligned([header, *rows]), ""]))


def print_speeds() -> float:
    """Print environment steps per second; return the largest under the paper's load."""
    rows, best = [], 0.0
    for envs, threads in itertools.product(ENVS, THREADS):
        speeds = {
            # A large batch under a high load takes long and shows nothing new.
            rate: batch_steps_per_s(make_scenario(rate), envs, threads)
            for rate in LOADS_RPS
            if envs * rate <= max(ENVS) * 100
        }
        best = max(best, speeds[PAPER_RPS])
        cells = (f"{speeds[rate]:,.0f}" if rate in speeds else "-" for rate in LOADS_RPS)
        rows.append([str(envs), str(threads), *cells])
    title = "Environment steps per second of the batch simulator"
    print_table(title, ["envs", "threads", *(f"{rate} rps" for rate in LOADS_RPS)], rows)
    return best


def print_chain(envs: int = 1024) -> None:
    """Print environment steps per second of a pipeline."""
    rows = [
        [str(envs), str(n), f"{batch_steps_per_s(make_chain(), envs, n):,.0f}"] for n in THREADS
    ]
    title = (
        "Environment steps per second of the batch simulator on a chain of three stages, whose\n"
        f"first leads to two tasks on average, at {CHAIN_RPS:g} requests per second"
    )
    print_table(title, ["envs", "threads", "steps/s"], rows)


def print_comparison(best: float, envs: int = 8) -> None:
    """Print the batch simulator against the alternatives."""
    scenario = make_scenario(PAPER_RPS)
    makers = [lambda: SpongeEnv(scenario)] * envs
    speeds = {
        f"SubprocVecEnv, {envs} envs": envs_steps_per_s(SubprocVecEnv(makers), (envs, 2)),
        f"DummyVecEnv, {envs} envs": envs_steps_per_s(DummyVecEnv(makers), (envs, 2)),
        "Sponge-v0, single": envs_steps_per_s(SpongeEnv(scenario), (2,)),
        "SimPy model, single": simpy_steps_per_s(scenario),
    }
    rows = [[name, f"{speed:,.0f}", f"{best / speed:,.0f}"] for name, speed in speeds.items()]
    title = f"The fastest of these, {best:,.0f} steps/s, against others at {PAPER_RPS} rps"
    print_table(title, ["simulator", "steps/s", "batch is faster by"], rows)


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
    fastest = print_speeds()
    print_chain()
    print_comparison(fastest)
    print_episodes()
