"""How fast the simulators are: batch, chain, single environment, whole episodes.

    python benchmarks/throughput.py [--quick]

The system is that of the scenario ``paper``: full observations, 4G traces made anew for every
episode, in-flight resizes, noise, random actions. Under other loads than 20 requests per
second its worker is as much faster as the load is higher, so that the same share of requests
meets its deadline everywhere. All simulators serve episodes of 60 intervals, resets included,
and each number is the best of several runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
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
from sponge_env.scenario.config import Arrivals, Initial, Limits, Serving, Stage, Variant
from sponge_env.scenario.profile import load_profile, save_profile
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


def make_scenario(folder: Path, rate_rps: int) -> Scenario:
    """Return the paper's system, made for another load."""
    profile, slower = load_profile("yolov5s"), PAPER_RPS / rate_rps
    fit = {
        name: getattr(profile.latency, name) * slower
        for name in ("gamma_s", "delta_s", "epsilon_s", "eta_s")
    }
    latency = dataclasses.replace(profile.latency, **fit)
    latency_s = tuple(tuple(cell * slower for cell in row) for row in profile.latency_s)
    path = folder / f"yolov5s-{rate_rps}.json"
    save_profile(dataclasses.replace(profile, latency=latency, latency_s=latency_s), path)
    arrivals = Arrivals("constant", float(rate_rps))
    changes = {"profile": str(path), "duration_s": float(INTERVALS), "arrivals": arrivals}
    return dataclasses.replace(load_scenario("paper"), **changes)


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
    changes = {
        "name": "chain",
        "slo_s": 0.5,
        "duration_s": float(INTERVALS),
        "stages": tuple(stages),
        "limits": Limits(cores=4, total_cores=32),
        "arrivals": Arrivals("poisson", CHAIN_RPS),
        "serving": Serving("expired"),
    }
    return dataclasses.replace(load_scenario("paper"), **changes)


def best_s(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of several runs, after one to warm up."""
    return min(timeit.repeat(run, "import gc; gc.enable()", repeat=repeats + 1, number=1)[1:])


def steps_per_s(
    begin: Callable[[], Callable[[Any], object]], actions: Iterable[Any], repeats: int
) -> float:
    """Measure episodes, which begin with a call that returns what makes a step."""

    def episode() -> None:
        step = begin()
        for action in actions:
            step(action)

    return INTERVALS / best_s(episode, repeats)


def batch_steps_per_s(scenario: Scenario, envs: int, threads: int, repeats: int) -> float:
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
        return envs * steps_per_s(begin, actions, repeats)


def single_steps_per_s(scenario: Scenario, repeats: int) -> float:
    """Measure one ``Sponge-v0``."""
    env = SpongeEnv(scenario)

    def begin() -> Callable[[Any], object]:
        env.reset(seed=0)
        return env.step

    return steps_per_s(begin, np.random.default_rng(0).integers(0, 16, (INTERVALS, 2)), repeats)


def vec_env_steps_per_s(envs: VecEnv, repeats: int) -> float:
    """Measure a vectorized environment of Stable-Baselines3, and close it."""
    actions = np.random.default_rng(0).integers(0, 16, (INTERVALS, envs.num_envs, 2))
    envs.seed(0)
    envs.reset()
    with closing(envs):
        return envs.num_envs * steps_per_s(lambda: envs.step, actions, repeats)


def simpy_steps_per_s(scenario: Scenario, repeats: int) -> float:
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
    return steps_per_s(begin, plan, repeats)


def episode_s(scenario: Scenario, agent: str, repeats: int) -> float:
    """Return the shortest wall time of an episode of an agent, its making included."""
    controllers, seed = known_controllers(), EVALUATION_SEEDS
    run = Run.of(agent, scenario, "sim", seed)

    def episode() -> None:
        system = SimulatedSystem(scenario, seed)
        run_episode(system, make_controller(agent, controllers), run)

    return best_s(episode, repeats)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table and a blank line."""
    print("\n".join([*aligned([header, *rows]), ""]))


def print_speeds(scenarios: dict[int, Scenario], sizes: Sequence[int], repeats: int) -> float:
    """Print environment steps per second; return the largest under the paper's load."""
    rows, best = [], 0.0
    for envs in sizes:
        for threads in THREADS:
            speeds = {
                # A large batch under a high load takes long and shows nothing new.
                rate: batch_steps_per_s(scenario, envs, threads, repeats)
                for rate, scenario in scenarios.items()
                if envs * rate <= max(sizes) * 100 or len(scenarios) == 1
            }
            best = max(best, speeds[PAPER_RPS])
            cells = (f"{speeds[rate]:,.0f}" if rate in speeds else "-" for rate in scenarios)
            rows.append([str(envs), str(threads), *cells])
    print("Environment steps per second of the batch simulator:\n")
    print_table(["envs", "threads", *(f"{rate} rps" for rate in scenarios)], rows)
    return best


def print_chain(envs: int, repeats: int) -> None:
    """Print environment steps per second of a pipeline."""
    scenario = make_chain()
    speeds = [batch_steps_per_s(scenario, envs, threads, repeats) for threads in THREADS]
    rows = [[str(envs), str(n), f"{speed:,.0f}"] for n, speed in zip(THREADS, speeds, strict=True)]
    print("Environment steps per second of the batch simulator on a chain of three stages, whose")
    print(f"first leads to two tasks on average, at {CHAIN_RPS:g} requests per second:\n")
    print_table(["envs", "threads", "steps/s"], rows)


def print_comparison(scenario: Scenario, best: float, envs: int, repeats: int) -> None:
    """Print the batch simulator against the alternatives."""
    makers = [lambda: SpongeEnv(scenario)] * envs
    speeds = {
        f"SubprocVecEnv, {envs} envs": vec_env_steps_per_s(SubprocVecEnv(makers), repeats),
        f"DummyVecEnv, {envs} envs": vec_env_steps_per_s(DummyVecEnv(makers), repeats),
        "Sponge-v0, single": single_steps_per_s(scenario, repeats),
        "SimPy model, single": simpy_steps_per_s(scenario, repeats),
    }
    rows = [[name, f"{speed:,.0f}", f"{best / speed:,.0f}"] for name, speed in speeds.items()]
    print(f"The fastest of these, {best:,.0f} steps/s, against others at {PAPER_RPS} rps:\n")
    print_table(["simulator", "steps/s", "batch is faster by"], rows)


def print_episodes(quick: bool) -> None:
    """Print what whole episodes take, as suites and evaluations run them."""
    rows = []
    for name in ("paper", "bursty", "mixed")[: 1 if quick else 3]:
        scenario = load_scenario(name)
        for agent in ("static-16", "sponge-ip", "fa2")[: 1 if quick else 3]:
            taken_s = episode_s(scenario, agent, 1 if quick else 5)
            per_interval_us = 1e6 * taken_s / scenario.intervals
            rows.append([name, agent, f"{1000 * taken_s:.0f}", f"{per_interval_us:.0f}"])
    print("Episodes of 600 intervals, as suites and evaluations run them:\n")
    print_table(["scenario", "agent", "ms", "microseconds per interval"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the batch simulator.")
    parser.add_argument("--quick", action="store_true", help="fewer cells, a few seconds")
    quick = parser.parse_args(argv).quick
    loads, sizes, repeats = ((PAPER_RPS,), (256,), 2) if quick else (LOADS_RPS, ENVS, 3)
    with tempfile.TemporaryDirectory() as folder:
        scenarios = {rate: make_scenario(Path(folder), rate) for rate in loads}
        best = print_speeds(scenarios, sizes, repeats)
        print_chain(256 if quick else 1024, repeats)
        print_comparison(scenarios[PAPER_RPS], best, 2 if quick else 8, repeats)
    print_episodes(quick)


if __name__ == "__main__":
    main()
