"""The same choices in other kinds of action spaces, for learners that want them.

``Sponge-v0`` takes one number for each choice. Some algorithms know only one number
(DQN), others only real ones (SAC).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sponge_env.env import Action, Observation, SpongeEnv, whole
from sponge_env.errors import ConfigError


class DiscreteActions(gym.ActionWrapper[Observation, Any, Action]):
    """``Discrete(n)`` over all combinations of choices, the last choice varying fastest."""

    def __init__(self, env: SpongeEnv) -> None:
        super().__init__(env)
        self._choices = _choices(env)
        self._combinations = np.prod(self._choices, dtype=np.int64)
        self.action_space = gym.spaces.Discrete(int(self._combinations))

    def action(self, action: Any) -> Action:
        """Turn the number of a combination into its choices.

        Raises:
            ConfigError: There is no such combination.
        """
        number = whole(action, np.array(self._combinations))
        return np.array(np.unravel_index(number, self._choices), np.int64)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which combinations make sense now, (n,): those of which every choice does."""
        env = self.unwrapped
        assert isinstance(env, SpongeEnv)
        parts = np.split(env.action_masks(), np.cumsum(self._choices)[:-1])
        masks: NDArray[np.bool_] = reduce(np.logical_and.outer, parts).ravel()
        return masks


class ContinuousActions(gym.ActionWrapper[Observation, NDArray[np.float32], Action]):
    """``Box(-1, 1, (parts,))``: each choice from the least to the most, in equal steps."""

    def __init__(self, env: SpongeEnv) -> None:
        super().__init__(env)
        self._choices = np.array(_choices(env))
        self.action_space = gym.spaces.Box(-1.0, 1.0, (len(self._choices),), np.float32)

    def action(self, action: NDArray[np.float32]) -> Action:
        """Turn real numbers into choices; what is beyond the ends counts as the end.

        Raises:
            ConfigError: They are too few, too many, or no numbers.
        """
        if np.shape(action) != self._choices.shape or np.isnan(action).any():
            raise ConfigError(
                f"an action must be {self._choices.size} real numbers, not {action!r}"
            )
        share = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1) / 2
        chosen: Action = np.minimum((share * self._choices).astype(np.int64), self._choices - 1)
        return chosen


def _choices(env: SpongeEnv) -> tuple[int, ...]:
    space = env.action_space
    assert isinstance(space, gym.spaces.MultiDiscrete)
    return tuple(int(count) for count in space.nvec)


def discrete(**options: Any) -> DiscreteActions:
    """Make ``SpongeDiscrete-v0``; the options are those of :class:`SpongeEnv`."""
    return DiscreteActions(SpongeEnv(**options))


def continuous(**options: Any) -> ContinuousActions:
    """Make ``SpongeContinuous-v0``; the options are those of :class:`SpongeEnv`."""
    return ContinuousActions(SpongeEnv(**options))


# Gymnasium looks here for the ways of rendering before it makes anything.
vars(discrete)["metadata"] = vars(continuous)["metadata"] = SpongeEnv.metadata
