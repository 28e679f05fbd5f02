"""How good a policy is, on episodes that training never sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.learn.correction import CorrectionEnv
from agents.learners import LEARNERS, masks_for
from agents.policy import Policy
from sponge_env.encoding import control_named
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT
from sponge_env.vector.simulator import BatchSimulator
from sponge_env.workload import as_long_as_its_traces


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy costs: means over all intervals."""

    cores: float
    cores_max: int
    """Those of one replica, to which the reward relates."""
    violation_rate: float
    avoidable_violation_rate: float

    def score(self, violation_weight: float) -> float:
        """Return one number, which is better when larger.

        Args:
            violation_weight: Cost of a violated request, against 1 for holding all cores
                for an interval of average load.
        """
        return -self.cores / self.cores_max - violation_weight * self.avoidable_violation_rate


class Judge(Protocol):
    """Scores policies on fixed simulated episodes that training never uses."""

    def __call__(self, policy: Policy) -> Verdict:
        """Return what a policy costs."""


def make_judge(scenarios: Sequence[Scenario], episodes: int, agent: str = "ppo") -> Judge:
    """Prepare the episodes.

    Args:
        scenarios: What to judge on.
        episodes: Number of them, shared out to the scenarios; at least one each.
        agent: Name of the learner.
    """
    count = max(episodes, len(scenarios))
    return (CorrectionJudge if LEARNERS[agent].corrects else BatchJudge)(scenarios, count, agent)


class BatchJudge:
    """Judges policies that choose allocations, all episodes at once."""

    def __init__(self, scenarios: Sequence[Scenario], episodes: int, agent: str) -> None:
        """Prepare the episodes; see :func:`make_judge`."""
        self._intervals = max(as_long_as_its_traces(each).intervals for each in scenarios)
        self._cores_max = scenarios[0].limits.cores
        self._simulator = BatchSimulator(
            scenarios,
            np.arange(episodes) % len(scenarios),
            obs_dim=control_named(LEARNERS[agent].control).obs_dim,
        )
        self._masks = masks_for(agent, self._simulator.specs[0])
        self._seeds = SEED_LIMIT + np.arange(episodes)

    def __call__(self, policy: Policy) -> Verdict:
        """Play the episodes."""
        simulator, episodes = self._simulator, len(self._seeds)
        observations = np.zeros((episodes, policy.observed), np.float32)
        simulator.reset(np.ones(episodes, np.bool_), self._seeds, observations)
        totals = _Totals()
        memory = policy.memory(episodes)
        for _ in range(self._intervals):
            steps = int(np.count_nonzero(~simulator.over))
            allowed = self._masks(observations) if self._masks is not None else None
            actions = policy.act(observations, allowed, memory)
            observations, metrics = simulator.step(allocations(actions))
            totals.add(steps, *(float(metrics[name].sum()) for name in _Totals.METRICS))
        return totals.verdict(self._cores_max)


class CorrectionJudge:
    """Judges policies that correct the look-ahead program, one episode after the other."""

    def __init__(self, scenarios: Sequence[Scenario], episodes: int, agent: str) -> None:
        """Prepare the episodes; see :func:`make_judge`."""
        self._envs = [CorrectionEnv(each) for each in scenarios]
        self._episodes = episodes

    def __call__(self, policy: Policy) -> Verdict:
        """Play the episodes."""
        totals = _Totals()
        for episode in range(self._episodes):
            env = self._envs[episode % len(self._envs)]
            observation, _ = env.reset(options={"episode_seed": SEED_LIMIT + episode})
            over = False
            while not over:
                observation, _, _, over, _ = env.step(policy.act(observation))
                totals.add(1, *(getattr(env.metrics, name) for name in _Totals.METRICS))
        return totals.verdict(self._envs[0].scenario.limits.cores)


class _Totals:
    """Sums over intervals."""

    METRICS = ("cores", "violations", "avoidable_violations", "offered")

    def __init__(self) -> None:
        self._sums = np.zeros(1 + len(self.METRICS))

    def add(self, steps: int, *values: float) -> None:
        """Add intervals: how many, and the sum of each metric."""
        self._sums += (steps, *values)

    def verdict(self, cores_max: int) -> Verdict:
        """Return the means."""
        steps, cores, violations, avoidable, offered = self._sums.tolist()
        offered = max(1.0, offered)
        return Verdict(cores / steps, cores_max, violations / offered, avoidable / offered)


def allocations(actions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn (n, parts) actions into (n, 3) cores, batch and replicas; one replica if left out."""
    if actions.shape[1] == 3:
        return actions + 1
    return np.column_stack([actions + 1, np.ones(len(actions), np.int64)])
