"""The batch simulator as a vectorized environment of Stable-Baselines3."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sponge_env.core.records import METRICS
from sponge_env.env.single import reset_options
from sponge_env.env.vector import ScenarioLike, SpongeVectorEnv
from sponge_env.scenario.config import ControlName
from sponge_env.utils.installation import require_extra

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ModuleNotFoundError:
    require_extra("train", __name__)
    raise


class SpongeVecEnv(VecEnv):
    """``num_envs`` times ``Sponge-v0``, or another kind of control, stepped at once.

    Steps and seeds are those of a ``DummyVecEnv`` of as many ``SpongeEnv``. Only environments whose
    episode has ended get an info: ``terminal_observation``, ``TimeLimit.truncated``, and
    ``episode`` as a ``Monitor`` would give it. The interval's metrics are in :attr:`metrics`.
    """

    def __init__(
        self, scenario: ScenarioLike | Sequence[ScenarioLike], num_envs: int,
        queue_capacity: int | None = None, threads: int | None = None,
        control: ControlName = "vertical",
    ) -> None:  # fmt: skip
        """Allocate everything, as :class:`~sponge_env.env.vector.SpongeVectorEnv` does."""
        self._envs = envs = SpongeVectorEnv(
            num_envs, scenario, queue_capacity=queue_capacity, threads=threads, control=control
        )
        self._actions = np.zeros(0, np.int64)
        self.metrics = np.zeros(num_envs, METRICS)
        """(num_envs,) records of the last interval, under the schema's names."""
        self._observations = np.zeros((num_envs, envs.control.obs_dim), np.float32)
        self._returns = np.zeros(num_envs)
        super().__init__(num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Start a new episode in every environment; return the first observations."""
        self._returns[:] = 0.0
        seeds = [reset_options(own).get("episode_seed") for own in self._options]
        fixed = {"episode_seed": seeds}
        observations, infos = self._envs.reset(seed=self._seeds, options=fixed)
        self._observations = observations.copy()
        self.reset_infos = [{"episode_seed": seed} for seed in infos["episode_seed"].tolist()]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step, (num_envs, choices)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Serve one interval; environments whose episode ended start the next."""
        observations, self.metrics = self._envs.serve(self._actions)
        self._returns += self.metrics["reward"]
        simulator = self._envs.simulator
        ended, infos = simulator.over.copy(), [dict[str, Any]() for _ in range(self.num_envs)]
        if ended.any():
            for i in np.flatnonzero(ended):
                ends = {"terminal_observation": observations[i].copy(), "TimeLimit.truncated": True}
                whole = {"r": float(self._returns[i]), "l": int(simulator.episode_intervals[i])}
                infos[i] = ends | {"episode": whole | {"t": float(self.metrics["time_s"][i])}}
            self._returns[ended] = 0.0
            self._envs.begin(ended, observations)
            self.reset_infos = [{"episode_seed": s} for s in self._envs.episode_seeds.tolist()]
        self._observations = observations.copy()
        return observations, self.metrics["reward"].astype(np.float32), ended, infos

    def close(self) -> None:
        """Stop the threads."""
        self._envs.close()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which choices make sense now, (num_envs, choices); see ``SpongeEnv``."""
        return self._envs.action_masks(self._observations)

    def has_attr(self, attr_name: str) -> bool:
        """Return whether each environment has an attribute, or method, that can be asked for."""
        return attr_name == "action_masks" or bool(super().has_attr(attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return ``scenario`` or ``render_mode``; there are no environments with others."""
        chosen = self._get_indices(indices)
        if attr_name == "scenario":
            return [self._envs.scenarios[i] for i in chosen]
        if attr_name == "render_mode":
            return [None for _ in chosen]
        raise AttributeError(f"environments of a batch have no attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: there are no single environments."""
        raise AttributeError(f"attribute {attr_name!r} of a batch's environments cannot be set")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call ``action_masks``, as sb3-contrib does; there are no environments with others."""
        if method_name != "action_masks":
            raise AttributeError(f"environments of a batch have no method {method_name!r}")
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return whether the environments do what a wrapper does: only ``Monitor``."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
