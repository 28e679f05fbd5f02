"""The learning algorithms: how a model is made, and the network taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.learn.environments import hidden_fields
from agents.learn.plan import LearnConfig, TrainingPlan
from agents.mpc_config import MPCConfig
from agents.policy import Policy, PolicyInfo, Recurrence
from agents.residual import preset
from sponge_env.encoding import control_named
from sponge_env.errors import PolicyError

ALGORITHMS: dict[str, Callable[..., BaseAlgorithm]] = {
    "ppo": PPO,
    "maskable": MaskablePPO,
    "recurrent": RecurrentPPO,
}
"""By :attr:`agents.learners.Learner.algorithm`."""

_FIRST_LOGIT = 1.0
"""Of each choice that leaves the program as it is, when training begins; 0 for the others."""


def make_model(plan: TrainingPlan, config: LearnConfig, envs: VecEnv) -> Any:
    """Make the learner, or load the one to go on with.

    Raises:
        PolicyError: The checkpoint to resume cannot be read.
    """
    algorithm: Any = ALGORITHMS[plan.learner.algorithm]
    settings = _settings(config, envs)
    if plan.resume is not None:
        return _resumed(algorithm, plan, settings, envs)
    network: dict[str, Any] = {"net_arch": list(config.hidden)}
    if recurrent := plan.learner.algorithm == "recurrent":
        network |= {"lstm_hidden_size": config.hidden[0], "enable_critic_lstm": True}
    model = algorithm(
        "MlpLstmPolicy" if recurrent else "MlpPolicy",
        envs,
        policy_kwargs=network,
        seed=plan.seed,
        device="cpu",
        **settings,
    )
    if plan.learner.corrects:
        _favour(model, preset(MPCConfig()))
    return model


def _settings(config: LearnConfig, envs: VecEnv) -> dict[str, Any]:
    """Return the hyper-parameters under the names that Stable-Baselines3 gives them."""
    return {
        "learning_rate": lambda left: config.learning_rate * max(0.05, left),
        "n_steps": config.rollout_steps,
        "batch_size": divisor(config.rollout_steps * envs.num_envs, config.minibatch),
        "n_epochs": config.epochs,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
    }


def _resumed(algorithm: Any, plan: TrainingPlan, settings: dict[str, Any], envs: VecEnv) -> Any:
    try:
        model = algorithm.load(plan.resume, env=envs, device="cpu", **settings)
    except Exception as error:
        # SB3 unpickles, and a damaged file may fail in any way.
        raise PolicyError(f"{plan.resume} cannot be resumed: {error}") from error
    # New episodes, not those of the first run again.
    model.set_random_seed(plan.seed + model.num_timesteps)
    return model


def _favour(model: Any, action: Sequence[int]) -> None:
    """Let a new policy prefer an action, which then is its most probable one everywhere."""
    edges = np.cumsum([0, *model.action_space.nvec[:-1]])
    with torch.no_grad():
        model.policy.action_net.bias[(edges + np.array(action)).tolist()] = _FIRST_LOGIT


def export(model: Any, plan: TrainingPlan, config: LearnConfig, seconds: float) -> Policy:
    """Take the policy network out of a model.

    Args:
        model: What :func:`make_model` made.
        plan: Its plan.
        config: Its hyper-parameters.
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
    layers = [(_numpy(layer.weight), _numpy(layer.bias)) for layer in linear]
    recurrence = _recurrence(model.policy)
    # What the policy was blind to may not count when it sees everything.
    first = layers[0][0] if recurrence is None else recurrence.weight_in
    first[:, hidden_fields(config.blind_to, control_named(plan.learner.control))] = 0.0
    return Policy(info, tuple(layers), recurrence)


def _recurrence(network: Any) -> Recurrence | None:
    lstm = getattr(network, "lstm_actor", None)
    if lstm is None:
        return None
    bias = _numpy(lstm.bias_ih_l0) + _numpy(lstm.bias_hh_l0)
    return Recurrence(_numpy(lstm.weight_ih_l0), _numpy(lstm.weight_hh_l0), bias)


def _numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(tensor.detach().cpu().numpy(), np.float32)


def divisor(total: int, largest: int) -> int:
    """Return the largest divisor of ``total`` up to ``largest``."""
    return next(size for size in range(min(total, largest), 0, -1) if total % size == 0)
