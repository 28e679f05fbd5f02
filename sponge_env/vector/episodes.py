"""Sequences of episodes: what both faces of the batch simulator share.

Environment ``i`` runs exactly the episodes that ``SpongeEnv`` runs when it is reset with
the same seed and then goes on without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.config import ControlName
from sponge_env.encoding import CLIP, control_named
from sponge_env.errors import ConfigError
from sponge_env.scenario import Scenario, load_scenario
from sponge_env.seeds import EVALUATION_SEEDS, SEED_LIMIT
from sponge_env.vector.simulator import BatchSimulator, Observations

ScenarioLike = str | Scenario
"""Shipped name, TOML path, or the scenario itself."""


class Episodes:
    """A batch simulator, and a seeded stream of episode seeds for each environment."""

    def __init__(
        self,
        scenario: ScenarioLike | Sequence[ScenarioLike],
        num_envs: int,
        queue_capacity: int | None,
        threads: int | None,
        control: ControlName,
        intervals_max: int | None = None,
    ) -> None:
        """Allocate everything.

        Args:
            scenario: One for all environments, or one for each.
            num_envs: Number of environments.
            queue_capacity: See :class:`~sponge_env.vector.simulator.BatchSimulator`, as
                for ``threads``.
            threads: Threads that share the work.
            control: What an action chooses.
            intervals_max: Most steps of an episode.

        Raises:
            SpongeError: A setting or scenario cannot be used.
        """
        self.control = control_named(control)
        self.scenarios = _one_for_each(scenario, num_envs)
        pool = list(dict.fromkeys(self.scenarios))
        rows = {scenario: row for row, scenario in enumerate(pool)}
        self.simulator = BatchSimulator(
            pool,
            np.array([rows[scenario] for scenario in self.scenarios]),
            replicas_max=None if "replicas" in self.control.choices else 1,
            obs_dim=self.control.obs_dim,
            queue_capacity=queue_capacity,
            threads=threads,
            intervals_max=intervals_max,
        )
        self._randoms: list[np.random.Generator | None] = [None] * num_envs
        self._allocations = np.ones((num_envs, 3), np.int64)
        self._chosen = self._allocations[:, : len(self.control.choices)]

    @property
    def action_space(self) -> gym.spaces.MultiDiscrete:
        """Actions of one environment: each of the control's choices - 1."""
        return gym.spaces.MultiDiscrete(self.control.most(self.scenarios[0].limits))

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Observations of one environment."""
        return gym.spaces.Box(-CLIP, CLIP, (self.control.obs_dim,), np.float32)

    def seed(self, seeds: Sequence[int | None], chosen: NDArray[np.bool_]) -> None:
        """Seed the sequences of the chosen environments, but for those with ``None``."""
        for i in np.flatnonzero(chosen).tolist():
            if seeds[i] is not None or self._randoms[i] is None:
                self._randoms[i] = gym.utils.seeding.np_random(seeds[i])[0]

    def begin(
        self, chosen: NDArray[np.bool_], out: Observations, fixed: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Start the next episode of each chosen environment.

        Args:
            chosen: (n,) which ones.
            out: (n, obs_dim) the first observations are written to the chosen rows.
            fixed: Episode seed for all or one for each, instead of the drawn ones.

        Returns:
            (n,) episode seeds; 0 where not chosen.
        """
        seeds = np.zeros(len(chosen), np.int64)
        for i in np.flatnonzero(chosen).tolist():
            random = self._randoms[i]
            assert random is not None
            seeds[i] = random.integers(EVALUATION_SEEDS, SEED_LIMIT)
        if fixed is not None:
            seeds[chosen] = np.broadcast_to(fixed, seeds.shape)[chosen]
        self.simulator.reset(chosen, seeds, out)
        return seeds

    def step(self, actions: ArrayLike) -> tuple[Observations, NDArray[Any]]:
        """Serve one interval.

        Args:
            actions: (n, choices) of :attr:`action_space`.

        Returns:
            Observations and metrics, see :meth:`BatchSimulator.step`.

        Raises:
            ConfigError: An action is outside the action space.
            RuntimeError: Nothing was reset yet.
        """
        if self._randoms[0] is None:
            raise RuntimeError("call reset before anything else")
        actions = np.asarray(actions)
        if actions.shape != self._chosen.shape:
            raise ConfigError(f"actions must be of shape {self._chosen.shape}, not {actions.shape}")
        if actions.dtype.kind not in "iu" and np.any(actions != np.floor(actions)):
            raise ConfigError("actions must be whole numbers")
        np.add(actions, 1, out=self._chosen, casting="unsafe")
        return self.simulator.step(self._allocations)


def _one_for_each(scenario: ScenarioLike | Sequence[ScenarioLike], num_envs: int) -> list[Scenario]:
    if num_envs < 1:
        raise ConfigError(f"the number of environments must be at least 1, not {num_envs!r}")
    if isinstance(scenario, str | Scenario):
        return [_loaded(scenario)] * num_envs
    if len(scenario) != num_envs:
        raise ConfigError(
            f"scenario must be one scenario or one for each of the {num_envs} environments, "
            f"not {len(scenario)}"
        )
    return [_loaded(each) for each in scenario]


def _loaded(scenario: ScenarioLike) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
