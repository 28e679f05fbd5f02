"""Training of learned controllers: what is trained, on what, and with which settings.

:func:`.training.train` carries a plan out. Following a policy is in :mod:`..learned`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sponge_env.control.base import Options, option
from sponge_env.errors import ConfigError, PolicyError, unknown
from sponge_env.interfaces import SystemSpec
from sponge_env.scenario.config import Backend, Limiter
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.scenario.toml import from_mapping
from sponge_env.simulation.encoding import Control
from sponge_env.utils.files import read_json, write_json

from .. import LEARNERS, Learner
from ..history import layout_of
from ..learned import control_of
from .phases import PhasedConfig

T = TypeVar("T", "LearnConfig", PhasedConfig)

Report = Callable[[int, str], None]
"""Called with the number of steps done in this run, and a word about how good the policy is."""

CHECKPOINT_FILE = "checkpoint.zip"
"""Its name in a run directory, for resuming only: Stable-Baselines3's own format, or what
:meth:`.phased.Training.save` writes."""
SETTINGS_FILE = "learn.json"
"""Hyper-parameters in a run directory."""
JUDGED_FILE = "judged.json"
"""What the policy that a training in phases keeps reached there, beside the best rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig(Options):
    """Hyper-parameters, for a few hundred simulated environments at once."""

    learning_rate: float = option(3e-3, above=0)
    """At the start; falls linearly to a twentieth."""
    rollout_steps: int = option(32, at_least=1)
    """Steps of each environment between two updates."""
    minibatch: int = option(2048, at_least=1)
    """Largest number of transitions in one gradient step."""
    epochs: int = option(3, at_least=1)
    """Passes over a rollout."""
    gamma: float = option(0.9, at_least=0, at_most=1)
    """Discount for one interval: what is decided now is over within seconds."""
    gae_lambda: float = option(0.9, at_least=0, at_most=1)
    entropy: float = 0.002
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    one_replica_logit: float = 5.0
    """Of one replica when training begins; 0 for the others. Most numbers are too many for most
    loads of one model, and a policy that shrinks from their cores early never learns what cores
    are good for. Where one replica is too few, a policy that hardly ever asks for two in each of
    the intervals of a cold start never learns what replicas are good for."""
    violation_weight: float | None = option(None, above=0)
    """Weight of violations in the reward; the scenario's if left out."""
    accuracy_weight: float | None = option(None, at_least=0)
    """Weight of accuracy likewise."""
    violation_target: float | None = option(None, above=0)
    """Rate of avoidable violations to stay below, on the simulator: the weight is then learned,
    beginning with ``violation_weight``. A fixed weight if left out."""
    evaluations: int = option(10, at_least=1)
    """How often the policy is evaluated during training."""
    evaluation_episodes: int = 16
    """Episodes of each evaluation, always the same."""
    blind_to: tuple[str, ...] = ()
    """Beginnings of the names of those observation fields that the policy does not see: for
    ablations."""

    def __post_init__(self) -> None:
        # Explicit, for a class with slots is made anew and super() would miss it.
        Options.__post_init__(self)
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be numbers of at least 1, not {self.hidden!r}")


def learn_config(agent: str, options: Mapping[str, Any], resume: Path | None = None) -> LearnConfig:
    """Return the hyper-parameters of a run without phases, see :func:`settings`."""
    return settings(LearnConfig, LEARNERS[agent].options, options, resume)


def settings(
    kind: type[T],
    usual: Mapping[str, Any],
    options: Mapping[str, Any],
    resume: Path | None = None,
) -> T:
    """Return the hyper-parameters of a run: of some kind, with the learner's usual ones.

    Options are some by name; a list may be text with commas. Where none says otherwise, those of
    the run hold whose checkpoint is to be resumed; its layers cannot change.
    """
    changes = {key: _listed(kind, key, value) for key, value in options.items()}
    if resume is None:
        return from_mapping(kind, {**usual, **changes})
    path = resume.with_name(SETTINGS_FILE)
    try:
        before = from_mapping(kind, read_json(path))
    except (OSError, ValueError, AttributeError) as error:
        raise PolicyError(f"the hyper-parameters in {path} cannot be read: {error}") from error
    config = from_mapping(kind, {**_plain(before), **changes})
    if config.hidden != before.hidden:
        raise ConfigError(
            f"hidden cannot change with --resume: the checkpoint's layers have {before.hidden} "
            "units"
        )
    return config


def save_settings(config: LearnConfig | PhasedConfig, folder: Path) -> None:
    """Write the hyper-parameters into a run directory."""
    write_json(folder / SETTINGS_FILE, _plain(config))


def _plain(config: LearnConfig | PhasedConfig) -> dict[str, Any]:
    """Return what :func:`~sponge_env.scenario.toml.from_mapping` takes."""
    values = {key: value for key, value in asdict(config).items() if value is not None}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _listed(kind: type[Any], key: str, value: Any) -> Any:
    """Return a list where an option wants one: ``64,64`` or ``due,delay``."""
    wanted = {field.name: field.type for field in fields(kind)}.get(key)
    if not str(wanted).startswith("tuple") or isinstance(value, list):
        return value
    return [_number(part.strip()) for part in str(value).split(",")]


def _number(text: str) -> int | float | str:
    """Return a number where a text is one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run."""

    scenarios: tuple[Scenario, ...]
    """What to train on, of one profile, interval and limits; shared out to the
    environments."""
    steps: int
    """Environment steps over all environments."""
    envs: int
    seed: int
    folder: Path
    """An existing folder; receives the policy, checkpoint, settings and TensorBoard events."""
    agent: str = "ppo"
    """Name of the learner."""
    randomised: bool = False
    """Whether each environment gets a random variant of its scenario."""
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    resume: Path | None = None
    """A checkpoint of an earlier run to go on from."""
    command: str = ""
    """Command line, to be kept with the policy."""

    @property
    def learner(self) -> Learner:
        """How the agent learns; a ConfigError if it does not."""
        if self.agent not in LEARNERS:
            raise ConfigError(unknown("agent to train", self.agent, LEARNERS))
        return LEARNERS[self.agent]

    @property
    def phased(self) -> bool:
        """Whether it is learned in phases: simulated, by a learner that does so."""
        return self.learner.phased and self.backend == "sim"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the policy sees."""
        return layout_of(self.spec).inputs if self.phased else self.control.fields

    @property
    def spec(self) -> SystemSpec:
        """The system that the policy is for; a ConfigError if the scenarios are of several."""
        _ = self.learner  # refuses an agent that does not learn
        specs = [make_spec(each, scenario_profile(each)) for each in self.scenarios]
        control = control_of(self.agent, specs[0])
        for scenario, spec in zip(self.scenarios, specs, strict=True):
            if control.fingerprint(spec) != control.fingerprint(specs[0]):
                raise ConfigError(
                    f"scenarios {self.scenarios[0].name!r} and {scenario.name!r} cannot be "
                    "trained on together: their profile or stages, interval or limits differ"
                )
        return specs[0]

    @property
    def control(self) -> Control:
        """What the policy sees and chooses."""
        return control_of(self.agent, self.spec)

    @property
    def fingerprint(self) -> str:
        """What has to be equal of a system that the policy is to fit."""
        spec = self.spec
        return control_of(self.agent, spec).fingerprint(spec)
