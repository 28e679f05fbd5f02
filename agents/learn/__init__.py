"""Training of learned controllers: what is trained, on what, and with which settings.

:func:`.phased.train` executes a plan. Following a policy is in :mod:`..learned`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sponge_env.control.base import Options, option
from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import SystemSpec
from sponge_env.scenario.config import Limits
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.scenario.toml import from_mapping
from sponge_env.simulation.encoding import Control
from sponge_env.utils.files import read_json

from .. import LEARNERS
from ..history import layout_of
from ..learned import control_of
from ..policy import ANY_MODEL, Policy, PolicyInfo
from ..stepwise import Form, StageChoices

Report = Callable[[int, str], None]  # Called with the steps done, and how good the policy is
EVALUATED_FILE = "judged.json"  # What the policy that a training keeps reached, beside the program
SETTINGS_FILE = "learn.json"  # Hyper-parameters in a run directory
FOR_ANY_MODEL: dict[str, Any] = {
    "hidden": "128,128", "evaluation_episodes": 2, "demonstrations": 4, "imitation_epochs": 8
}  # fmt: skip
"""Hyper-parameters that differ where there are hundreds of systems instead of a few scenarios."""
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)  # Batch sizes that policies choose among


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig(Options):
    """Hyper-parameters of a training run, see :mod:`.phased`."""

    learning_rate: float = option(5e-4, above=0)  # At first; falls linearly to a tenth
    rollout_steps: int = option(32, at_least=1)  # Steps of each environment between two updates
    minibatch: int = option(1536, at_least=1)  # Largest number of transitions in one gradient step
    epochs: int = option(2, at_least=1)  # Passes over a rollout
    gamma: float = option(0.99, at_least=0, at_most=1)
    """Discount for one interval; a new replica first costs its cores for a cold start."""
    gae_lambda: float = option(0.95, at_least=0, at_most=1)  # Weight of later steps in an advantage
    entropy: float = option(0.003, at_least=0)  # Weight of the entropy bonus; falls to a fifth
    hidden: tuple[int, ...] = (64, 64)  # Units of the hidden layers
    evaluations: int = option(32, at_least=1)  # How often the policy is evaluated during training
    evaluation_episodes: int = option(16, at_least=1)  # Of each scenario, always the same ones
    imitations: int = option(4, at_least=1)  # Rounds of demonstrations; the first without a policy
    demonstrations: int = option(12, at_least=1)
    """Episodes of each scenario in a round, every other of another system if randomised. Of random
    systems a round has this many times their number, one episode each."""
    imitation_epochs: int = option(30, at_least=1)  # Passes over all demonstrations, after each

    def __post_init__(self) -> None:
        # Named explicitly: a class with slots is made anew, and super() would miss it.
        Options.__post_init__(self)
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be numbers of at least 1, not {self.hidden!r}")


def settings(options: Mapping[str, Any], resume: Path | None = None) -> LearnConfig:
    """Return the hyper-parameters of a run, some of them by name; ``hidden`` may be ``64,64``."""
    # Those of the run that is resumed are the defaults.
    changes = dict(options)
    if "hidden" in changes:
        parts = [part.strip() for part in str(changes["hidden"]).split(",")]
        changes["hidden"] = [int(part) if part.isdecimal() else part for part in parts]
    before = {} if resume is None else read_json(resume / SETTINGS_FILE)
    return from_mapping(LearnConfig, before | changes)


def spec_of(scenario: Scenario) -> SystemSpec:
    """Return the system of a scenario with its own profile."""
    return make_spec(scenario, scenario_profile(scenario))


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One training run."""

    scenarios: tuple[Scenario, ...]  # To train on, of one profile, interval and limits
    steps: int  # Environment steps over all environments, beside those of a run that is resumed
    envs: int
    seed: int
    folder: Path  # An existing folder; receives the policy, settings and TensorBoard events
    agent: str = "ppo"  # Name of the learner
    randomised: bool = False  # Whether some environments get random variants of their scenarios
    systems: int = 0
    """Random systems to learn on at a time, for a policy that decides for any model; the scenarios
    are then those that it is evaluated on. Only the scenarios if 0."""
    start: Policy | None = None  # A policy to begin with instead of with what programs show
    resumed: bool = False  # Whether that is the policy of an interrupted run, whose steps count
    command: str = ""  # Command line, to be kept with the policy

    def __post_init__(self) -> None:
        if self.agent not in LEARNERS:
            raise ConfigError(unknown("agent to train", self.agent, LEARNERS))
        for scenario in self.scenarios:
            if not self.systems and self.control.fingerprint(spec_of(scenario)) != self.fingerprint:
                raise ConfigError(
                    f"scenarios {self.scenarios[0].name!r} and {scenario.name!r} cannot be "
                    "trained on together: their profile or stages, interval or limits differ"
                )

    @property
    def spec(self) -> SystemSpec:
        """The system that the policy is for, which all the scenarios have."""
        return spec_of(self.scenarios[0])

    @property
    def control(self) -> Control:
        """What the policy sees and chooses."""
        return control_of(self.agent, self.spec)

    @property
    def form(self) -> Form:
        """What the policy chooses among; with one model, larger sizes count as its limit."""
        spec, every = self.spec, int(self.control.scales_out)
        largest = math.inf if spec.is_one_model else max(s.batch_max for s in spec.stages)
        sizes = tuple(size for size in BATCHES if size <= largest)
        return Form(every, sizes, any_model=self.systems > 0)

    @property
    def choices(self) -> dict[Limits, StageChoices]:
        """What there is to choose on each machine that the scenarios have."""
        form, machines = self.form, dict[Limits, StageChoices]()
        for each in self.scenarios:
            if each.limits not in machines:
                machines[each.limits] = StageChoices.of(spec_of(each), form)
        return machines

    @property
    def fingerprint(self) -> str:
        """What must be equal in every system that the policy fits."""
        return ANY_MODEL if self.systems else self.control.fingerprint(self.spec)

    @property
    def info(self) -> PolicyInfo:
        """Description of a policy whose training begins."""
        form, names = self.form, (scenario.name for scenario in self.scenarios)
        return PolicyInfo(
            batches=form.sizes, every=form.every, replicas=form.replicas, agent=self.agent,
            fingerprint=self.fingerprint,
            scenarios=("random systems",) if self.systems else tuple(dict.fromkeys(names)),
            actions=next(iter(self.choices.values())).actions, inputs=layout_of(self.spec).inputs,
            steps=0, seed=self.seed, partial=True, command=self.command,
        )  # fmt: skip
