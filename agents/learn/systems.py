"""The simulated systems that a policy learns on and is judged by, and what they spend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import ACCURACY_PRICE, SystemSpec
from sponge_env.metrics import IntervalMetrics
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.traffic import rate_rps

from ..history import layout_of
from ..stepwise import REPLICAS_MOST


def simulator(scenarios: Sequence[Scenario], assigned: IntArray) -> BatchSimulator:
    """Return one of a pool of scenarios that shows what policies see."""
    fields = layout_of(spec_of(scenarios[0])).fields
    return BatchSimulator(scenarios, assigned, replicas_max=REPLICAS_MOST, obs_dim=len(fields))


def spec_of(scenario: Scenario) -> SystemSpec:
    """Return the system of a scenario with its own profile."""
    return make_spec(scenario, scenario_profile(scenario))


class Spending:
    """What an answer less accurate than the best costs, in core-seconds.

    A percent of accuracy is worth so many cores as to the programs, for as long as it takes until
    the next request at the mean rate: with all answers a percent less accurate, a scenario's mean
    load costs :data:`~sponge_env.interfaces.ACCURACY_PRICE` cores more. A request without tasks in
    a stage loses nothing there, and so seems better than the best.
    """

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        specs = [spec_of(scenario) for scenario in scenarios]
        best = [math.prod(max(stage.accuracies) for stage in spec.stages) for spec in specs]
        rates = [rate_rps(each, scenario_profile(each)) for each in scenarios]
        self._best = np.array(best)
        self._percent = ACCURACY_PRICE / np.array(rates)

    def accuracy(self, metrics: Any, assigned: IntArray) -> FloatArray:
        """Return the (n,) costs of the answers in some intervals of assigned scenarios."""
        answered = metrics["on_time"] + metrics["late"]
        lost = 100 * (1 - metrics["accuracy"] / self._best[assigned])
        costs: FloatArray = np.where(answered > 0, self._percent[assigned] * lost * answered, 0.0)
        return costs

    def of_episode(self, intervals: Sequence[IntervalMetrics]) -> float:
        """Return the same of an episode of the first scenario, without what was answered later."""
        names = "on_time", "late", "accuracy"
        columns = {name: np.array([getattr(each, name) for each in intervals]) for name in names}
        return float(self.accuracy(columns, np.zeros(len(intervals), np.int64)).sum())


def least_cores(scenario: Scenario) -> float:
    """Return the fewest cores that serve a scenario's mean load, at the best use of them."""
    core_s = 0.0
    for stage in spec_of(scenario).stages:
        cores, sizes = np.arange(1, stage.cores_max + 1), np.arange(1, stage.batch_max + 1)
        tables_s = [each.table_s(stage.batch_max, stage.cores_max) for each in stage.latencies]
        core_s += stage.mean_tasks * (np.array(tables_s) * cores / sizes[:, None]).min()
    return float(core_s * rate_rps(scenario, scenario_profile(scenario)))
