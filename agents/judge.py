"""How good a policy is, on episodes that training never sees."""

from __future__ import annotations

import numpy as np

from agents.policy import Policy
from sponge_env.scenario import Scenario
from sponge_env.seeding import SEED_LIMIT
from sponge_env.vector.simulator import BatchSimulator
from sponge_env.workload import as_long_as_its_traces


class Judge:
    """Scores policies on fixed simulated episodes that training never uses."""

    def __init__(self, scenario: Scenario, episodes: int) -> None:
        self._windows = as_long_as_its_traces(scenario).windows
        self._simulator = BatchSimulator([scenario], np.zeros(episodes, np.int64))
        self._seeds = SEED_LIMIT + np.arange(episodes)

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Return mean reward and cores per interval, and the violation rate."""
        simulator, episodes = self._simulator, len(self._seeds)
        observations = np.zeros((episodes, len(policy.layers[0][0].T)), np.float32)
        simulator.reset(np.ones(episodes, np.bool_), self._seeds, observations)
        totals: dict[str, float] = dict.fromkeys(("reward", "cores", "violations", "offered"), 0.0)
        for _ in range(self._windows):
            actions = policy.act(observations) + 1
            allocations = np.column_stack([actions, np.ones(episodes, np.int64)])
            observations, metrics = simulator.step(allocations)
            for name in totals:
                totals[name] += float(metrics[name].sum())
        steps = self._windows * episodes
        return {
            "reward": totals["reward"] / steps,
            "cores": totals["cores"] / steps,
            "violation_rate": totals["violations"] / max(1.0, totals["offered"]),
        }
