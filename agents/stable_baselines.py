"""A model that Stable-Baselines3 or sb3-contrib saved, as a controller.

Loading one executes code in its file, which holds pickled objects. Follow only files you trust.
"""

import inspect
import logging
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import sponge_env.simulation.encoding as encoding
from sponge_env.arrays import IntArray
from sponge_env.control.base import BaseController
from sponge_env.errors import MissingExtraError, PolicyError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.scenario.config import ControlName
from sponge_env.utils.installation import check_typed

LOG = logging.getLogger("agents")


class SB3Policy(BaseController):
    """Follows a model of any algorithm, trained on one of this project's environments.

    Its file does not say for which profile or interval; only the spaces are checked.
    """

    plans_for = "all"

    def __init__(self, file: str) -> None:
        """Load the model; a PolicyError if that is impossible."""
        check_typed(file, "model")
        self._file, path = file, Path(file)
        self._policy = _load(path, path.stat().st_mtime_ns if path.exists() else 0)
        self._masked = "action_masks" in inspect.signature(self._policy.predict).parameters

    @property
    def description(self) -> str:
        """Which file it follows."""
        return f"follows {self._file}, which does not say for which model it was trained"

    def begin(self, spec: SystemSpec) -> None:
        """Find the kind of control whose observations and actions are the model's."""
        shape, self._space = self._policy.observation_space.shape, self._policy.action_space
        for name in dict.fromkeys(encoding.reaching(name, spec) for name in get_args(ControlName)):
            self._control = encoding.control_named(name, spec)
            actions, observed = self._control.spaces(spec)
            if observed.shape == shape and _fits(self._space, actions.nvec):
                break
        else:
            raise PolicyError(
                f"{self._file} observes {shape} and chooses {self._space}, as no environment of "
                "this system does"
            )
        self._choices = actions.nvec
        self._masks = encoding.ActionMasks(spec, self._control) if self._masked else None
        self._state: Any = None
        self._first = True

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Return the model's most probable allocation."""
        observation = encoding.encode(view, spec, self._control)
        masks = {}
        if self._masks is not None:
            parts, discrete = self._masks(observation), isinstance(self._space, Discrete)
            masks["action_masks"] = encoding.combined(parts, self._choices) if discrete else parts
        where = self._state, np.array([self._first])  # which begins an episode
        action, self._state = self._policy.predict(observation, *where, deterministic=True, **masks)
        self._first = False
        if isinstance(self._space, Discrete):
            action = encoding.combination(np.asarray(action), self._choices)
        elif isinstance(self._space, Box):
            action = encoding.stepped(action, self._choices)
        return encoding.decode(np.asarray(action), self._control)


def _fits(space: Any, choices: IntArray) -> bool:
    """Return whether a space of actions is one over these choices."""
    if isinstance(space, Discrete):
        return bool(space.n == np.prod(choices))
    if isinstance(space, Box):
        return bool(space == Box(-1.0, 1.0, choices.shape))
    return isinstance(space, MultiDiscrete) and np.array_equal(space.nvec, choices)


@cache
def _load(path: Path, _changed_ns: int) -> Any:
    """Return the policy in a model's file; nothing else of the algorithm is needed."""
    try:
        from stable_baselines3.common.save_util import load_from_zip_file
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "a model of Stable-Baselines3 needs it; run: pip install 'sponge-env[train]'"
        ) from error
    if not path.is_file():
        raise PolicyError(f"there is no model {str(path)!r}")
    LOG.warning("loading %s executes code in it; follow only files that you trust", path)
    try:
        saved = load_from_zip_file(path, device="cpu")
        data, parameters = saved[0] or {}, saved[1]
        kind, options = data["policy_class"], data["policy_kwargs"]
        if "lr_schedule" in inspect.signature(kind).parameters:
            options = {"lr_schedule": lambda _: 0.0, **options}
        if "use_sde" in inspect.signature(kind).parameters:  # which only some keep in the options
            options = {"use_sde": data.get("use_sde", False), **options}
        policy = kind(data["observation_space"], data["action_space"], **options)
        policy.load_state_dict(parameters["policy"])
    except Exception as error:  # whatever unpickling someone's file does
        raise PolicyError(f"{path} is no model of Stable-Baselines3 to follow: {error}") from error
    policy.set_training_mode(False)
    return policy
