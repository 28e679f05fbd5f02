"""Units of work: one agent on one cell with all its seeds.

A unit is plain data, so that it can be sent to another process, and so is what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sponge_env.config import ControlName, Initial, Serving
from sponge_env.factory import scenario_profile
from sponge_env.profile import Profile
from sponge_env.recording import summary
from sponge_env.registry import make_controller
from sponge_env.results.schema import IntervalMetrics
from sponge_env.rollout import ControlledSystem, Episode, Run, run_episode
from sponge_env.scenario import Scenario
from sponge_env.suite.fingerprint import (
    controller_fingerprint,
    fingerprint,
    scenario_fingerprint,
)
from sponge_env.suite.warm import warm
from sponge_env.vector.system import CompiledSystem
from sponge_env.workload import Workload, as_long_as_its_traces, make_workload

INTERVALS = (
    "time_s",
    "offered",
    "violations",
    "avoidable_violations",
    "cores",
    "batch",
    "replicas_ready",
    "queued",
    "latency_p99_s",
    "delay_mean_s",
    "bandwidth_bytes_per_s",
)
"""Interval metrics of the first seed that are kept, for time series."""

QUANTILES = 100
"""Latencies are kept as so many quantiles of equal distance, and the smallest."""

BOUND_AGENTS: Mapping[ControlName, str] = {"vertical": "oracle", "joint": "oracle-joint"}
"""Names under which the bounds stand in the results."""


class Unit(Protocol):
    """What a process is given to do."""

    @property
    def agent(self) -> str:
        """Name in the results."""

    @property
    def scenario(self) -> Scenario:
        """The cell."""

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code."""

    def run(self) -> dict[str, Any]:
        """Do it; the result can be written as JSON."""


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """The episodes of one agent on one cell."""

    agent: str
    controller: str
    """``module:callable``."""
    options: dict[str, Any]
    control: ControlName
    """Which bound it is compared with."""
    scenario: Scenario
    seeds: int

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code.

        Raises:
            ProfileError: There is no profile as the scenario names.
        """
        return fingerprint(
            asdict(self)
            | {"scenario": scenario_fingerprint(self.scenario)}
            | {"files": controller_fingerprint(self.controller, self.options)}
        )

    def run(self) -> dict[str, Any]:
        """Run all seeds.

        Returns:
            ``episodes``: each seed's summary; ``latency_s``: each seed's latency quantiles;
            ``intervals``: the first seed's intervals by column; ``initial``: the allocation it
            began with; ``bound``: the name of its bound.

        Raises:
            SpongeError: The scenario, the profile or the controller cannot be used.
        """
        profile = scenario_profile(self.scenario)
        controller = make_controller(self.controller, {}, self.options)
        scenario = warm(self.scenario, controller, profile)
        episodes, latencies_s = [], []
        for seed in range(self.seeds):
            system = fast_system(scenario, seed, profile)
            run = Run.of(self.agent, scenario, "sim", seed)
            episodes.append(run_episode(system, controller, run))
            latencies_s.append(_latency_quantiles_s(system))
        return {
            "bound": BOUND_AGENTS[self.control],
            "initial": asdict(scenario.initial),
            "episodes": [summary(episode.summary) for episode in episodes],
            "latency_s": latencies_s,
            "intervals": _columns(episodes[0]),
        }


def fast_system(scenario: Scenario, seed: int, profile: Profile) -> ControlledSystem:
    """Build the simulated system of one episode, the fastest that there is."""
    # What the requests do not depend on is levelled, so that all agents share them.
    requested = replace(scenario, start="cold", initial=Initial(), serving=Serving())
    return CompiledSystem(scenario, seed, profile, _workload(requested, seed))


@lru_cache(maxsize=20)  # the seeds of the cell at hand, which all agents run one after another
def _workload(scenario: Scenario, seed: int) -> Workload:
    profile = scenario_profile(scenario)
    return make_workload(as_long_as_its_traces(scenario), profile, seed)


def _latency_quantiles_s(system: ControlledSystem) -> list[float | None]:
    """Return quantiles of the latency in the part that counts; None: infinite.

    A request that is never answered has an infinite latency. Without it, who drops looks fast.
    """
    columns = system.columns()
    counted = columns["arrival_s"] >= system.plan.count_from_s
    answered = np.isin(columns["outcome"], ("on_time", "late"))
    latency_s = np.where(answered, columns["finished_s"] - columns["sent_s"], np.inf)[counted]
    if not latency_s.size:
        return [None] * (QUANTILES + 1)
    with np.errstate(invalid="ignore"):  # between a number and infinity lies none
        return _short(np.quantile(latency_s, np.linspace(0.0, 1.0, QUANTILES + 1)))


def _columns(episode: Episode) -> dict[str, list[float | None]]:
    return {name: _short(_series(episode.intervals, name)) for name in INTERVALS}


def _series(intervals: tuple[IntervalMetrics, ...], name: str) -> NDArray[np.float64]:
    return np.array([getattr(interval, name) for interval in intervals], dtype=np.float64)


def _short(values: NDArray[np.float64]) -> list[float | None]:
    """Return numbers of five significant digits, as JSON can hold them."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
