"""Settings: each is declared once, with its default, its range and its help, and checked here.

Options of controllers, scenarios, suites and servers are fields of frozen dataclasses::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class RuleConfig(Options):
        headroom: float = option(0.05, "Part of the throughput that is kept free.", at_least=0)

A class that is no :class:`Options`, such as a scenario's table, calls :func:`check_options` in its
``__post_init__``, with what stands before the names (``"network."``). Types are checked where text
is read, by :func:`sponge_env.scenario.toml.from_mapping`.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from operator import ge, gt, le, lt
from typing import Any

from sponge_env.errors import ConfigError

LARGEST = 1e12  # No number that is set is larger: what is computed of several stays finite

_HOLDS = {"at least": ge, "above": gt, "at most": le, "below": lt}


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise :class:`ConfigError` unless a rule holds for a setting."""
    if not condition:
        raise ConfigError(f"{name} must be {rule}, not {value!r}")


def positive(name: str, value: float) -> None:
    """Require a finite number above 0."""
    require(math.isfinite(value) and value > 0, name, value, "a number above 0")


def option(
    default: Any = MISSING, help: str = "", *, check: Callable[[Any], bool] | None = None,
    rule: str = "", **limits: float,
) -> Any:  # fmt: skip
    """Declare a field that a user can set; without a default it is required.

    Args:
        default: Value where nothing is set.
        help: One sentence for people.
        check: Whether a value may be used, where limits don't say it all; needs a ``rule``.
        rule: What follows "must be" in the error; if left out it is made of the limits.
        limits: Some of ``at_least``, ``above``, ``at_most`` and ``below``. A value with limits must
            be finite. None, a choice that is left open, has no limits, and of a list each item has.
    """
    bounds = {word.replace("_", " "): limit for word, limit in limits.items()}
    assert bounds.keys() <= _HOLDS.keys()
    assert rule or not check
    metadata = {"help": help, "bounds": bounds, "check": check, "rule": rule}
    return field(default=default, metadata=metadata)


def check_options(settings: Any, prefix: str = "") -> None:
    """Raise a :class:`ConfigError` for the first setting whose value is out of its range."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        bounds, check = each.metadata.get("bounds", {}), each.metadata.get("check")
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                small = not bounds or abs(item) <= LARGEST
                fits = small and all(_HOLDS[word](item, bounds[word]) for word in bounds)
                fits = fits and (check is None or check(item))
                huge = bounds and LARGEST < item < math.inf and not {"at most", "below"} & {*bounds}
                rule = f"at most {LARGEST:g}" if huge else _rule_of(each)
                require(fits, prefix + each.name, item, rule)


def _rule_of(declared: dataclasses.Field[Any]) -> str:
    bounds = declared.metadata.get("bounds", {})
    if rule := declared.metadata.get("rule", ""):
        return str(rule)
    if bounds.keys() == {"at least", "at most"}:
        return f"between {bounds['at least']} and {bounds['at most']}"
    text = " and ".join(f"{word} {limit}" for word, limit in bounds.items())
    if len(bounds) != 1 or "float" not in str(declared.type):
        return text
    return f"a number {'of ' * ('at least' in bounds)}{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of something that a user can make, a field for each, checked when made."""

    def __post_init__(self) -> None:
        check_options(self)
