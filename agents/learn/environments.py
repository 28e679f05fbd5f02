"""The environments of a training run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from agents.learn.plan import LearnConfig, TrainingPlan
from agents.learn.randomise import variants
from agents.learners import masks_for
from sponge_env.env import SpongeEnv
from sponge_env.errors import ConfigError
from sponge_env.masks import ActionMasks
from sponge_env.scenario import Scenario
from sponge_env.vector.sb3_env import SpongeVecEnv


def make_environments(plan: TrainingPlan, config: LearnConfig) -> VecEnv:
    """Make what a plan trains on.

    Raises:
        SpongeError: The scenario or machine does not allow it.
    """
    if plan.backend == "live":
        if config.violation_target is not None:
            raise ConfigError("violation_target is for the simulator, which counts fast enough")
        scenario = _weighted(plan.scenarios[0], config)
        live = SpongeEnv(
            scenario, backend="live", limiter=plan.limiter, control=plan.learner.control
        )
        return VecMonitor(DummyVecEnv([lambda: live]))
    shared = [plan.scenarios[k % len(plan.scenarios)] for k in range(plan.envs)]
    if plan.randomised:
        # Half of the environments keep to the scenarios, which are what counts in the end.
        random = [variants(each, 1, plan.seed * plan.envs + k)[0] for k, each in enumerate(shared)]
        shared = [each if k % 2 else random[k] for k, each in enumerate(shared)]
    envs: VecEnv = SpongeVecEnv(
        [_weighted(each, config) for each in shared], plan.envs, control=plan.learner.control
    )
    if (masks := masks_for(plan.agent, plan.spec)) is not None:
        envs = MaskedEnvs(envs, masks)
    if config.violation_target is not None:
        envs = ConstrainedRewards(envs, config, plan.spec.cores_max)
    return envs


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
