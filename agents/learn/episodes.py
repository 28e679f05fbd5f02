"""Training episodes of a stepwise policy: hundreds at once, each a variant of its scenario."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.config import Initial
from sponge_env.encoding import JOINT
from sponge_env.scenario import Scenario
from sponge_env.seeds import EVALUATION_SEEDS, SEED_LIMIT, stream
from sponge_env.vector.simulator import BatchSimulator

from ..history import FloatMatrix
from ..stepwise import REPLICAS_MOST, Progress
from .phases import PhasedConfig

VARIANTS = 24
"""Of each scenario, in the pool from which episodes are drawn."""
HELD_MOST = 4
"""Replicas with which a random start begins at most."""


class Outcomes(NamedTuple):
    """(n,) what an interval came to."""

    core_seconds: FloatArray
    violations: IntArray
    """Avoidable ones."""
    over: NDArray[np.bool_]
    """Whether it was the last of its episode."""


class Episodes:
    """``count`` episodes that go on for ever: who ends begins another variant of its scenario."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        count: int,
        config: PhasedConfig,
        replicas: Literal["one", "held", "stepped"],
        seed: int,
    ) -> None:
        """Begin all of them."""
        self._random = stream(seed, f"episodes-{replicas}")
        draw = [(each, k) for each in scenarios for k in range(VARIANTS)]
        pool = [variant(each, config, replicas, k, self._random) for each, k in draw]
        self.scenario = np.arange(count) % len(scenarios)
        """(n,) which scenario each is of."""
        self._assigned = self.scenario * VARIANTS
        self._simulator = BatchSimulator(
            pool, self._assigned, replicas_max=REPLICAS_MOST, obs_dim=JOINT.obs_dim
        )
        self._batches = np.array(config.batches)
        self._steps = replicas == "stepped"
        self._observations = np.zeros((count, JOINT.obs_dim), np.float32)
        specs = self._simulator.specs
        self._pool = Progress(specs, config.every)
        self.progress = Progress([specs[k] for k in self._assigned], config.every)
        self._begin(np.ones(count, np.bool_))
        self.progress.see(self._observations)

    @property
    def seen(self) -> FloatMatrix:
        """(n, inputs) what a policy sees now."""
        return self.progress.seen

    @property
    def may_step(self) -> NDArray[np.bool_]:
        """(n, 3) which steps of the replicas it may take."""
        allowed = self.progress.steps_allowed()
        return allowed if self._steps else allowed & (np.arange(3) == 1)

    def step(self, cores: IntArray, batches: IntArray, steps: IntArray) -> Outcomes:
        """Serve an interval under (n,) choices; :attr:`seen` is then what came of it.

        Call :meth:`renew` before the next.
        """
        self.progress.take(steps)
        asked = np.stack([cores + 1, self._batches[batches], self.progress.replicas], axis=1)
        self._observations, metrics = self._simulator.step(asked)
        self.progress.see(self._observations)
        counts: Any = metrics["avoidable_violations"]
        return Outcomes(metrics["core_seconds"], counts.astype(np.int64), self._simulator.over)

    def renew(self) -> None:
        """Begin another episode where one is over."""
        over = self._simulator.over.copy()
        if over.any():
            self._begin(over)
            self.progress.see_some(over, self._observations)

    def close(self) -> None:
        """Stop the simulator's threads."""
        self._simulator.close()

    def _begin(self, chosen: NDArray[np.bool_]) -> None:
        count = int(chosen.sum())
        drawn = self._random.integers(0, VARIANTS, count)
        self._assigned[chosen] = self.scenario[chosen] * VARIANTS + drawn
        seeds = self._random.integers(EVALUATION_SEEDS, SEED_LIMIT, len(chosen))
        self._simulator.reset(chosen, seeds, self._observations)
        self.progress.begin(chosen, self._pool, self._assigned[chosen])


def variant(
    scenario: Scenario,
    config: PhasedConfig,
    replicas: Literal["one", "held", "stepped"],
    number: int,
    random: np.random.Generator,
) -> Scenario:
    """Draw a variant of a scenario: another start and length, and a slightly shorter SLO."""
    limits, count = scenario.limits, 1
    if replicas != "one":
        count = int(random.integers(1, min(HELD_MOST, limits.replicas, limits.machine_cores) + 1))
    if random.random() < config.random_starts:
        most = min(limits.cores // 2, limits.machine_cores // count)
        sizes = [size for size in config.batches if size <= limits.batch]
        cores, size = int(random.integers(1, max(1, most) + 1)), int(random.choice(sizes))
        initial = Initial(cores, size, count)
    else:
        initial = dataclasses.replace(scenario.initial, replicas=count)
        if replicas == "stepped":
            initial = scenario.initial
    shorter = float(random.uniform(*config.tightened))
    classes = [dataclasses.replace(c, slo_s=c.slo_s * shorter) for c in scenario.classes]
    intervals = round(float(random.uniform(*config.durations_s)) / scenario.interval_s)
    return dataclasses.replace(
        scenario,
        name=f"{scenario.name}-{number}",
        slo_s=scenario.slo_s * shorter,
        classes=tuple(classes),
        duration_s=intervals * scenario.interval_s,
        initial=initial,
    )
