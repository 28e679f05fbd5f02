"""How good a policy is, on episodes that training never sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.learners import LEARNERS, masks_for
from agents.policy import Policy
from sponge_env.encoding import control_named
from sponge_env.scenario import Scenario
from sponge_env.seeding import SEED_LIMIT
from sponge_env.vector.simulator import BatchSimulator
from sponge_env.workload import as_long_as_its_traces


class Judge:
    """Scores policies on fixed simulated episodes that training never uses."""

    def __init__(self, scenarios: Sequence[Scenario], episodes: int, agent: str = "ppo") -> None:
        """Prepare the episodes.

        Args:
            scenarios: What to judge on.
            episodes: Number of them, shared out to the scenarios; at least one each.
            agent: Name of the learner.
        """
        count = max(episodes, len(scenarios))
        self._windows = max(as_long_as_its_traces(each).windows for each in scenarios)
        self._cores_max = scenarios[0].limits.cores
        self._simulator = BatchSimulator(
            scenarios,
            np.arange(count) % len(scenarios),
            obs_dim=control_named(LEARNERS[agent].control).obs_dim,
        )
        self._masks = masks_for(agent, self._simulator.specs[0])
        self._seeds = SEED_LIMIT + np.arange(count)

    def __call__(self, policy: Policy, violation_weight: float) -> dict[str, float]:
        """Return what a policy costs: means over all intervals.

        Args:
            policy: The policy.
            violation_weight: Cost of a violated request, against 1 for holding all cores
                for an interval of average load.

        Returns:
            ``cores``, ``violation_rate``, ``avoidable_violation_rate`` and the ``score``,
            which is better when larger.
        """
        simulator, episodes = self._simulator, len(self._seeds)
        observations = np.zeros((episodes, policy.observed), np.float32)
        simulator.reset(np.ones(episodes, np.bool_), self._seeds, observations)
        names = ("cores", "violations", "avoidable_violations", "offered")
        totals = dict.fromkeys(names, 0.0)
        memory, steps = policy.memory(episodes), 0
        for _ in range(self._windows):
            steps += int(np.count_nonzero(~simulator.over))
            allowed = self._masks(observations) if self._masks is not None else None
            actions = policy.act(observations, allowed, memory)
            observations, metrics = simulator.step(allocations(actions))
            for name in totals:
                totals[name] += float(metrics[name].sum())
        offered = max(1.0, totals["offered"])
        cores = totals["cores"] / steps
        avoidable = totals["avoidable_violations"] / offered
        return {
            "cores": cores,
            "violation_rate": totals["violations"] / offered,
            "avoidable_violation_rate": avoidable,
            "score": -cores / self._cores_max - violation_weight * avoidable,
        }


def allocations(
    actions: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Turn (n, parts) actions into (n, 3) cores, batch and replicas; one replica if left out."""
    if actions.shape[1] == 3:
        return actions + 1
    return np.column_stack([actions + 1, np.ones(len(actions), np.int64)])
