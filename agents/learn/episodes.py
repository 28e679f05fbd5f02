"""Training episodes of a stepwise policy: hundreds at once, each its scenario a little changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.interfaces import SystemSpec
from sponge_env.scenario.config import Arrivals, Initial, Network
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream

from ..history import FloatMatrix, batch_times_of, layout_of
from ..stepwise import PolicyState
from . import spec_of
from .evaluation import AccuracyCost, simulator

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Batch sizes that a policy chooses among, as far as the limits go."""
DRAWS = 24
"""Changed versions of each scenario, from which episodes are drawn."""
RANDOM_STARTS = 0.7
"""Share of the episodes that begin with a random allocation."""
MAX_STARTED = 4
"""Largest number of replicas of a random start."""
TIGHTENED = (0.95, 0.99)
"""Minimum and maximum factor of the SLO in training: a margin for what is rare."""
OTHER_SHARE = 0.2
"""Share of the episodes that are of other systems, if the training is randomised."""
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
        durations_s: tuple[float, ...],
        every: int,
        seed: int,
        randomised: bool = False,
    ) -> None:
        """Begin all of them; some are of other systems if ``randomised``.

        Those are scenarios of their own to the learner, and come after the others. Replicas may
        step after ``every`` intervals, or never if it is 0.
        """
        self._random = stream(seed, "episodes")
        pool = []
        for changes in (False, True)[: 1 + randomised]:
            for each, k in product(scenarios, range(DRAWS)):
                system = other(each, self._random) if changes else each
                pool.append(perturbed(system, durations_s, every, k, self._random))
        others = round(OTHER_SHARE * count) if randomised else 0
        own = np.arange(count - others) % len(scenarios)
        self.scenario = np.concatenate([own, len(scenarios) + np.arange(others) % len(scenarios)])
        """(n,) which scenario each is of."""
        self._assigned = self.scenario * DRAWS
        self._simulator = simulator(pool, self._assigned)
        self._accuracy_cost = AccuracyCost(pool)
        specs = self._simulator.specs
        sizes = batches_for(specs[0])
        self._observations = np.zeros((count, len(layout_of(specs[0]).fields)), np.float32)
        self._pool = PolicyState(specs, every, sizes)
        self.state = PolicyState([specs[k] for k in self._assigned.tolist()], every, sizes)
        self._begin(np.ones(count, np.bool_))
        self.state.see(self._observations, None)

    @property
    def seen(self) -> FloatMatrix:
        """(n, inputs) of a policy now."""
        return self.state.seen

    @property
    def may_step(self) -> NDArray[np.bool_]:
        """(n, stages, 3) which steps of the replicas are allowed."""
        return self.state.steps_allowed()

    def step(
        self, cores: IntArray, batches: IntArray, steps: IntArray, variants: IntArray
    ) -> Outcomes:
        """Serve an interval under (n, stages) choices; :attr:`seen` is then the new state.

        Call :meth:`renew` before the next.
        """
        requested = self.state.take(cores, batches, steps, variants)
        self._observations, metrics = self._simulator.step(requested)
        self.state.see(self._observations, batch_times_of(metrics))
        counts: Any = metrics["avoidable_violations"]
        spent = metrics["core_seconds"] + self._accuracy_cost.of(metrics, self._assigned)
        return Outcomes(spent, counts.astype(np.int64), self._simulator.over)

    def renew(self) -> None:
        """Begin another episode where one is over."""
        over = self._simulator.over.copy()
        if over.any():
            self._begin(over)
            self.state.see_some(over, self._observations)

    def close(self) -> None:
        """Stop the simulator's threads."""
        self._simulator.close()

    def _begin(self, chosen: NDArray[np.bool_]) -> None:
        count = int(chosen.sum())
        drawn = self._random.integers(0, DRAWS, count)
        self._assigned[chosen] = self.scenario[chosen] * DRAWS + drawn
        # Lower seeds are for evaluation runs, higher ones for the evaluator: training sees neither.
        seeds = self._random.integers(EVALUATION_SEEDS, SEED_LIMIT, len(chosen))
        self._simulator.reset(chosen, seeds, self._observations)
        self.state.begin(chosen, self._pool, self._assigned[chosen])


def batches_for(spec: SystemSpec) -> tuple[int, ...]:
    """Return the batch sizes that a policy chooses among in a system."""
    largest = max(stage.batch_max for stage in spec.stages)
    return tuple(size for size in BATCHES if size <= largest)


def perturbed(
    scenario: Scenario,
    durations_s: tuple[float, ...],
    every: int,
    number: int,
    random: np.random.Generator,
) -> Scenario:
    """Change a scenario at random: another start and length, and a slightly shorter SLO.

    There is one replica where they never step.
    """
    starts = [stage.initial for stage in scenario.pipeline]
    if not every:
        starts = [replace(start, replicas=1) for start in starts]
    if random.random() < RANDOM_STARTS:
        starts = random_starts(scenario, every, random)
    shorter = float(random.uniform(*TIGHTENED))
    shortest_s, longest_s = durations_s[0], durations_s[-1]
    intervals = round(float(random.uniform(shortest_s, longest_s)) / scenario.interval_s)
    return replace(
        scenario.starting_with(starts),
        name=f"{scenario.name}-{number}",
        slo_s=scenario.slo_s * shorter,
        classes=tuple(replace(each, slo_s=each.slo_s * shorter) for each in scenario.classes),
        duration_s=intervals * scenario.interval_s,
    )


def random_starts(scenario: Scenario, every: int, random: np.random.Generator) -> list[Initial]:
    """Draw the allocation with which each stage begins; all together fit on the machine."""
    starts, left, pipeline = [], scenario.limits.machine_cores, scenario.pipeline
    for later, stage in zip(range(len(pipeline))[::-1], pipeline, strict=True):
        limits, room = stage.limits, left - later  # a core for each stage that follows
        replicas_max = min(MAX_STARTED, limits.replicas, room) if every else 1
        count = int(random.integers(1, replicas_max + 1))
        cores_max = max(1, min(limits.cores // 2, room // count))
        sizes = [size for size in BATCHES if size <= limits.batch]
        cores, size = int(random.integers(1, cores_max + 1)), int(random.choice(sizes))
        variant = stage.initial.variant
        if len(stage.variants) > 1:
            variant = int(random.integers(0, len(stage.variants)))
        starts.append(Initial(cores, size, count, variant))
        left -= cores * count
    return starts


def other(scenario: Scenario, random: np.random.Generator) -> Scenario:
    """Draw another system in a scenario's place (domain randomisation: Tobin et al., 2017).

    Load, payload, SLO, speed, cold start and the delay of a resize are others, and in half of them
    the network fades: what the next deployment changes.
    """
    changes = OTHER_SLO, OTHER_PAYLOAD, OTHER_COLD_START, OTHER_LOAD
    longer, larger, colder, busier = (float(np.exp(random.uniform(-x, x))) for x in changes)
    network, simulation = scenario.network, scenario.simulation
    cold_start_s = max(stage.cold_start_s for stage in spec_of(scenario).stages)
    delay_s = simulation.actuation_delay_s or float(random.choice(OTHER_DELAYS_S))
    slower = simulation.service_scale * float(random.uniform(*OTHER_SPEEDS))
    classes = [
        replace(each, slo_s=each.slo_s * longer, payload_bytes=each.payload_bytes * larger)
        for each in scenario.classes
    ]
    return replace(
        scenario,
        slo_s=scenario.slo_s * longer,
        classes=tuple(classes),
        arrivals=_scaled(scenario.arrivals, busier),
        network=_fading(replace(network, payload_bytes=network.payload_bytes * larger), random),
        simulation=replace(
            simulation,
            actuation_delay_s=delay_s,
            service_scale=slower,
            cold_start_s=colder * cold_start_s,
        ),
    )


def _scaled(arrivals: Arrivals, factor: float) -> Arrivals:
    """Scale a rate, or a load; a trace that has its own is left as it is."""
    rate, load = (x and x * factor for x in (arrivals.rate_rps, arrivals.load))
    return replace(arrivals, rate_rps=rate, load=load)


def _fading(network: Network, random: np.random.Generator) -> Network:
    """Let a network fade now and then, or leave it as it is."""
    every_s, fade_s = (float(random.uniform(*x)) for x in (OTHER_FADES_EVERY_S, OTHER_FADES_S))
    depth = float(np.exp(random.uniform(*np.log(OTHER_DEPTHS))))
    if random.random() >= OTHER_FADES or network.trace == "none":
        return network
    return replace(network, fade_every_s=every_s, fade_s=fade_s, fade_depth=depth)
