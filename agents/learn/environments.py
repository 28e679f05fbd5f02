"""The environments of a training run, some of them with random variants of its scenarios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sponge_env.arrays import IntArray
from sponge_env.env.sb3 import SpongeVecEnv
from sponge_env.env.single import SpongeEnv
from sponge_env.errors import ConfigError, unknown
from sponge_env.scenario.config import Arrivals, Initial, Network, Serving
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.encoding import Control, reaching

from ..learned import CHOICES, CorrectedMPC
from . import LearnConfig, TrainingPlan

Observation = NDArray[np.float32]

_STEP = 0.05
"""Largest relative change of a learned weight of violations at one update."""
_MEMORY = 0.9
"""Weight of the past in the violation rate that it follows."""
_LOADS = (0.08, 0.75)
"""Mean load, relative to the capacity with all cores."""
_SLOS_S = (0.5, 2.0)
_PAYLOADS_BYTES = (20e3, 600e3)
_DURATION_S = 200.0
"""Variants are short, so that a batch of them shows many beginnings."""


def make_environments(plan: TrainingPlan, config: LearnConfig) -> VecEnv:
    """Make what a plan trains on, wrapped as its learner wants it."""
    spec, batch = plan.spec, plan.backend == "sim" and not plan.learner.corrects
    control = reaching(plan.learner.control, spec)
    if config.violation_target is not None and not batch:
        raise ConfigError(
            "violation_target is for learners that choose allocations on the simulator"
        )
    hidden = hidden_fields(config.blind_to, plan.control)
    scenarios = _scenarios(plan, config)
    if batch:
        envs: VecEnv = SpongeVecEnv(scenarios, plan.envs, control=control)
    else:
        envs = _singles(plan, scenarios)
    if hidden:
        envs = BlindedEnvs(envs, hidden)
    if config.violation_target is not None:
        weights = [scenario.reward.accuracy_weight for scenario in scenarios]
        envs = ConstrainedRewards(envs, config, spec.total_cores, weights)
    return envs


def _singles(plan: TrainingPlan, scenarios: Sequence[Scenario]) -> VecEnv:
    """Make environments that step one after the other."""

    def make(scenario: Scenario) -> gym.Env[Any, Any]:
        control = plan.learner.control
        env = SpongeEnv(scenario, backend=plan.backend, limiter=plan.limiter, control=control)
        return CorrectionEnv(env) if plan.learner.corrects else env

    return VecMonitor(DummyVecEnv([partial(make, each) for each in scenarios]))


def _scenarios(plan: TrainingPlan, config: LearnConfig) -> list[Scenario]:
    """Return each environment's scenario."""
    shared = [plan.scenarios[k % len(plan.scenarios)] for k in range(plan.envs)]
    if plan.randomised and plan.backend == "sim":
        # Half of the environments keep to the scenarios, which are what counts in the end.
        first = plan.seed * plan.envs
        shared = [each if k % 2 else variant(each, first + k) for k, each in enumerate(shared)]
    weights = {name: getattr(config, name) for name in ("violation_weight", "accuracy_weight")}
    change = {name: weight for name, weight in weights.items() if weight is not None}
    if not change:
        return shared
    return [
        dataclasses.replace(each, reward=dataclasses.replace(each.reward, **change))
        for each in shared
    ]


class BlindedEnvs(VecEnvWrapper):
    """Shows 0 in the place of some fields of the observation."""

    def __init__(self, venv: VecEnv, hidden: Sequence[int]) -> None:
        super().__init__(venv)
        self._seen = np.ones(venv.observation_space.shape or (), np.float32)
        self._seen[list(hidden)] = 0.0

    def reset(self) -> Any:
        """Start new episodes."""
        observations: Any = self.venv.reset()
        return observations * self._seen

    def step_wait(self) -> Any:
        """Serve one interval."""
        observations: Any
        observations, rewards, ends, infos = self.venv.step_wait()
        for k in np.flatnonzero(ends):
            infos[k]["terminal_observation"] = infos[k]["terminal_observation"] * self._seen
        return observations * self._seen, rewards, ends, infos


class ConstrainedRewards(VecEnvWrapper):
    """Learns the weight of violations: a Lagrange multiplier that keeps them at a target.

    The reward is that of :mod:`sponge_env.core.measure` with the multiplier as weight and without
    the violations of hopeless requests. :meth:`adapt` moves the multiplier in proportion to its
    size (dual ascent on its logarithm), so that it finds its order of magnitude by itself.
    """

    def __init__(
        self,
        venv: VecEnv,
        config: LearnConfig,
        total_cores: int,
        accuracy_weights: Sequence[float],
    ) -> None:
        super().__init__(venv)
        assert config.violation_target is not None
        self._accuracy_weights = np.array(accuracy_weights)
        self._target = self._rate = config.violation_target
        self._total_cores = total_cores
        self.multiplier = config.violation_weight or 20.0
        """Weight of violations now."""
        self._violations = self._ended = 0

    def reset(self) -> Any:
        """Start new episodes."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Serve one interval, at today's weight of violations."""
        observations, _, ends, infos = self.venv.step_wait()
        metrics = self.venv.metrics  # type: ignore[attr-defined]  # a batch simulator's
        violations = metrics["avoidable_violations"]
        ended = metrics["on_time"] + metrics["violations"]
        self._violations += int(violations.sum())
        self._ended += int(ended.sum())
        missed = violations / np.maximum(1, ended)
        gained = self._accuracy_weights * np.nan_to_num(metrics["effective_accuracy"])
        rewards = -metrics["cores"] / self._total_cores - self.multiplier * missed + gained
        return observations, rewards.astype(np.float32), ends, infos

    def adapt(self) -> None:
        """Move the multiplier by the violations since the last call."""
        rate = self._violations / max(1, self._ended)
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * rate
        excess = np.clip(self._rate / self._target - 1, -1, 1)
        self.multiplier *= math.exp(_STEP * float(excess))
        self._violations = self._ended = 0


def hidden_fields(blind_to: Sequence[str], control: Control) -> list[int]:
    """Return the places of the fields whose names begin with one of some words."""
    for word in blind_to:
        if not any(name.startswith(word) for name in control.fields):
            raise ConfigError(unknown("observation field", word, control.fields))
    return [k for k, name in enumerate(control.fields) if name.startswith(tuple(blind_to))]


class CorrectionEnv(gym.Wrapper[Observation, IntArray, Observation, IntArray]):
    """``Sponge-v0`` but for its actions, whose meaning :func:`..learned.corrected` says."""

    def __init__(self, env: SpongeEnv) -> None:
        super().__init__(env)
        self._sponge, self._program = env, CorrectedMPC()
        self.metrics: dict[str, Any] = {}
        """Of the last interval."""
        self.action_space = gym.spaces.MultiDiscrete(list(CHOICES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode, as the environment does."""
        observation, info = self._sponge.reset(seed=seed, options=options)
        self._program.reset(self._sponge.system.spec, info["episode_seed"])
        return observation, info

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Let the corrected program decide, and serve one interval.

        The info is empty and the metrics are in :attr:`metrics`, for SB3 copies every info.
        """
        self._program.correct(action)
        chosen = self._program.decide(self._sponge.system.view())
        allocation = np.array([chosen.cores - 1, chosen.batch - 1])
        observation, reward, ended, over, self.metrics = self._sponge.step(allocation)
        return observation, reward, ended, over, {}


def variant(scenario: Scenario, seed: int) -> Scenario:
    """Draw a variant of a scenario: domain randomisation (Tobin et al., IROS 2017).

    A policy that has seen one load, payload and SLO has learned those by heart; trained on
    variants, it has to read them from its observation. Profile, interval and limits, which give
    actions their meaning, stay.
    """
    rng, limits = stream(seed, "variants"), scenario.limits
    # Of pipelines the objective is relative to their own, for they need their time.
    usual_s = scenario.slo_s if scenario.stages else 1.0
    return dataclasses.replace(
        scenario,
        name=f"{scenario.name}-{seed}",
        slo_s=usual_s * _between(rng, _SLOS_S, scale="log"),
        duration_s=_DURATION_S,
        classes=(),
        start="cold",
        arrivals=_arrivals(rng),
        network=_network(rng),
        serving=Serving(drop="expired" if rng.random() < 0.3 else "none"),
        initial=Initial(
            cores=1 + int(rng.random() * limits.cores), batch=1 + int(rng.random() * limits.batch)
        ),
    )


def _arrivals(rng: np.random.Generator) -> Arrivals:
    kind = ("constant", "poisson", "bursty", "flash-crowd", "diurnal")[int(rng.random() * 5)]
    # A peak of k times the mean must still be served: the mean gets lower instead.
    peak = {"bursty": 2.0, "flash-crowd": 2.5, "diurnal": 1.5}.get(kind, 1.0)
    load = _between(rng, _LOADS) / peak
    return Arrivals(
        kind=kind,  # type: ignore[arg-type]  # one of its literals
        load=load,
        burst_dwell_s=_between(rng, (4.0, 30.0), scale="log"),
        flash_factor=_between(rng, (2.0, 6.0)),
        flash_s=_between(rng, (10.0, 40.0)),
        flash_every_s=_between(rng, (60.0, 150.0)),
        diurnal_amplitude=_between(rng, (0.3, 0.9)),
        diurnal_period_s=_between(rng, (60.0, 300.0)),
    )


def _network(rng: np.random.Generator) -> Network:
    if rng.random() < 0.1:
        return Network(trace="none")
    return Network(
        payload_bytes=_between(rng, _PAYLOADS_BYTES, scale="log"),
        base_delay_s=_between(rng, (0.001, 0.03)),
        fade_every_s=_between(rng, (20.0, 90.0)) if rng.random() < 0.25 else None,
        fade_s=_between(rng, (1.0, 6.0)),
    )


def _between(rng: np.random.Generator, ends: tuple[float, float], scale: str = "linear") -> float:
    low, high = ends
    share = float(rng.random())
    return float(low * (high / low) ** share) if scale == "log" else low + share * (high - low)
