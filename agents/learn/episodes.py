"""Training episodes of a stepwise policy: hundreds at once, each its scenario a little changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.traffic import rate_rps

from ..history import batch_times_of, layout_of
from ..stepwise import Form, PolicyState
from . import spec_of
from .evaluation import AccuracyCost
from .systems import other

QUEUE, QUEUED_S = 1 << 13, 10.0
"""Least room for requests that wait, and for how many SLOs of arrivals there is room: with more of
them an episode is lost anyway."""
DRAWS = 100
"""Changed versions of each scenario, from which episodes are drawn."""
LENGTHS = (0.33, 0.7)
"""Minimum and maximum share of a scenario's duration for which an episode lasts."""
OTHERS = 5
"""One in so many versions is of another system, if the training is randomised."""


class Outcomes(NamedTuple):
    """(n,) results of an interval."""

    core_seconds: FloatArray
    """With the cost of lost accuracy, see :class:`.evaluation.AccuracyCost`."""
    violations: IntArray
    """Avoidable ones."""
    over: NDArray[np.bool_]
    """Whether it was the last of its episode."""


class Episodes:
    """``count`` endless sequences of episodes: one that ends begins another of its scenario."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        count: int,
        form: Form,
        seed: int,
        randomised: bool = False,
        draws: int = DRAWS,
        machine: int = 0,
    ) -> None:
        """Begin all of them, each of a drawn version of its scenario.

        Some are of other systems if ``randomised``. All run on the same of a plan's machines.
        """
        self._random, self._draws, self.machine = stream(seed, "episodes"), draws, machine
        pool = [
            changed(scenario, randomised and k % OTHERS == 0, self._random)
            for scenario in scenarios
            for k in range(draws)
        ]
        self.scenario = np.arange(count) % len(scenarios)
        """(n,) which scenario each is of."""
        rates = np.array([rate_rps(each, scenario_profile(each)) for each in scenarios])
        self.offered = (rates * [each.interval_s for each in scenarios])[self.scenario]
        """(n,) requests of an interval, on average."""
        slos_s = np.array([each.slo_s for each in scenarios])
        least = np.array([least_cores(each) * each.interval_s for each in scenarios])
        self.least = least[self.scenario]
        """(n,) core-seconds of an interval that the mean load needs at least."""
        self._assigned = self.scenario * draws
        fields = len(layout_of(spec_of(pool[0])).fields)
        self._simulator = BatchSimulator(
            pool,
            self._assigned,
            replicas_max=form.most_replicas,
            queue_capacity=max(QUEUE, int(QUEUED_S * max(rates * slos_s))),
            obs_dim=fields,
            grows_ready=True,
        )
        self._accuracy_cost = AccuracyCost(pool)
        specs = self._simulator.specs
        self._observations = np.zeros((count, fields), np.float32)
        self._pool = PolicyState(specs, form)
        self.state = PolicyState([specs[k] for k in self._assigned.tolist()], form)
        self._begin(np.ones(count, np.bool_))

    def step(self, choices: IntArray) -> Outcomes:
        """Serve an interval under (n, stages, 4) choices; the state then sees what came of it.

        Call :meth:`renew` before the next.
        """
        self._observations, metrics = self._simulator.step(self.state.take(choices))
        self.state.see(self._observations, batch_times_of(metrics))
        counts: Any = metrics["avoidable_violations"]
        spent = metrics["core_seconds"] + self._accuracy_cost.of(metrics, self._assigned)
        return Outcomes(spent, counts.astype(np.int64), self._simulator.over.copy())

    def renew(self) -> None:
        """Begin another episode where one is over."""
        if self._simulator.over.any():
            self._begin(self._simulator.over.copy())

    def close(self) -> None:
        """Stop the simulator's threads."""
        self._simulator.close()

    def _begin(self, chosen: NDArray[np.bool_]) -> None:
        drawn = self._random.integers(0, self._draws, int(chosen.sum()))
        self._assigned[chosen] = self.scenario[chosen] * self._draws + drawn
        # Lower seeds are for evaluation runs, higher ones for the evaluator: training sees neither.
        seeds = self._random.integers(EVALUATION_SEEDS, SEED_LIMIT, len(chosen))
        self._simulator.reset(chosen, seeds, self._observations)
        self.state.begin(chosen, self._pool, self._assigned[chosen])
        self.state.see(self._observations, None, chosen)


def changed(scenario: Scenario, is_other: bool, random: np.random.Generator) -> Scenario:
    """Return a scenario of another length, started cold, and perhaps of another system."""
    duration_s = scenario.duration_s * float(random.uniform(*LENGTHS))
    intervals = max(1, round(duration_s / scenario.interval_s))
    shorter = replace(scenario, start="cold", duration_s=intervals * scenario.interval_s)
    return other(shorter, random) if is_other else shorter


def least_cores(scenario: Scenario) -> float:
    """Return the fewest cores that serve a scenario's mean load, at the best use of them."""
    core_s = 0.0
    for stage in spec_of(scenario).stages:
        cores, sizes = np.arange(1, stage.cores_max + 1), np.arange(1, stage.batch_max + 1)
        tables_s = [each.table_s(stage.batch_max, stage.cores_max) for each in stage.latencies]
        core_s += stage.mean_tasks * (np.array(tables_s) * cores / sizes[:, None]).min()
    return float(core_s * rate_rps(scenario, scenario_profile(scenario)))
