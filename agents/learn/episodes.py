"""Episodes in which a policy learns, each of a slightly changed scenario, and those that judge it.

The latter are always the same; neither training nor the evaluation of controllers plays them.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import ACCURACY_PRICE
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.batch import BatchSimulator, BatchView
from sponge_env.simulation.randomised import other
from sponge_env.simulation.traffic import rate_rps
from sponge_env.utils.installation import imported

from ..guard import InputRange
from ..history import FloatMatrix, batch_times_of, layout_of
from ..policy import Policy, reading
from ..stepwise import Form, PolicyState
from . import spec_of

QUEUE, QUEUED_S = 1 << 13, 10.0  # Least room for requests, and the same in SLOs of arrivals
DRAWS = 100  # Changed versions of each scenario, from which episodes are drawn
OTHERS = 5  # If the training is randomised, one in so many versions is of another system
MOST_LISTED = 50_000  # Most requests of an episode with classes: each environment has the room
LENGTHS = (0.33, 0.7)  # Least and largest share of a scenario's duration that an episode lasts


class AccuracyCost:
    """The cost, in core-seconds, of answers that are less accurate than the best.

    A percent of accuracy is worth :data:`~sponge_env.interfaces.ACCURACY_PRICE` cores, as in the
    programs, for the time until the next request at the mean rate. A request without tasks in a
    stage loses nothing there, and so counts as better than the best.
    """

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        stages = [spec_of(scenario).stages for scenario in scenarios]
        self._best = np.array([math.prod(max(s.accuracies) for s in each) for each in stages])
        self._percent = ACCURACY_PRICE / rates_rps(scenarios)

    def of(self, metrics: Any, assigned: IntArray) -> FloatArray:
        """Return the (n,) costs of the answers in intervals, or episodes, of assigned scenarios."""
        answered = metrics["on_time"] + metrics["late"]
        lost = 100 * (1 - metrics["accuracy"] / self._best[assigned])
        costs: FloatArray = np.where(answered > 0, self._percent[assigned] * lost * answered, 0.0)
        return costs


def rates_rps(scenarios: Sequence[Scenario]) -> FloatArray:
    """Return the mean rate of each scenario."""
    return np.array([rate_rps(each, scenario_profile(each)) for each in scenarios])


class Outcomes(NamedTuple):
    """(n,) results of an interval."""

    core_seconds: FloatArray  # With the cost of lost accuracy
    violations: IntArray  # Avoidable ones
    over: NDArray[np.bool_]  # Whether it was the last of its episode


class Episodes:
    """``count`` endless sequences of episodes: when one ends, another of its scenario begins."""

    def __init__(
        self, scenarios: Sequence[Scenario], count: int, form: Form, seed: int,
        randomised: bool = False, draws: int = DRAWS, machine: int = 0,
    ) -> None:  # fmt: skip
        """Begin all of them, each of a drawn version of its scenario.

        Some are of other systems if ``randomised``. All run on one ``machine`` of the plan.
        """
        self._random, self._draws, self.machine = stream(seed, "episodes"), draws, machine
        pool = [
            changed(scenario, randomised and k % OTHERS == 0, self._random)
            for scenario in scenarios
            for k in range(draws)
        ]
        self.scenario = np.arange(count) % len(scenarios)  # (n,) scenario of each
        rates, slos_s = rates_rps(scenarios), np.array([each.slo_s for each in scenarios])
        self.offered = (rates * [each.interval_s for each in scenarios])[self.scenario]
        """(n,) requests of an interval, on average."""
        self.least = np.array([*map(least_core_s, scenarios)])[self.scenario] * self.offered
        """(n,) fewest core-seconds that these need."""
        self._assigned = self.scenario * draws
        fields = len(layout_of(spec_of(pool[0])).fields)
        self._simulator = BatchSimulator(
            pool, self._assigned, replicas_max=form.most_replicas,
            queue_capacity=max(QUEUE, int(QUEUED_S * max(rates * slos_s))), obs_dim=fields,
            grows_ready=True,
        )  # fmt: skip
        self._accuracy_cost, specs = AccuracyCost(pool), self._simulator.specs
        self._observations = np.zeros((count, fields), np.float32)
        self._pool = PolicyState(specs, form)
        self.state = PolicyState([specs[k] for k in self._assigned.tolist()], form)
        self._begin(np.ones(count, np.bool_))

    def step(self, choices: IntArray) -> Outcomes:
        """Serve an interval under (n, stages, 4) choices; call :meth:`renew` before the next."""
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
        # Lower seeds are for evaluation runs, higher ones judge policies: training sees neither.
        seeds = self._random.integers(EVALUATION_SEEDS, SEED_LIMIT, len(chosen))
        self._simulator.reset(chosen, seeds, self._observations)
        self.state.begin(chosen, self._pool, self._assigned[chosen])
        self.state.see(self._observations, None, chosen)


def changed(scenario: Scenario, is_other: bool, random: np.random.Generator) -> Scenario:
    """Return a scenario of another length, started cold, and perhaps of another system."""
    duration_s = scenario.duration_s * float(random.uniform(*LENGTHS))
    if scenario.classes:
        duration_s = min(duration_s, MOST_LISTED / rates_rps([scenario])[0])
    intervals = max(1, round(duration_s / scenario.interval_s))
    shorter = replace(scenario, start="cold", duration_s=intervals * scenario.interval_s)
    return other(shorter, random) if is_other else shorter


def least_core_s(scenario: Scenario) -> float:
    """Return the fewest core-seconds that a request needs on average, at the best use of them."""
    core_s = 0.0
    for stage in spec_of(scenario).stages:
        cores, sizes = np.arange(1, stage.cores_max + 1), np.arange(1, stage.batch_max + 1)
        tables_s = [each.table_s(stage.batch_max, stage.cores_max) for each in stage.latencies]
        core_s += stage.mean_tasks * float((np.array(tables_s) * cores / sizes[:, None]).min())
    return core_s


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the episodes of each scenario; arrays are (scenarios,) unless noted."""

    cores: FloatArray  # Mean over all intervals, with the cost of lost accuracy
    violation_rate: FloatArray  # Avoidable violations, as a share of all requests
    input_range: FloatMatrix | None = None  # (2, inputs) ends of each input of a policy

    @classmethod
    def of(cls, sums: FloatArray) -> "Evaluation":
        """Return means of (4, episodes, scenarios) sums: cores, violations, requests, intervals."""
        cores, violations, offered, intervals = sums.sum(axis=1)
        return cls(cores / intervals, violations / np.maximum(1, offered))

    @property
    def means(self) -> dict[str, float]:
        """Means over all scenarios."""
        return {"cores": float(self.cores.mean()), "missed": float(self.violation_rate.mean())}


def evaluated(policy: Policy, scenarios: Sequence[Scenario], episodes: int) -> Evaluation:
    """Play a policy on so many episodes of each scenario, which are always the same."""
    sums, seen = np.zeros((4, episodes, len(scenarios))), InputRange(len(policy.info.inputs))
    seeds = SEED_LIMIT + np.arange(episodes)
    with imported("threadpoolctl:threadpool_limits")(1, "blas"):  # more threads would wait
        for limits in {each.limits for each in scenarios}:
            places = [k for k, each in enumerate(scenarios) if each.limits == limits]
            sums[..., places] = _play_policy(policy, [scenarios[k] for k in places], seeds, seen)
    return replace(Evaluation.of(sums), input_range=seen.ends)


def _play_policy(
    policy: Policy, scenarios: Sequence[Scenario], seeds: IntArray, seen: InputRange
) -> FloatArray:
    """Return (4, seeds, scenarios) sums of scenarios on one machine, see :meth:`Evaluation.of`."""
    assigned = np.tile(np.arange(len(scenarios)), len(seeds))
    layout = layout_of(spec_of(scenarios[0]))
    simulator = BatchSimulator(scenarios, assigned, obs_dim=len(layout.fields), grows_ready=True)
    policy, running = reading(policy, layout.inputs), np.zeros(len(assigned), np.bool_)
    state = PolicyState([simulator.specs[k] for k in assigned.tolist()], policy.info.form)

    def decide(view: BatchView) -> IntArray:
        state.see(view.observations, batch_times_of(view.last))
        np.logical_not(simulator.over, out=running)
        seen.widen(policy.inputs(state.seen)[running])
        return state.choose(policy.logits(state.seen))

    sums, cost = np.zeros((4, len(running))), AccuracyCost(scenarios)
    with closing(simulator):
        for metrics in simulator.play(np.repeat(seeds, len(scenarios)), decide):
            names = "cores", "avoidable_violations", "offered"
            sums += (*(metrics[name] for name in names), running)
            sums[0] += cost.of(metrics, assigned) / scenarios[0].interval_s
        sums[1] += simulator.drain()["avoidable_violations"]
    return sums.reshape(4, len(seeds), len(scenarios))
