"""The environments of a training run, some of them with random variants of its scenarios."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sponge_env.arrays import IntArray
from sponge_env.config import Arrivals, Backend, Initial, Limiter, Network, Serving
from sponge_env.encoding import CLIP, OBS_DIM, control_named, encode
from sponge_env.env import SpongeEnv
from sponge_env.errors import ConfigError
from sponge_env.factory import make_system
from sponge_env.metrics import IntervalMetrics
from sponge_env.scenario import Scenario
from sponge_env.seeding import EVALUATION_SEEDS, SEED_LIMIT, stream
from sponge_env.system import System
from sponge_env.vector.sb3_env import SpongeVecEnv
from sponge_env.vector.system import CompiledSystem

from ..learned import masks_for
from ..residual import CHOICES, CorrectedMPC
from . import LearnConfig, TrainingPlan
from .algorithms import BlindedEnvs, ConstrainedRewards, MaskedEnvs, hidden_fields

Observation = NDArray[np.float32]

_LOADS = (0.08, 0.75)
"""Mean load, relative to the capacity with all cores."""
_SLOS_S = (0.5, 2.0)
_PAYLOADS_BYTES = (20e3, 600e3)
_DURATION_S = 200.0
"""Variants are short, so that a batch of them shows many beginnings."""


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


class CorrectionEnv(gym.Env[Observation, IntArray]):
    """``Sponge-v0`` with the program between the action and the system.

    Observation, reward and the sequence of episodes are those of ``Sponge-v0``; what an action
    means says :func:`..residual.corrected`.
    """

    def __init__(
        self, scenario: Scenario, backend: Backend = "sim", limiter: Limiter = "auto"
    ) -> None:
        """Nothing is started before ``reset``.

        Args:
            scenario: The experiment.
            backend: Simulated or real worker; the real one's clock stands still between two
                steps.
            limiter: CPU limiter of the real worker.
        """
        self.scenario = scenario
        self._backend, self._limiter = backend, limiter
        self._program = CorrectedMPC()
        self._system: System | CompiledSystem | None = None
        self.metrics: IntervalMetrics | None = None
        """Of the last interval; None before the first."""
        self.action_space = gym.spaces.MultiDiscrete(list(CHOICES))
        self.observation_space = gym.spaces.Box(-CLIP, CLIP, (OBS_DIM,), np.float32)

    @property
    def system(self) -> System | CompiledSystem:
        """The system behind the environment."""
        assert self._system is not None, "call reset first"
        return self._system

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode.

        Args:
            seed: Seeds the sequence of episodes.
            options: ``episode_seed`` fixes the episode itself.

        Returns:
            The first observation, and the episode's seed as info.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(EVALUATION_SEEDS, SEED_LIMIT))
        episode_seed = (options or {}).get("episode_seed", drawn)
        self.close()
        self._system = self._make_system(episode_seed)
        self._program.reset(self._system.spec, episode_seed)
        return self._observe(), {"episode_seed": episode_seed}

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Let the corrected program decide, and serve one interval.

        Returns:
            Observation, reward, terminated (always False), truncated, and no info: what the
            metrics say is in :attr:`metrics`, for SB3 copies every info at every step.
        """
        self._program.correct(action)
        self.metrics = self.system.step(self._program.decide(self._view))
        return self._observe(), self.metrics.reward, False, self.system.done, {}

    def close(self) -> None:
        """Stop the worker; safe to call at any time."""
        if self._system is not None:
            self._system.close()
            self._system = None

    def _observe(self) -> Observation:
        self._view = self.system.view()
        return encode(self._view, self.system.spec)

    def _make_system(self, seed: int) -> System | CompiledSystem:
        if self._backend == "sim":
            return CompiledSystem(self.scenario, seed)
        return make_system(
            self.scenario,
            seed,
            backend=self._backend,
            limiter=self._limiter,
            hold_between_steps=True,
        )


def variants(scenario: Scenario, count: int, seed: int) -> list[Scenario]:
    """Draw variants of a scenario: domain randomisation (Tobin et al., IROS 2017).

    A policy that has seen one load, payload and SLO has learned those by heart. Trained on
    variants, it has to read them from its observation, and then also fits workloads that nobody
    foresaw. Model, interval and limits, which give actions their meaning, stay.

    Args:
        scenario: Gives profile, interval, limits and simulation.
        count: Number of variants.
        seed: Seed of the draws.

    Returns:
        ``count`` scenarios with random arrivals, network, SLO, drop policy and initial
        allocation.
    """
    rng = stream(seed, "variants")
    return [_variant(scenario, rng, number) for number in range(count)]


def _variant(scenario: Scenario, rng: np.random.Generator, number: int) -> Scenario:
    limits = scenario.limits
    return dataclasses.replace(
        scenario,
        name=f"{scenario.name}-{number}",
        slo_s=_between(rng, _SLOS_S, scale="log"),
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
    if scale == "log":
        return float(low * (high / low) ** share)
    return low + share * (high - low)
