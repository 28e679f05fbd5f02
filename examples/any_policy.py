"""Any policy for the Gymnasium environment as a controller: encode, act, decode.

Search a linear policy with the cross-entropy method, in NumPy alone, and compare it:

    python any_policy.py
    python ../evaluate.py --agent any_policy:Linear sponge-ip
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sponge_env import Allocation, SystemSpec, SystemView
from sponge_env.simulation.encoding import decode, encode


def act(weights: NDArray[np.float64], observation: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return an action of Sponge-v0, (..., 2), for (..., fields) observations.

    The weights are (..., 2, fields + 1), the last a bias; 16 is the limit of both choices.
    """
    logits = (weights[..., :-1] @ observation[..., None])[..., 0] + weights[..., -1]
    chosen: NDArray[np.int64] = (16 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.int64)
    return np.minimum(chosen, 15)


class Linear:
    """A controller that follows the policy in a file; put your own network in its place."""

    def __init__(self, file: str = "linear.npy") -> None:
        self.weights = np.load(file, allow_pickle=False)

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start an episode; a policy with a memory forgets it here."""
        self.spec = spec

    def decide(self, view: SystemView) -> Allocation:
        """See what the environment would show, act, and say it as an allocation."""
        return decode(act(self.weights, encode(view, self.spec)))


def search(file: Path, rounds: int = 15, candidates: int = 128, scenario: str = "paper") -> float:
    """Save the mean of the best candidates' weights; return the reward of the last ones."""
    envs = gymnasium.make_vec("sponge_env:Sponge-v0", num_envs=candidates, scenario=scenario)
    assert envs.single_observation_space.shape is not None
    rng, shape = np.random.default_rng(0), (2, envs.single_observation_space.shape[0] + 1)
    mean, spread, reward = np.zeros(shape), np.ones(shape), 0.0
    for number in range(rounds):
        weights = mean + spread * rng.standard_normal((candidates, *shape))
        observations, _ = envs.reset(seed=number)
        returns, over = np.zeros(candidates), np.zeros(candidates, np.bool_)
        while not over.any():
            observations, rewards, _, over, _ = envs.step(act(weights, observations))
            returns += rewards
        best = weights[np.argsort(returns)[-candidates // 8 :]]
        mean, spread, reward = best.mean(axis=0), best.std(axis=0) + 0.02, returns.max()
    np.save(file, mean)
    return float(reward)


if __name__ == "__main__":
    print(f"best reward of the last round: {search(Path('linear.npy')):.1f}")
