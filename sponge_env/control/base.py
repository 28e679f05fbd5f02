"""What the controllers of this project share: options with limits, and an episode's life.

A controller from elsewhere needs none of it: two methods are enough, see
:class:`sponge_env.interfaces.Controller`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.control.split import Rule, shares, stage_spec, stage_view
from sponge_env.interfaces import ACCURACY_PRICE, Allocation, SystemSpec, SystemView
from sponge_env.scenario.option import Options as Options
from sponge_env.scenario.option import option as option
from sponge_env.scenario.toml import from_mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning(Options):
    """Options of a program that plans with the latency fit."""

    headroom: float = option(0.0, at_least=0)
    """Time by which batches are planned to take longer than by the fit, relative to that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlanning(Planning):
    """Options of a program that also chooses model variants."""

    accuracy_price: float = option(ACCURACY_PRICE, at_least=0)
    """Cores that a percent of accuracy is worth, where there are variants."""


class BaseController(ABC):
    """A controller with options, which decides by a rule and draws no random number.

    A subclass says which options it takes by the type of ``config``, and its rule by
    :meth:`allocate`. If there are several stages or variants and it does not plan for them, a copy
    of it controls each stage, with a share of the SLO (:mod:`.split`) and the initial variant.
    """

    config: Any  # Options: an instance of the type with which a subclass annotates this attribute
    grows_ready = False  # Whether ready replicas may have more cores while others start
    plans_for: Literal["one model", "chains", "all"] = "one model"
    """Systems for which :meth:`allocate` decides about all stages and variants."""
    part_of_pipeline = False  # Whether what it controls is one of several stages
    _spec: SystemSpec | None = None
    _parts: Sequence["BaseController"] = ()

    def __init__(self, **options: Any) -> None:
        """Make ``config``; a ConfigError if an option is unknown, or not of its type or range."""
        self.config = from_mapping(get_type_hints(type(self))["config"], options)

    @property
    def spec(self) -> SystemSpec:
        """The system of this episode; a RuntimeError before the first :meth:`reset`."""
        if self._spec is None:
            raise RuntimeError("call reset() before decide()")
        return self._spec

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode; raise a SpongeError if it cannot plan for this system."""
        self._parts = ()
        if not spec.is_one_model and not self.plans(spec):
            self._shares = shares(spec, self.split_by())
            self._parts = [copy.deepcopy(self) for _ in spec.stages]
            for k, part in enumerate(self._parts):
                part.part_of_pipeline = len(spec.stages) > 1
                part.reset(stage_spec(spec, k, self._shares[k][0]), seed)
        else:
            if headroom := getattr(getattr(self, "config", None), "headroom", 0.0):
                spec = spec.with_headroom(headroom)
            self.begin(spec)
        self._spec = spec

    def decide(self, view: SystemView) -> Allocation:
        """Return the allocation for the next interval, of no more cores than the machine has."""
        spec = self.spec
        if not self._parts:
            return spec.fitting(self.allocate(spec, view), view.ready if self.grows_ready else ())
        seen = [stage_view(view, spec, k, *own) for k, own in enumerate(self._shares)]
        answers = [part.decide(own) for part, own in zip(self._parts, seen, strict=True)]
        pairs = zip(answers, spec.initial.stages, strict=True)
        stages = tuple(each.stages[0]._replace(variant=held.variant) for each, held in pairs)
        feasible = all(each.feasible for each in answers)
        return spec.fitting(Allocation(stages=stages, feasible=feasible))

    def plans(self, spec: SystemSpec) -> bool:
        """Return whether :meth:`allocate` decides about all stages and variants of a system."""
        return self.plans_for == "all" or (self.plans_for == "chains" and spec.is_chain)

    def split_by(self) -> Rule:
        """Return how the SLO is divided among the stages if it does not plan for all."""
        return "proportional"

    def begin(self, spec: SystemSpec) -> None:  # noqa: B027  # rules without memory need none
        """Forget the last episode and get ready for one on this system."""

    @abstractmethod
    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Apply the rule to what the system shows now."""


class ArrayController(BaseController):
    """A controller whose rule also works on the (n,) numbers of many systems of one model."""

    alone: NDArray[np.bool_]
    """(n,) the systems that must be played alone, since it needs more than these numbers there."""

    @abstractmethod
    def choose(self, spec: SystemSpec, view: Any) -> tuple[Any, ...]:
        """Return cores, batch and perhaps replicas: numbers, or (n,) each for a ``BatchView``."""

    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Apply the rule to a single system."""
        chosen: Any = map(int, self.choose(spec, view))
        return Allocation(*chosen)

    def reset_many(self, spec: SystemSpec, count: int) -> bool:
        """Start as many episodes, for :meth:`decide_many`; return whether it can."""
        self.reset(spec, seed=0)
        self.alone = np.zeros(count, np.bool_)
        return spec.is_one_model and type(self).allocate is ArrayController.allocate

    def decide_many(self, view: Any) -> IntArray:
        """Return the (n, 1, 4) allocations for the next interval."""
        (chosen,) = Allocation(*self.choose(self.spec, view)).stages
        rows = np.stack(np.broadcast_arrays(*chosen, self.alone)[:-1], axis=-1)
        return rows[:, None].astype(np.int64)
