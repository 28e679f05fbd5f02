"""The batch simulator as a Gymnasium vector environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from sponge_env.core.records import BLANK, METRICS
from sponge_env.env.single import episode_seeds, reset_options
from sponge_env.errors import ConfigError
from sponge_env.scenario.config import ControlName
from sponge_env.scenario.option import require
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.batch import BatchSimulator, Observations
from sponge_env.simulation.encoding import ActionMasks, control_named
from sponge_env.simulation.memory import allocations

Actions = NDArray[np.int64]
Infos = dict[str, Any]
ScenarioLike = str | Scenario | Mapping[str, Any]  # See :func:`~sponge_env.load_scenario`


MOST_ENVS = 1_000_000


class SpongeVectorEnv(VectorEnv[Observations, Actions, NDArray[Any]]):
    """``num_envs`` times ``Sponge-v0``, or another kind of control, stepped at once.

    ``gymnasium.make_vec("Sponge-v0", num_envs=1024, vectorization_mode="vector_entry_point")``
    makes one. Observations, rewards, truncations and infos are those that Gymnasium's
    ``SyncVectorEnv`` of as many ``SpongeEnv`` gives for the same seeds and actions; see
    :class:`~sponge_env.env.single.SpongeEnv` for what they are.

    ## Autoreset
    ``NEXT_STEP`` by default: it is the default of Gymnasium's own vector environments, and
    its observation wrappers take nothing else. ``SAME_STEP`` wastes no step on a reset;
    the last observation and metrics of an episode are then in ``final_obs`` and
    ``final_info``. With ``DISABLED``, ``reset(options={"reset_mask": mask})`` resets.

    ## Info
    One array for each entry of a ``SpongeEnv``'s info but ``latency_p50_s`` and
    ``latency_p99_s``, and ``overflowed``: arrivals for which the queue had no room (they
    count as dropped). As always in Gymnasium, ``_name`` masks those that have ``name``.
    """

    single_action_space: MultiDiscrete

    def __init__(
        self, num_envs: int = 1, scenario: ScenarioLike | Sequence[ScenarioLike] = "paper",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        queue_capacity: int | None = None, threads: int | None = None,
        control: ControlName = "vertical", max_episode_steps: int | None = None,
        render_mode: None = None,
    ) -> None:  # fmt: skip
        """Allocate everything; nothing runs before ``reset``.

        Args:
            num_envs: Number of environments.
            scenario: Shipped name, TOML path, or a scenario; one for all, or a sequence
                with one for each environment.
            autoreset_mode: When an environment whose episode is over starts the next.
            queue_capacity: Requests that one environment holds at most; see
                :class:`~sponge_env.simulation.batch.BatchSimulator`.
            threads: Threads that share the work; chosen by the work in a step
                if left out.
            control: ``"vertical"``, ``"joint"``, ``"variants"`` or ``"pipeline"``, for all.
            max_episode_steps: Steps after which an episode is truncated, if it is not over
                before, as Gymnasium's ``TimeLimit`` does it.
            render_mode: There is none: only single environments are drawn.

        Raises:
            SpongeError: An argument cannot be used.
        """
        require(render_mode is None, "render_mode", render_mode, "None for many environments")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.scenarios = _one_for_each(scenario, num_envs)
        spec = make_spec(self.scenarios[0], scenario_profile(self.scenarios[0]))
        self.control = control_named(control, spec)
        rows = {scenario: row for row, scenario in enumerate(dict.fromkeys(self.scenarios))}
        self.simulator = BatchSimulator(
            list(rows), np.array([rows[scenario] for scenario in self.scenarios]),
            replicas_max=None if self.control.scales_out else 1, obs_dim=self.control.obs_dim,
            queue_capacity=queue_capacity, threads=threads, intervals_max=max_episode_steps,
        )  # fmt: skip
        self.single_action_space, self.single_observation_space = self.control.spaces(spec)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._masks = [ActionMasks(spec, self.control) for spec in self.simulator.specs]
        self._randoms: list[np.random.Generator | None] = [None] * num_envs
        self._all_begun = False  # Whether every environment was reset
        self._allocations, _ = allocations(num_envs, len(spec.stages))
        self._shape = num_envs, len(self.control.parts)
        # What a reset by mask returns for the environments that it leaves alone.
        self._observations = np.zeros((num_envs, self.control.obs_dim), np.float32)
        self._ended = np.zeros(num_envs, np.bool_)
        self.episode_seeds = np.zeros(num_envs, np.int64)  # Of the episodes that run

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, Infos]:  # fmt: skip
        """Start new episodes; return the observations and infos, as :meth:`step` does.

        ``seed`` is that of the first environment's sequence of episodes, the others counting up
        from it; or there is one for each. Of the options, ``episode_seed`` fixes the episodes
        themselves, one seed for all or one for each, and ``reset_mask`` chooses the environments.
        """
        options = reset_options(options, "reset_mask")
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        chosen = np.asarray(options.get("reset_mask", np.ones(self.num_envs, np.bool_)))
        require(chosen.dtype == np.bool_, "reset_mask", chosen, "an array of booleans")
        for name, value in (("seed", seed), ("reset_mask", chosen)):
            if len(value) != self.num_envs:
                raise ConfigError(f"{name} needs {self.num_envs} entries, not {len(value)}")
        for i in np.flatnonzero(chosen).tolist():
            if seed[i] is not None or self._randoms[i] is None:
                self._randoms[i] = np_random(seed[i])[0]
        super().reset(seed=seed[0])
        self._all_begun = None not in self._randoms
        fixed, observations = options.get("episode_seed"), self._observations.copy()
        self.begin(chosen, observations, episode_seeds(fixed, self.num_envs))
        self._observations = observations.copy()
        return observations, _batched(np.zeros(self.num_envs, METRICS), self.episode_seeds, chosen)

    def step(
        self, actions: Actions
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], Infos]:
        """Serve one interval in every environment, under (num_envs, choices) actions.

        All arrays that are returned are new; nothing ever terminates.
        """
        before = self._ended
        if self.autoreset_mode == AutoresetMode.DISABLED and before.any():
            raise RuntimeError("some episodes are over; reset them with a reset_mask")
        observations, metrics = self.serve(actions)
        ended = self.simulator.over & ~before
        restarts = ended if self.autoreset_mode == AutoresetMode.SAME_STEP else before
        self._ended, final = ended, Infos()
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final["final_obs"] = np.full(self.num_envs, None, dtype=object)  # an array of arrays
            for i in np.flatnonzero(ended):
                final["final_obs"][i] = observations[i].copy()
            final["_final_obs"] = ended
            infos = _batched(metrics, self.episode_seeds, ended)
            final["final_info"], final["_final_info"] = infos, ended
        reward = np.array(metrics["reward"])
        if restarts.any() and self.autoreset_mode != AutoresetMode.DISABLED:
            self.begin(restarts, observations)
            metrics = metrics.copy()
            metrics[restarts] = np.zeros((), METRICS)
        self._observations = observations.copy()
        never, everyone = np.zeros(self.num_envs, np.bool_), np.ones(self.num_envs, np.bool_)
        infos = _batched(metrics, self.episode_seeds, everyone) | final
        return observations, reward, never, ended.copy(), infos

    def begin(
        self, chosen: NDArray[np.bool_], out: Observations, fixed: Sequence[int | None] = ()
    ) -> None:
        """Start the next episode of each chosen environment.

        The first observations are written to the chosen rows of ``out``. The seeds in ``fixed``, if
        there are any, take the place of those that are drawn.
        """
        seeds = np.zeros(self.num_envs, np.int64)
        for i in np.flatnonzero(chosen).tolist():
            random = self._randoms[i]
            assert random is not None
            seeds[i] = random.integers(EVALUATION_SEEDS, SEED_LIMIT)
            if fixed and (own := fixed[i]) is not None:
                seeds[i] = own
        self.simulator.reset(chosen, seeds, out)
        self._ended = self._ended & ~chosen
        self.episode_seeds = np.where(chosen, seeds, self.episode_seeds)

    def serve(self, actions: ArrayLike) -> tuple[Observations, NDArray[Any]]:
        """Serve one interval as :meth:`step` does; return what :meth:`BatchSimulator.step` does."""
        if not self._all_begun:
            raise RuntimeError("call reset before anything else")
        try:
            actions = np.asarray(actions)
        except ValueError:  # they are of different lengths
            actions = np.array(None)
        if actions.shape != self._shape:
            raise ConfigError(f"actions must be of shape {self._shape}, not {actions.shape}")
        kind = actions.dtype.kind
        if kind not in "iuf" or (kind == "f" and np.any(actions != np.floor(actions))):
            raise ConfigError("actions must be whole numbers")
        if kind == "f":
            actions = actions.astype(np.float64).clip(-1, 1 << 30)  # infinite is no integer
        self.control.write(actions, self._allocations)
        try:
            return self.simulator.step(self._allocations)
        except ConfigError:
            most = (self.single_action_space.nvec - 1).tolist()
            raise ConfigError(f"actions must lie between 0 and {most}") from None

    def action_masks(self, observations: Observations | None = None) -> NDArray[np.bool_]:
        """Return which choices make sense now, or under some observations; see ``SpongeEnv``.

        They are (num_envs, choices): those of the first part of an action, then of the next.
        """
        if observations is None and not self._all_begun:
            raise RuntimeError("call reset before anything else")
        seen = self._observations if observations is None else observations
        masks = np.zeros((self.num_envs, self.single_action_space.nvec.sum()), np.bool_)
        for scenario, masks_of in enumerate(self._masks):
            rows = self.simulator.assignment == scenario
            masks[rows] = masks_of(seen[rows])
        return masks

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads, if they began: older versions of Gymnasium close what was refused."""
        if "simulator" in vars(self):
            self.simulator.close()


def _one_for_each(scenario: ScenarioLike | Sequence[ScenarioLike], num_envs: int) -> list[Scenario]:
    rule = "at least 1" if num_envs < 1 else f"at most {MOST_ENVS}"
    require(1 <= num_envs <= MOST_ENVS, "the number of environments", num_envs, rule)
    if isinstance(scenario, str | Path | Scenario | Mapping):
        return [load_scenario(scenario)] * num_envs
    if len(scenario) != num_envs:
        many = f"one for each of the {num_envs} environments, not {len(scenario)}"
        raise ConfigError(f"scenario must be one scenario or {many}")
    return [load_scenario(each) for each in scenario]


def _batched(metrics: NDArray[Any], seeds: NDArray[np.int64], there: NDArray[np.bool_]) -> Infos:
    """Return the infos of some environments as Gymnasium's: an array and a mask for each name."""
    infos: Infos = {"episode_seed": np.where(there, seeds, 0), "_episode_seed": there}
    everyone = bool(there.all())
    for name in _NAMES:
        values = metrics[name]
        if name in _MAY_LACK:
            values = np.where(there & ~np.isnan(values), values, 0.0)
        elif not everyone:
            values = np.where(there, values, 0)
        infos[name], infos["_" + name] = values, there
    return infos


_NAMES = [name for name in METRICS.names or () if name != "reward"]
_MAY_LACK = {name for name in _NAMES if BLANK[name].dtype.kind == "f" and np.isnan(BLANK[name][0])}
"""Those that are NaN where nothing was measured."""
