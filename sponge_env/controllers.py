"""What the controllers of this project share: options with limits, and an episode's life.

A controller from elsewhere needs none of it: two methods are enough, see
:class:`sponge_env.interfaces.Controller`.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


def option(default: Any, **limits: float) -> Any:
    """Declare a field of :class:`Options`.

    Args:
        default: Its default.
        limits: Some of ``at_least``, ``above``, ``at_most`` and ``below``.
    """
    bounds = {word.replace("_", " "): limit for word, limit in limits.items()}
    assert bounds.keys() <= _HOLDS.keys()
    return field(default=default, metadata={"bounds": bounds})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of something that a user can set, a field for each, checked when made."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, bounds = getattr(self, each.name), each.metadata.get("bounds")
            # None stands for a choice that is left to the controller.
            if bounds and value is not None and not _within(value, bounds):
                rule = _rule(bounds, whole=not isinstance(each.default, float))
                raise ConfigError(f"{each.name} must be {rule}, not {value!r}")


def _within(value: float, bounds: Mapping[str, float]) -> bool:
    holds = all(_HOLDS[word](value, limit) for word, limit in bounds.items())
    return math.isfinite(value) and holds


def _rule(bounds: Mapping[str, float], whole: bool) -> str:
    """Say what bounds allow, as a user is told it."""
    if bounds.keys() == {"at least", "at most"}:
        return f"between {bounds['at least']} and {bounds['at most']}"
    rule = " and ".join(f"{word} {limit}" for word, limit in bounds.items())
    if whole or len(bounds) > 1:
        return rule
    return f"a number {'of ' * ('at least' in bounds)}{rule}"


class BaseController(ABC):
    """A controller with options, which decides by a rule and draws no random number.

    A subclass says which options it takes by the type of ``config``, and its rule by
    :meth:`allocate`.
    """

    config: Any
    """Options: an instance of the type with which a subclass annotates this attribute."""
    _spec: SystemSpec | None = None

    def __init__(self, **options: Any) -> None:
        """Check the options.

        Args:
            options: Fields of the type of ``config``.

        Raises:
            ConfigError: An option is unknown, of another type or out of range.
        """
        self.config = from_mapping(get_type_hints(type(self))["config"], options)

    @property
    def spec(self) -> SystemSpec:
        """The system of this episode.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self._spec is None:
            raise RuntimeError("call reset() before decide()")
        return self._spec

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode, whatever the seed.

        Raises:
            SpongeError: The controller cannot plan for this system.
        """
        self.begin(spec)
        self._spec = spec

    def decide(self, view: SystemView) -> Allocation:
        """Return the allocation for the next interval, of no more cores than the machine has.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        return self.spec.fitting(self.allocate(self.spec, view))

    def begin(self, spec: SystemSpec) -> None:  # noqa: B027  # rules without memory need none
        """Forget the last episode and get ready for one on this system."""

    @abstractmethod
    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Apply the rule to what the system shows now."""
