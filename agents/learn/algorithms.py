"""The learning algorithms: how a model is made, what it learns from, and its network taken out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn

from sponge_env.encoding import Control, control_named
from sponge_env.errors import ConfigError, PolicyError, unknown
from sponge_env.masks import ActionMasks

from ..learned import preset
from ..lookahead import MPCConfig
from ..policy import Policy, PolicyInfo, Recurrence
from . import LearnConfig, TrainingPlan

ALGORITHMS: dict[str, Callable[..., BaseAlgorithm]] = {
    "ppo": PPO,
    "maskable": MaskablePPO,
    "recurrent": RecurrentPPO,
}
"""By :attr:`..Learner.algorithm`."""

_FIRST_LOGIT = 1.0
"""Of each choice that leaves the program as it is, when training begins; 0 for the others."""


def make_model(plan: TrainingPlan, config: LearnConfig, envs: VecEnv) -> Any:
    """Make the learner, or load the one to go on with."""
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
    """Take the policy network out of a model that was trained for so long in this run."""
    networks = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [layer for layer in networks if isinstance(layer, nn.Linear)]
    info = PolicyInfo(
        agent=plan.agent,
        fingerprint=plan.spec.fingerprint,
        scenarios=tuple(dict.fromkeys(scenario.name for scenario in plan.scenarios)),
        actions=tuple(int(n) for n in model.action_space.nvec),
        inputs=control_named(plan.learner.control).fields,
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


class _Envs(VecEnvWrapper):
    """Environments that show what they are told to."""

    def reset(self) -> Any:
        """Start new episodes."""
        return self.shown(self.venv.reset())

    def step_wait(self) -> Any:
        """Serve one interval."""
        observations, rewards, ends, infos = self.venv.step_wait()
        for k in np.flatnonzero(ends):
            infos[k]["terminal_observation"] = self.shown(infos[k]["terminal_observation"])
        return self.shown(observations), rewards, ends, infos

    def shown(self, observations: Any) -> Any:
        """Return what is seen of observations."""
        return observations


class MaskedEnvs(_Envs):
    """Answers sb3-contrib's question which actions are allowed."""

    def __init__(self, venv: VecEnv, masks: ActionMasks) -> None:
        super().__init__(venv)
        self._masks = masks
        self._observations: Any = None

    def shown(self, observations: Any) -> Any:
        """Remember the newest observations, which come last; the masks are theirs."""
        self._observations = observations
        return observations

    def has_attr(self, attr_name: str) -> bool:
        """Say that there are masks."""
        return attr_name == "action_masks" or bool(super().has_attr(attr_name))

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Return the masks of all environments, or ask what is wrapped."""
        if method_name == "action_masks":
            return list(self._masks(self._observations))
        return self.venv.env_method(method_name, *args, indices=indices, **kwargs)


class BlindedEnvs(_Envs):
    """Shows 0 in the place of some fields of the observation."""

    def __init__(self, venv: VecEnv, hidden: Sequence[int]) -> None:
        super().__init__(venv)
        self._seen = np.ones(venv.observation_space.shape or (), np.float32)
        self._seen[list(hidden)] = 0.0

    def shown(self, observations: Any) -> Any:
        """Return 0 in the place of what is hidden."""
        return observations * self._seen


class ConstrainedRewards(_Envs):
    """Learns the weight of violations: a Lagrange multiplier that keeps them at a target.

    The reward is that of :mod:`sponge_env.core.measure` with the multiplier as weight and
    without the violations of hopeless requests, which no weight could lower.
    :meth:`adapt` moves the multiplier in proportion to its size (dual ascent on its
    logarithm), so that it finds its order of magnitude by itself.
    """

    _RATE = 0.05
    """Largest relative change of the multiplier at one update."""
    _MEMORY = 0.9
    """Weight of the past in the violation rate that the multiplier follows."""

    def __init__(self, venv: VecEnv, config: LearnConfig, cores_max: int) -> None:
        super().__init__(venv)
        assert config.violation_target is not None
        self._target = config.violation_target
        self._cores_max = cores_max
        self.multiplier = config.violation_weight or 20.0
        """Weight of violations now."""
        self._rate = self._target
        self._violations = self._ended = 0

    def step_wait(self) -> Any:
        """Serve one interval, at today's weight of violations."""
        observations, _, ends, infos = super().step_wait()
        metrics = self.venv.metrics  # type: ignore[attr-defined]  # a batch simulator's
        violations = metrics["avoidable_violations"]
        ended = metrics["on_time"] + metrics["violations"]
        self._violations += int(violations.sum())
        self._ended += int(ended.sum())
        missed = violations / np.maximum(1, ended)
        rewards = -metrics["cores"] / self._cores_max - self.multiplier * missed
        return observations, rewards.astype(np.float32), ends, infos

    def adapt(self) -> None:
        """Move the multiplier by the violations since the last call."""
        rate = self._violations / max(1, self._ended)
        self._rate = self._MEMORY * self._rate + (1 - self._MEMORY) * rate
        excess = np.clip(self._rate / self._target - 1, -1, 1)
        self.multiplier *= math.exp(self._RATE * float(excess))
        self._violations = self._ended = 0


def hidden_fields(blind_to: Sequence[str], control: Control) -> list[int]:
    """Return the places of the fields whose names begin with one of some words."""
    for word in blind_to:
        if not any(name.startswith(word) for name in control.fields):
            raise ConfigError(unknown("observation field", word, control.fields))
    return [k for k, name in enumerate(control.fields) if name.startswith(tuple(blind_to))]
