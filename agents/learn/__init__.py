"""Training of learned controllers: what is trained, on what, and with which settings.

:func:`.phased.train` and :func:`.sb3_ppo.train` carry a plan out. Following a policy is in
:mod:`..learned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from sponge_env.utils.files import read_json

from .. import LEARNERS
from ..history import layout_of
from ..learned import control_of
from ..policy import PolicyInfo

T = TypeVar("T", bound="LearnConfig")

Report = Callable[[int, str], None]
"""Called with the number of steps done in this run, and how good the policy is in a few words."""

CHECKPOINT_FILE = "checkpoint.zip"
"""Its name in a run directory, for resuming only: Stable-Baselines3's own format, or what
:meth:`.phased.Training.save` writes."""
EVALUATED_FILE = "judged.json"
"""What the policy that a training in phases keeps reached there, beside the best rules."""
SETTINGS_FILE = "learn.json"
"""Hyper-parameters in a run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig(Options):
    """Hyper-parameters of PPO (Schulman et al., 2017), as Stable-Baselines3 gets them."""

    learning_rate: float = option(3e-3, above=0)
    """At first; falls linearly to a small share of it."""
    rollout_steps: int = option(32, at_least=1)
    """Steps of each environment between two updates."""
    minibatch: int = option(2048, at_least=1)
    """Largest number of transitions in one gradient step."""
    epochs: int = option(3, at_least=1)
    """Passes over a rollout."""
    gamma: float = option(0.9, at_least=0, at_most=1)
    """Discount for one interval: what is decided now is over within seconds."""
    gae_lambda: float = option(0.9, at_least=0, at_most=1)
    """Weight of later steps in an advantage."""
    entropy: float = option(0.002, at_least=0)
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    evaluations: int = option(10, at_least=1)
    """How often the policy is evaluated during training."""
    evaluation_episodes: int = option(16, at_least=1)
    """Episodes of each scenario in an evaluation, always the same."""

    def __post_init__(self) -> None:
        # Explicit, for a class with slots is made anew and super() would miss it.
        Options.__post_init__(self)
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be numbers of at least 1, not {self.hidden!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasedConfig(LearnConfig):
    """Hyper-parameters of a training in phases, see :mod:`.phased`; a few have other defaults."""

    learning_rate: float = option(5e-4, above=0)
    minibatch: int = option(1536, at_least=1)
    epochs: int = option(2, at_least=1)
    gamma: float = option(0.99, at_least=0, at_most=1)
    """A new replica first costs its cores for a cold start."""
    gae_lambda: float = option(0.95, at_least=0, at_most=1)
    entropy: float = option(0.003, at_least=0)
    """At first; falls linearly to a fifth."""
    evaluations: int = option(32, at_least=1)
    evaluation_episodes: int = option(32, at_least=1)
    imitations: int = option(4, at_least=1)
    """Rounds of demonstrations by a program, each but the first where the policy leads."""
    demonstrations: int = option(12, at_least=1)
    """Episodes of each scenario in a round, every other of another system if randomised."""
    imitation_epochs: int = option(30, at_least=1)
    """Passes over all demonstrations so far, after each round."""


def settings(kind: type[T], options: Mapping[str, Any], resume: Path | None = None) -> T:
    """Return the hyper-parameters of a run, some of them by name; ``hidden`` may be ``64,64``.

    Those of the run whose checkpoint is resumed are the defaults; its layers cannot change.
    """
    changes = dict(options)
    if not isinstance(hidden := changes.get("hidden", []), list):
        parts = [part.strip() for part in str(hidden).split(",")]
        changes["hidden"] = [int(part) if part.isdecimal() else part for part in parts]
    if resume is None:
        return from_mapping(kind, changes)
    path = resume.with_name(SETTINGS_FILE)
    try:
        before = read_json(path)
        known = from_mapping(kind, before)
    except (OSError, ValueError, AttributeError) as error:
        raise PolicyError(f"the hyper-parameters in {path} cannot be read: {error}") from error
    config = from_mapping(kind, {**before, **changes})
    if config.hidden != known.hidden:
        raise ConfigError(
            f"hidden cannot change with --resume: the checkpoint's layers have {known.hidden} units"
        )
    return config


def spec_of(scenario: Scenario) -> SystemSpec:
    """Return the system of a scenario with its own profile."""
    return make_spec(scenario, scenario_profile(scenario))


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run."""

    scenarios: tuple[Scenario, ...]
    """What to train on, of one profile, interval and limits; divided among the environments."""
    steps: int
    """Environment steps over all environments."""
    envs: int
    seed: int
    folder: Path
    """An existing folder; receives the policy, checkpoint, settings and TensorBoard events."""
    agent: str = "ppo"
    """Name of the learner."""
    randomised: bool = False
    """Whether some environments get random variants of their scenarios."""
    backend: Backend = "sim"
    limiter: Limiter = "auto"
    resume: Path | None = None
    """A checkpoint of an earlier run to go on from."""
    command: str = ""
    """Command line, to be kept with the policy."""

    def __post_init__(self) -> None:
        if self.agent not in LEARNERS:
            raise ConfigError(unknown("agent to train", self.agent, LEARNERS))

    @property
    def phased(self) -> bool:
        """Whether it is learned in phases: simulated, by a learner that does so."""
        return LEARNERS[self.agent].phased and self.backend == "sim"

    @property
    def spec(self) -> SystemSpec:
        """The system that the policy is for; a ConfigError if the scenarios are of several."""
        specs = [spec_of(each) for each in self.scenarios]
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
    def every(self) -> int:
        """Intervals after which a policy learned in phases may change the replicas; never if 0."""
        return int(self.control.scales_out)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the policy sees."""
        return layout_of(self.spec).inputs if self.phased else self.control.fields

    @property
    def fingerprint(self) -> str:
        """What has to be equal in a system that the policy is to fit."""
        return self.control.fingerprint(self.spec)

    def info(self, actions: tuple[int, ...], **more: Any) -> PolicyInfo:
        """Describe a policy with so many choices of each part, whose training has not ended."""
        return PolicyInfo(
            agent=self.agent,
            fingerprint=self.fingerprint,
            scenarios=tuple(dict.fromkeys(scenario.name for scenario in self.scenarios)),
            actions=actions,
            inputs=self.inputs,
            seed=self.seed,
            partial=True,
            command=self.command,
            **more,
        )
