"""The environments of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from agents.learn.correction import CorrectionEnv
from agents.learn.plan import LearnConfig, TrainingPlan
from agents.learn.randomise import variants
from agents.learners import masks_for
from sponge_env.encoding import Control, control_named
from sponge_env.env import SpongeEnv
from sponge_env.errors import ConfigError, unknown
from sponge_env.masks import ActionMasks
from sponge_env.scenario import Scenario
from sponge_env.vector.sb3_env import SpongeVecEnv


def make_environments(plan: TrainingPlan, config: LearnConfig) -> VecEnv:
    """Make what a plan trains on.

    Raises:
        SpongeError: The scenario or machine does not allow it.
    """
    batch = plan.backend == "sim" and not plan.learner.corrects
    if config.violation_target is not None and not batch:
        raise ConfigError(
            "violation_target is for learners that choose allocations on the simulator"
        )
    hidden = hidden_fields(config.blind_to, control_named(plan.learner.control))
    envs = _batch(plan, config) if batch else _singles(plan, config)
    if (masks := masks_for(plan.agent, plan.spec)) is not None:
        envs = MaskedEnvs(envs, masks)
    if hidden:
        envs = BlindedEnvs(envs, hidden)
    if config.violation_target is not None:
        envs = ConstrainedRewards(envs, config, plan.spec.cores_max)
    return envs


def _batch(plan: TrainingPlan, config: LearnConfig) -> VecEnv:
    """Make simulated environments that step at once."""
    scenarios = _scenarios(plan, config)
    return SpongeVecEnv(scenarios, plan.envs, control=plan.learner.control)


def _singles(plan: TrainingPlan, config: LearnConfig) -> VecEnv:
    """Make environments that step one after the other."""
    makers: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(CorrectionEnv, scenario, plan.backend, plan.limiter)
        if plan.learner.corrects
        else partial(
            SpongeEnv,
            scenario,
            backend=plan.backend,
            limiter=plan.limiter,
            control=plan.learner.control,
        )
        for scenario in _scenarios(plan, config)
    ]
    return VecMonitor(DummyVecEnv(makers))


def _scenarios(plan: TrainingPlan, config: LearnConfig) -> list[Scenario]:
    """Return each environment's scenario."""
    shared = [plan.scenarios[k % len(plan.scenarios)] for k in range(plan.envs)]
    if plan.randomised and plan.backend == "sim":
        # Half of the environments keep to the scenarios, which are what counts in the end.
        random = [variants(each, 1, plan.seed * plan.envs + k)[0] for k, each in enumerate(shared)]
        shared = [each if k % 2 else random[k] for k, each in enumerate(shared)]
    return [_weighted(each, config) for each in shared]


def _weighted(scenario: Scenario, config: LearnConfig) -> Scenario:
    if config.violation_weight is None:
        return scenario
    reward = dataclasses.replace(scenario.reward, violation_weight=config.violation_weight)
    return dataclasses.replace(scenario, reward=reward)


class MaskedEnvs(VecEnvWrapper):
    """Answers sb3-contrib's question which actions are allowed."""

    def __init__(self, venv: VecEnv, masks: ActionMasks) -> None:
        super().__init__(venv)
        self._masks = masks
        self._observations: Any = None

    def reset(self) -> Any:
        """Start new episodes."""
        self._observations = self.venv.reset()
        return self._observations

    def step_wait(self) -> Any:
        """Serve one interval."""
        self._observations, *rest = self.venv.step_wait()
        return self._observations, *rest

    def has_attr(self, attr_name: str) -> bool:
        """Say that there are masks."""
        return attr_name == "action_masks" or bool(super().has_attr(attr_name))

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Return the masks of all environments, or ask what is wrapped."""
        if method_name == "action_masks":
            return list(self._masks(self._observations))
        return self.venv.env_method(method_name, *args, indices=indices, **kwargs)


def hidden_fields(blind_to: Sequence[str], control: Control) -> list[int]:
    """Return the places of the fields whose names begin with one of the given words.

    Raises:
        ConfigError: No field's name begins so.
    """
    for word in blind_to:
        if not any(name.startswith(word) for name in control.fields):
            raise ConfigError(unknown("observation field", word, control.fields))
    return [k for k, name in enumerate(control.fields) if name.startswith(tuple(blind_to))]


class BlindedEnvs(VecEnvWrapper):
    """Shows 0 in the place of some fields of the observation."""

    def __init__(self, venv: VecEnv, hidden: Sequence[int]) -> None:
        super().__init__(venv)
        self._seen = np.ones(venv.observation_space.shape or (), np.float32)
        self._seen[list(hidden)] = 0.0

    def reset(self) -> Any:
        """Start new episodes."""
        return self._blinded(self.venv.reset())

    def step_wait(self) -> Any:
        """Serve one interval."""
        observations, rewards, ends, infos = self.venv.step_wait()
        for k in np.flatnonzero(ends):
            infos[k]["terminal_observation"] = self._blinded(infos[k]["terminal_observation"])
        return self._blinded(observations), rewards, ends, infos

    def _blinded(self, observations: Any) -> Any:
        return observations * self._seen


class ConstrainedRewards(VecEnvWrapper):
    """Learns the weight of violations: a Lagrange multiplier that keeps them at a target.

    The reward is that of :func:`sponge_env.reward.reward` with the multiplier as weight and
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

    def reset(self) -> Any:
        """Start new episodes."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Serve one interval."""
        observations, _, ends, infos = self.venv.step_wait()
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
