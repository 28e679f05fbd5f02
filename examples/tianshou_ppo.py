#!/usr/bin/env python3
"""PPO of Tianshou on its vector of environments (pip install 'tianshou>=2').

python examples/tianshou_ppo.py --steps 100000
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch.distributions import Categorical, Distribution, Independent

import sponge_env  # noqa: F401  # registers the environments


def train(steps: int, envs: int = 16, rollout: int = 64, **options: object) -> float:
    """Train; return the best mean sum of rewards of an episode."""
    algorithm = ppo(gym.make("Sponge-v0", **options))
    training, test = (
        DummyVectorEnv([lambda: gym.make("Sponge-v0", **options)] * count) for count in (envs, 4)
    )
    buffer = VectorReplayBuffer(envs * rollout, envs)
    result = algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, training, buffer),
            test_collector=Collector(algorithm, test),
            max_epochs=1,
            epoch_num_steps=steps,
            collection_step_num_env_steps=envs * rollout,
            batch_size=256,
            update_step_num_repetitions=4,
            test_step_num_episodes=4,
        )
    )
    return float(result.best_reward)


def ppo(env: gym.Env) -> PPO:
    """Make the learner, with one distribution for each part of an action."""
    # In the shipped scenarios there are as many choices of cores as of batch sizes.
    parts, choices = len(env.action_space.nvec), int(env.action_space.nvec[0])
    actor, critic = (
        Net(state_shape=env.observation_space.shape, hidden_sizes=[64, 64]) for _ in range(2)
    )

    def distribution(logits: torch.Tensor) -> Distribution:
        return Independent(Categorical(logits=logits.unflatten(-1, (parts, choices))), 1)

    policy = ProbabilisticActorPolicy(
        actor=DiscreteActor(
            preprocess_net=actor, action_shape=parts * choices, softmax_output=False
        ),
        dist_fn=distribution,
        deterministic_eval=True,
        action_space=env.action_space,
        action_scaling=False,
        action_bound_method=None,
    )
    return PPO(
        policy=policy,
        critic=DiscreteCritic(preprocess_net=critic),
        optim=AdamOptimizerFactory(lr=1e-3),
        gamma=0.9,
        gae_lambda=0.9,
        return_scaling=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small get slower with more
    print(f"mean sum of rewards {train(parser.parse_args().steps):.1f}")
