"""Environments in which an action corrects the look-ahead program."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.residual import CHOICES, Action, CorrectedMPC
from sponge_env.config import Backend, Limiter
from sponge_env.encoding import CLIP, OBS_DIM, encode
from sponge_env.factory import make_system
from sponge_env.results.schema import IntervalMetrics
from sponge_env.scenario import Scenario
from sponge_env.seeding import EVALUATION_SEEDS, SEED_LIMIT
from sponge_env.system import System
from sponge_env.vector.system import CompiledSystem

Observation = NDArray[np.float32]


class CorrectionEnv(gym.Env[Observation, Action]):
    """``Sponge-v0`` with the program between the action and the system.

    Observation, reward and the sequence of episodes are those of ``Sponge-v0``; what an action
    means says :func:`agents.residual.corrected`.
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

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
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
