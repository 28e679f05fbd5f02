"""Plays four short scenarios on the core; ``python tests/played.py`` prints what came out.

With ``NUMBA_DISABLE_JIT=1`` the core runs as ordinary Python, see ``test_interpreted.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from differential import allocations, ledger_of, simulator
from fake_worker import FakeWorker
from reference import worker_settings
from scenarios import QUOTA_PROFILE, short

from sponge_env.core.compiled import INTERPRETED
from sponge_env.core.records import METRICS
from sponge_env.interfaces import Allocation, SystemSpec
from sponge_env.live.system import LiveSystem
from sponge_env.metrics import IntervalMetrics, names
from sponge_env.scenario.config import Arrivals, Limits, Network, RequestClass, Serving, Simulation
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.encoding import JOINT
from sponge_env.simulation.system import SimulatedSystem, System

CLASSES = (RequestClass(1.0, 0.6, 2e5), RequestClass(2.0, 1.2, 4e5), RequestClass(1.0, 2.0, 0.0))
BRIEF = short(duration_s=8.0)
MACHINE = Limits(16, 16, 4, total_cores=40)

SYSTEMS: dict[str, tuple[Scenario, Profile | None]] = {
    "quota": (dataclasses.replace(BRIEF, profile="quota", limits=MACHINE), QUOTA_PROFILE),
    "fifo": (
        dataclasses.replace(
            BRIEF, slo_s=0.6, classes=CLASSES, serving=Serving("expired", order="fifo")
        ),
        None,
    ),
    "actuation-delay": (
        dataclasses.replace(
            load_scenario("flash-crowd"),
            duration_s=8.0,
            limits=MACHINE,
            serving=Serving("late", 0.3),
            simulation=Simulation(noise=2.0, cold_start_s=1.2, actuation_delay_s=0.3),
        ),
        None,
    ),
    "recorded-and-faded": (
        dataclasses.replace(
            BRIEF,
            arrivals=Arrivals("trace", 30.0, file="arrivals-day-600s"),
            network=Network("4g-600s", "random", fade_every_s=4.0, fade_s=1.0),
        ),
        None,
    ),
}


def play() -> dict[str, str]:
    """Return hashes of ledgers, interval metrics and observations, by scenario and column."""
    hashes: dict[str, str] = {}
    for name, (scenario, profile) in SYSTEMS.items():
        single = SimulatedSystem(scenario, 3, profile)
        _add(hashes, f"{name}/single", _play_system(single, scenario))
        _add(hashes, f"{name}/live", _play_system(_live(scenario, profile), scenario))
        if profile is None:
            _add(hashes, f"{name}/batch", _play_batch(scenario))
    return hashes


def _live(scenario: Scenario, profile: Profile | None) -> LiveSystem:
    found = profile or scenario_profile(scenario)

    def make_worker(spec: SystemSpec) -> FakeWorker:
        return FakeWorker(**worker_settings(scenario, found, spec, 3), crashes_s=[1.7, 3.3, 6.1])

    return LiveSystem(scenario, 3, make_worker, found)


def _play_system(system: System, scenario: Scenario) -> dict[str, Any]:
    observations, metrics = [system.observe(JOINT)], []
    for numbers in allocations(scenario, 5):
        metrics.append(system.step(Allocation(*numbers)))
        observations.append(system.observe(JOINT))
    system.drain()
    columns = {n: np.array([getattr(m, n) for m in metrics]) for n in names(IntervalMetrics)}
    return {**system.columns(), **columns, "observations": np.array(observations)}


def _play_batch(scenario: Scenario) -> dict[str, Any]:
    batch = simulator([scenario] * 2, obs_dim=JOINT.obs_dim)
    observations = np.zeros((2, JOINT.obs_dim), np.float32)
    batch.reset(np.ones(2, np.bool_), np.array([3, 4]), observations)
    steps = [batch.step(np.array([numbers] * 2)) for numbers in allocations(scenario, 5)]
    metrics = np.array([metrics for _, metrics in steps])
    return {
        **{name: metrics[name] for name in METRICS.names or ()},
        **{f"ledger-{i}-{n}": c for i in range(2) for n, c in ledger_of(batch, i).items()},
        "observations": np.array([observations, *(seen for seen, _ in steps)]),
    }


def _add(hashes: dict[str, str], name: str, columns: Mapping[str, Any]) -> None:
    for column, values in columns.items():
        content = np.ascontiguousarray(values)
        hashes[f"{name}/{column}"] = hashlib.sha256(content.tobytes()).hexdigest()


if __name__ == "__main__":
    json.dump({"interpreted": INTERPRETED, "hashes": play()}, sys.stdout)
