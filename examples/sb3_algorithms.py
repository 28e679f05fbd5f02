#!/usr/bin/env python3
"""Train algorithms of Stable-Baselines3 and sb3-contrib, each on the actions it can take.

python examples/sb3_algorithms.py --steps 5000 --algorithms TRPO QRDQN
"""

import argparse

import gymnasium as gym
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib.common.maskable.evaluation import evaluate_policy as masked_evaluation
from stable_baselines3.common.evaluation import evaluate_policy

import sponge_env  # noqa: F401  # registers the environments

ENVIRONMENTS = {
    **dict.fromkeys(("A2C", "PPO", "TRPO", "MaskablePPO", "RecurrentPPO"), "Sponge-v0"),
    **dict.fromkeys(("DQN", "QRDQN"), "SpongeDiscrete-v0"),
    **dict.fromkeys(("ARS", "SAC", "TD3", "TQC", "CrossQ"), "SpongeContinuous-v0"),
}


def train(name: str, steps: int, **options: object) -> float:
    """Train one algorithm; return the mean sum of rewards of an episode afterwards."""
    algorithm = getattr(sb3_contrib, name, None) or getattr(stable_baselines3, name)
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    model = algorithm(policy, gym.make(ENVIRONMENTS[name], **options), seed=0, device="cpu")
    model.learn(steps)
    env = stable_baselines3.common.monitor.Monitor(gym.make(ENVIRONMENTS[name], **options))
    evaluate = masked_evaluation if name == "MaskablePPO" else evaluate_policy
    mean, _ = evaluate(model, env, n_eval_episodes=1)
    return float(mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--algorithms", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks this small get slower with more
    for name in args.algorithms:
        print(f"{name:13} {ENVIRONMENTS[name]:20}", end=" ", flush=True)
        print(f"{train(name, args.steps):8.1f}", flush=True)
