#!/usr/bin/env python3
"""PPO of TorchRL on environments that are stepped at once in compiled code (pip install torchrl).

python examples/torchrl_ppo.py --steps 100000
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.distributions import Categorical, Independent
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import sponge_env  # noqa: F401  # registers the environments


class EachPart(Independent):
    """One choice for each part of an action."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(Categorical(logits=logits), 1)


def networks(
    envs: GymWrapper, parts: int, choices: int
) -> tuple[ProbabilisticTensorDictSequential, ValueOperator]:
    """Make an actor that makes so many choices of each part, and a critic."""
    network = torch.nn.Sequential(
        MLP(out_features=parts * choices, num_cells=[64, 64]),
        torch.nn.Unflatten(-1, (parts, choices)),
    )
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=EachPart,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(out_features=1, num_cells=[64, 64]), in_keys=["observation"])
    critic(actor(envs.reset()))  # networks get their sizes from the first data
    return actor, critic


def train(steps: int, envs: int = 64, rollout: int = 32, **options: object) -> float:
    """Train; return the mean reward of a step in the last rollout."""
    # TorchRL resets the environments whose episode is over.
    many = gym.make_vec("Sponge-v0", num_envs=envs, autoreset_mode="Disabled", **options)
    training = GymWrapper(many, categorical_action_encoding=True)
    # In the shipped scenarios there are as many choices of cores as of batch sizes.
    nvec = many.single_action_space.nvec.tolist()
    actor, critic = networks(training, len(nvec), nvec[0])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.002, normalize_advantage=True)
    advantage = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    collector = Collector(training, actor, frames_per_batch=envs * rollout, total_frames=steps)
    for data in collector:
        advantage(data)
        flat = data.reshape(-1)
        for _ in range(4):
            for chosen in torch.randperm(flat.numel()).split(256):
                losses = loss(flat[chosen])
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    collector.shutdown()
    return float(data["next", "reward"].mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small get slower with more
    print(f"mean reward of a step {train(parser.parse_args().steps):.3f}")
