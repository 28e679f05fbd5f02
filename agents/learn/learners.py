"""The learning algorithms: how a model is made, and the network taken out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.learn.plan import LearnConfig, TrainingPlan
from agents.policy import Policy, PolicyInfo, Recurrence
from sponge_env.errors import PolicyError

ALGORITHMS: dict[str, Callable[..., BaseAlgorithm]] = {
    "ppo": PPO,
    "maskable": MaskablePPO,
    "recurrent": RecurrentPPO,
}
"""By :attr:`agents.learners.Learner.algorithm`."""


def make_model(plan: TrainingPlan, config: LearnConfig, envs: VecEnv) -> Any:
    """Make the learner, or load the one to go on with.

    Raises:
        PolicyError: The checkpoint to resume cannot be read.
    """
    recurrent = plan.learner.algorithm == "recurrent"
    algorithm: Any = ALGORITHMS[plan.learner.algorithm]
    if plan.resume is None:
        network: dict[str, Any] = {"net_arch": list(config.hidden)}
        if recurrent:
            network |= {"lstm_hidden_size": config.hidden[0], "enable_critic_lstm": True}
        return algorithm(
            "MlpLstmPolicy" if recurrent else "MlpPolicy",
            envs,
            learning_rate=lambda left: config.learning_rate * max(0.05, left),
            n_steps=config.rollout_steps,
            batch_size=divisor(config.rollout_steps * envs.num_envs, config.minibatch),
            n_epochs=config.epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.entropy,
            policy_kwargs=network,
            seed=plan.seed,
            device="cpu",
        )
    try:
        model = algorithm.load(plan.resume, env=envs, device="cpu")
    except Exception as error:
        # SB3 unpickles, and a damaged file may fail in any way.
        raise PolicyError(f"{plan.resume} cannot be resumed: {error}") from error
    # New episodes, not those of the first run again.
    model.set_random_seed(plan.seed + model.num_timesteps)
    return model


def export(model: Any, plan: TrainingPlan, seconds: float) -> Policy:
    """Take the policy network out of a model.

    Args:
        model: What :func:`make_model` made.
        plan: Its plan.
        seconds: How long it has been trained in this run.
    """
    networks = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
    info = PolicyInfo(
        agent=plan.agent,
        fingerprint=plan.spec.fingerprint,
        scenarios=tuple(dict.fromkeys(scenario.name for scenario in plan.scenarios)),
        actions=tuple(int(n) for n in model.action_space.nvec),
        steps=model.num_timesteps,
        seed=plan.seed,
        command=plan.command,
        seconds=round(seconds, 1),
    )
    layers = tuple((_numpy(layer.weight), _numpy(layer.bias)) for layer in linear)
    return Policy(info, layers, _recurrence(model.policy))


def _recurrence(network: Any) -> Recurrence | None:
    lstm = getattr(network, "lstm_actor", None)
    if lstm is None:
        return None
    bias = _numpy(lstm.bias_ih_l0) + _numpy(lstm.bias_hh_l0)
    return Recurrence(_numpy(lstm.weight_ih_l0), _numpy(lstm.weight_hh_l0), bias)


def _numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.detach().cpu().numpy().astype(np.float32)


def divisor(total: int, largest: int) -> int:
    """Return the largest divisor of ``total`` up to ``largest``."""
    return next(size for size in range(min(total, largest), 0, -1) if total % size == 0)
