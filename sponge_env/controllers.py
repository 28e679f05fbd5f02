"""What the controllers of this project share: options with limits, and an episode's life.

A controller from elsewhere needs none of it: two methods are enough, see
:class:`sponge_env.interfaces.Controller`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.mapping import from_mapping


@dataclass(frozen=True, slots=True)
class Bounds:
    """An interval of numbers, as a user is told of it."""

    least: float | None
    above: float | None
    most: float | None
    below: float | None
    whole: bool
    """Whether the option is a whole number, which need not be called a number."""

    def holds(self, value: float) -> bool:
        """Return whether a value lies within; infinity and NaN never do."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Say what is allowed: ``must be ...``."""
        if self.least is not None and self.most is not None:
            return f"between {self.least} and {self.most}"
        low = f"at least {self.least}" if self.above is None else f"above {self.above}"
        if self.most is None and self.below is None:
            return low if self.whole else f"a number {'of ' * (self.above is None)}{low}"
        high = f"at most {self.most}" if self.below is None else f"below {self.below}"
        return f"{low} and {high}"


def option(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field of :class:`Options` with its default and its limits."""
    bounds = Bounds(least, above, most, below, whole=not isinstance(default, float))
    return field(default=default, metadata={"bounds": bounds})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of something that a user can set, a field for each, checked when made."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, bounds = getattr(self, each.name), each.metadata.get("bounds")
            # None stands for a choice that is left to the controller.
            if bounds is not None and value is not None and not bounds.holds(value):
                raise ConfigError(f"{each.name} must be {bounds}, not {value!r}")


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
        """Return the allocation for the next interval.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        return self.allocate(self.spec, view)

    def begin(self, spec: SystemSpec) -> None:  # noqa: B027  # rules without memory need none
        """Forget the last episode and get ready for one on this system."""

    @abstractmethod
    def allocate(self, spec: SystemSpec, view: SystemView) -> Allocation:
        """Apply the rule to what the system shows now."""
