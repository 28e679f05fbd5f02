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

QUEUE, QUEUED_S = 1 << 13, 10.0
"""Least room for requests that wait, and for how many SLOs of arrivals there is room: with more of
them an episode is lost anyway."""
DRAWS = 100
"""Changed versions of each scenario, from which episodes are drawn."""
LENGTHS = (0.33, 0.7)
"""Minimum and maximum share of a scenario's duration for which an episode lasts."""
OTHERS = 5
"""One in so many versions is of another system, if the training is randomised."""
OTHER_SLO, OTHER_PAYLOAD = 0.25, 0.7
"""Largest change of the logarithm of SLO and payload."""
OTHER_COLD_START = 1.1
"""Largest change of the logarithm of a cold start: a third to three times as long."""
OTHER_LOAD = 0.2
"""Largest change of the logarithm of the arrival rate."""
OTHER_DELAYS_S = (0.0, 0.2, 0.5)
"""Delays of a resize."""
OTHER_SPEEDS = (0.9, 1.2)
"""Minimum and maximum factor of the service times in the profile."""
OTHER_FADES = 0.5
"""Share of the other systems whose network fades now and then."""
OTHER_FADES_EVERY_S, OTHER_FADES_S, OTHER_DEPTHS = (40.0, 120.0), (1.0, 6.0), (1e-3, 0.1)
"""Ranges of the time between two fades, their length, and the share of the bandwidth left."""


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


def other(scenario: Scenario, random: np.random.Generator) -> Scenario:
    """Draw another system in a scenario's place (domain randomisation: Tobin et al., 2017).

    Load, payload, SLO, speed, cold start and the delay of a resize are others, and in half of them
    the network fades: what the next deployment changes. A trace keeps its load.
    """
    changes = OTHER_SLO, OTHER_PAYLOAD, OTHER_COLD_START, OTHER_LOAD
    longer, larger, colder, busier = (float(np.exp(random.uniform(-x, x))) for x in changes)
    network, simulation, arrivals = scenario.network, scenario.simulation, scenario.arrivals
    cold_start_s = max(stage.cold_start_s for stage in spec_of(scenario).stages)
    delay_s = simulation.actuation_delay_s or float(random.choice(OTHER_DELAYS_S))
    slower = simulation.service_scale * float(random.uniform(*OTHER_SPEEDS))
    every_s, fade_s = (float(random.uniform(*x)) for x in (OTHER_FADES_EVERY_S, OTHER_FADES_S))
    depth = float(np.exp(random.uniform(*np.log(OTHER_DEPTHS))))
    fades: dict[str, Any] = {}
    if random.random() < OTHER_FADES and network.trace != "none":
        fades = {"fade_every_s": every_s, "fade_s": fade_s, "fade_depth": depth}
    scales = "rate_rps", "load", "peak"
    rates = {name: x and x * busier for name in scales for x in [getattr(arrivals, name)]}
    classes = [
        replace(each, slo_s=each.slo_s * longer, payload_bytes=each.payload_bytes * larger)
        for each in scenario.classes
    ]
    return replace(
        scenario,
        slo_s=scenario.slo_s * longer,
        classes=tuple(classes),
        arrivals=replace(arrivals, **rates),
        network=replace(network, payload_bytes=network.payload_bytes * larger, **fades),
        simulation=replace(
            simulation,
            actuation_delay_s=delay_s,
            service_scale=slower,
            cold_start_s=colder * cold_start_s,
        ),
    )


def least_cores(scenario: Scenario) -> float:
    """Return the fewest cores that serve a scenario's mean load, at the best use of them."""
    core_s = 0.0
    for stage in spec_of(scenario).stages:
        cores, sizes = np.arange(1, stage.cores_max + 1), np.arange(1, stage.batch_max + 1)
        tables_s = [each.table_s(stage.batch_max, stage.cores_max) for each in stage.latencies]
        core_s += stage.mean_tasks * (np.array(tables_s) * cores / sizes[:, None]).min()
    return float(core_s * rate_rps(scenario, scenario_profile(scenario)))
