"""The Gymnasium environment: a thin face over the system."""

import math
from operator import lt
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sponge_env.env.factory import make_system
from sponge_env.errors import ConfigError, unknown
from sponge_env.metrics import NOTHING, IntervalMetrics, info
from sponge_env.scenario.config import Backend, ControlName, Limiter
from sponge_env.scenario.option import require
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS, SEED_LIMIT
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation import encoding
from sponge_env.simulation.system import System
from sponge_env.utils.console import frame

Observation = NDArray[np.float32]
Action = NDArray[np.int64]


class SpongeEnv(gym.Env[Observation, Action]):
    """A CPU-limited inference server whose requests carry their own deadlines.

    ## Description
    Requests arrive over a network whose bandwidth swings, so each has its own remaining budget.
    Every step is one adaptation interval: the agent sets the worker's cores and batch size, and
    under other kinds of control the number of its replicas, the model variant, or all of these for
    each stage of a pipeline; the server runs earliest-deadline-first batches, and the reward
    charges cores held and deadlines missed.

    ## Action Space
    ``MultiDiscrete([cores_max, batch_max])``: cores - 1 and batch - 1. Joint control adds
    replicas - 1. Under the control of variants or of a pipeline, stage by stage, cores - 1,
    batch - 1, for a pipeline replicas - 1, and the variant, where there may be several.

    ## Observation Space
    ``Box(-5, 5, (n,), float32)`` with the entries :data:`sponge_env.core.fields.FIELDS`, or
    :data:`~sponge_env.core.fields.JOINT_NAMES`, or those of all stages
    (:func:`~sponge_env.core.fields.staged_names`); see ``docs/environment.md``.

    ## Rewards
    ``-(cores / total_cores) - violation_weight * violations / max(1, ended)
    + accuracy_weight * effective_accuracy``, over all replicas of all stages.

    ## Episode
    It begins with the scenario's initial allocation and an empty queue; arrivals, bandwidth and
    noise are those of its seed. It is truncated when the scenario's duration is over.

    ## Info
    The interval's metrics under the names of ``docs/metrics.md``, without the reward, and the
    episode's seed as ``episode_seed``. All are finite, see ``docs/environment.md``.

    ## Arguments
    - ``scenario``: shipped name, TOML path, or a :class:`~sponge_env.Scenario`.
    - ``backend``: ``"sim"`` or ``"live"``. The live system's clock, and with it the
      arrivals, stands still between two steps, so that a learner may take its time;
      how long it stood is ``paused_s`` in ``info``.
    - ``limiter``: CPU limiter of the live worker.
    - ``render_mode``: None or ``"rgb_array"``.
    - ``control``: ``"vertical"``, ``"joint"``, ``"variants"`` or ``"pipeline"``.

    ``reset(options={"episode_seed": k})`` runs the episode that ``evaluate.py`` has as seed ``k``.
    """

    # Gymnasium declares it on instances, so ClassVar would contradict the base class.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self, scenario: str | Scenario = "paper", backend: Backend = "sim",
        limiter: Limiter = "auto", render_mode: str | None = None,
        control: ControlName = "vertical",
    ) -> None:  # fmt: skip
        """Check the arguments; nothing is started before ``reset``."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(
                f"render_mode must be one of {self.metadata['render_modes']}, not {render_mode!r}"
            )
        self.render_mode = render_mode
        self.scenario = load_scenario(scenario)
        self._profile = scenario_profile(self.scenario)
        spec = make_spec(self.scenario, self._profile)
        self._control = encoding.control_named(control, spec)
        self._backend = backend
        self._limiter = limiter
        self._masks = encoding.ActionMasks(spec, self._control)
        self._system: System | None = None
        self._intervals: list[IntervalMetrics] = []
        self._episode_seed = 0
        action_space, self.observation_space = self._control.spaces(spec)
        self.action_space, self._choices = action_space, action_space.nvec

    def __getstate__(self) -> dict[str, Any]:
        """Return all but a live worker: copies of simulated environments go on by themselves."""
        return self.__dict__ | ({} if self._backend == "sim" else {"_system": None})

    @property
    def system(self) -> System:
        """The system behind the environment; a RuntimeError before the first ``reset``."""
        if self._system is None:
            raise RuntimeError("call reset before anything else")
        return self._system

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode; return the first observation and an info, as :meth:`step` does.

        ``seed`` seeds the sequence of episodes; the option ``episode_seed`` fixes the episode.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(EVALUATION_SEEDS, SEED_LIMIT))
        (fixed,) = episode_seeds(reset_options(options).get("episode_seed"), 1)
        episode_seed = drawn if fixed is None else fixed
        self.close()
        self._system = make_system(
            self.scenario, episode_seed, backend=self._backend, profile=self._profile,
            limiter=self._limiter, hold_between_steps=self._backend == "live",
        )  # fmt: skip
        self._intervals, self._episode_seed = [], episode_seed
        return self._observe(), self._info(NOTHING)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Serve one interval under the action's allocation; the info is its metrics."""
        system = self.system
        wanted = encoding.decode(checked_action(action, self._choices), self._control)
        metrics = system.step(system.spec.fitting(wanted))
        self._intervals.append(metrics)
        return self._observe(), metrics.reward, False, system.done, self._info(metrics)

    def render(self) -> Any:
        """Draw the episode so far, as (height, width, 3) pixels."""
        if self.render_mode == "rgb_array":
            return frame(self._intervals, self.scenario.limits.cores)
        return None

    def close(self) -> None:
        """Stop the worker; safe to call at any time."""
        if self._system is not None:
            self._system.close()
            self._system = None

    def action_masks(self) -> NDArray[np.bool_]:
        """Return (sum of choices,) which choices of each part of an action make sense now."""
        # See :class:`sponge_env.simulation.encoding.ActionMasks`.
        masks: NDArray[np.bool_] = self._masks(self._observe())
        return masks

    def _info(self, metrics: IntervalMetrics) -> dict[str, Any]:
        return info(metrics, self.system.waited_s, episode_seed=self._episode_seed)

    def _observe(self) -> Observation:
        return self.system.observe(self._control)


def checked_action(action: ArrayLike, choices: NDArray[np.int64]) -> Action:
    """Return an action, which may be a list or whole floats, as integers.

    ``choices`` is the number of choices of each part: (parts,), or () for a single part. Raises
    ConfigError unless the action has one of them for each part.
    """
    try:
        given = np.asarray(action)
    except ValueError:  # its parts are of different lengths
        given = np.array(None)
    if given.dtype.kind in "iuf" and given.shape == choices.shape:
        # Plain numbers, for NumPy takes longer for so few.
        chosen, counts = given.ravel().tolist(), choices.ravel().tolist()
        if min(chosen) >= 0 and all(map(lt, chosen, counts)) and [*map(int, chosen)] == chosen:
            return given.astype(np.int64)
    numbers = "a whole number" if choices.ndim == 0 else f"{choices.size} whole numbers"
    most = (choices - 1).tolist()
    raise ConfigError(f"an action must be {numbers} from 0 to {most}, not {action!r}")


def reset_options(options: Any, *more: str) -> dict[str, Any]:
    """Return the options of a reset; raise ConfigError unless they are a dict of known ones."""
    if not isinstance(options, dict | None):
        raise ConfigError(f"the options of reset must be a dict, not {options!r}")
    for key in options or {}:
        if key not in ("episode_seed", *more):
            raise ConfigError(unknown("reset option", key, ["episode_seed", *more]))
    return options or {}


def episode_seeds(given: Any, count: int) -> list[int | None]:
    """Return so many seeds, None to draw one, from one for all or one for each, or ConfigError."""
    values = np.array(given, dtype=object)
    seeds = values.tolist() if values.shape == (count,) else [values[()]] * count
    for seed in seeds:
        right = seed is None or (isinstance(seed, int | np.integer) and 0 <= int(seed) < 2**63)
        require(right, "episode_seed", seed, "a whole number of at least 0, below 2^63")
    return [None if seed is None else int(seed) for seed in seeds]


MOST_COMBINATIONS = 1 << 20  # Largest number of discrete actions


class _OtherActions(gym.ActionWrapper[Observation, Any, Action]):
    """:class:`SpongeEnv`, with its options, for learners with another action space."""

    metadata = SpongeEnv.metadata

    def __init__(self, **options: Any) -> None:
        env = SpongeEnv(**options)
        super().__init__(env)
        self._choices = env._choices


class DiscreteActions(_OtherActions):
    """``Discrete(n)``, for learners of one number (DQN).

    It counts all combinations of choices, the last choice varying fastest.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._combinations = math.prod(self._choices.tolist())
        if self._combinations > MOST_COMBINATIONS:
            raise ConfigError(
                f"an action has {self._combinations:,} combinations of choices, more than the "
                f"{MOST_COMBINATIONS:,} that one number may stand for; lower the stages' limits "
                "or take an environment whose actions have parts"
            )
        self.action_space = gym.spaces.Discrete(self._combinations)

    def action(self, action: Any) -> Action:
        """Turn a combination's number into its choices; a ConfigError if there is none."""
        number = checked_action(action, np.array(self._combinations))
        return encoding.combination(number, self._choices)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which combinations make sense now, (n,)."""
        env = self.unwrapped
        assert isinstance(env, SpongeEnv)
        return encoding.combined(env.action_masks(), self._choices)


class ContinuousActions(_OtherActions):
    """``Box(-1, 1, (parts,))``, for learners of real numbers (SAC).

    Each choice goes from its minimum to its maximum in equal steps.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (len(self._choices),), np.float32)

    def action(self, action: NDArray[np.float32]) -> Action:
        """Turn real numbers into choices, clipped to the range.

        Raises ConfigError if they are too few, too many, or no numbers.
        """
        try:
            given = np.asarray(action, np.float64)
        except (TypeError, ValueError, OverflowError):
            given = np.array(np.nan)
        if given.shape != self._choices.shape or np.isnan(given).any():
            count = self._choices.size
            raise ConfigError(f"an action must be {count} real numbers, not {action!r}")
        return encoding.stepped(action, self._choices)
