"""Controllers, ours and users', made by name; :mod:`.decision` calls them."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast, get_type_hints

from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import Controller
from sponge_env.run.decision import failure_as_sentence, one_line
from sponge_env.utils.installation import bundled, check_typed, look_here
from sponge_env.utils.installation import imported as imported

REGISTRIES = ("agents", "baselines")
"""Packages whose ``CONTROLLERS`` register controllers, and whose ``ABOUT`` describes them in a line
each. For agents named ``word:FILE``, ``FILES`` of the first maps the word to a controller."""


def known_controllers() -> dict[str, str]:
    """Return all registered names with their lazy ``"module:callable"`` strings."""
    return registered("CONTROLLERS")


def registered(table: str) -> dict[str, str]:
    """Return a table of all :data:`REGISTRIES`."""
    modules = [importlib.import_module(bundled(package)) for package in REGISTRIES]
    return {name: text for module in modules for name, text in getattr(module, table, {}).items()}


def make_controller(
    name: str, registry: Mapping[str, str], options: Mapping[str, Any] | None = None
) -> Controller:
    """Make a controller by its registered name or ``"module:Class"``, or raise ``ConfigError``."""
    factory, options = _factory(name, registry), options or {}
    with _made(name, "made"):
        signature = inspect.signature(factory)
        known = signature.parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            for key in (key for key in options if known and key not in known):
                raise ConfigError(unknown(f"option of agent {name}", key, known))
        signature.bind(**options)  # its message is plainer than the call's
        return cast(Controller, factory(**options))


def who_takes(option: str, agents: Mapping[str, str]) -> str:
    """Return the only one of ``agents`` (name to controller) that takes an option, or raise."""
    registry = known_controllers()
    takers = [name for name, c in agents.items() if option in _options(_factory(c, registry))]
    if len(takers) != 1:
        found = f"{', '.join(takers)} do" if takers else f"none of {', '.join(agents)} does"
        raise ConfigError(f"--{option} is for one agent that takes the option {option!r}; {found}")
    return takers[0]


def _options(factory: Callable[..., Any]) -> set[str]:
    # With ``**options`` the dataclass that annotates ``config`` says which there are.
    made = getattr(factory, "func", factory)  # what a partial calls
    declared = get_type_hints(made).get("config") if isinstance(made, type) else None
    if dataclasses.is_dataclass(declared):
        return {field.name for field in dataclasses.fields(declared)}
    return set(inspect.signature(factory).parameters)


def _factory(name: str, registry: Mapping[str, str]) -> Callable[..., Any]:
    target = registry.get(name, name)
    if not all(target.partition(":")):
        raise ConfigError(unknown("agent", name, registry))
    ours = target in (*known_controllers().values(), *registered("FILES").values())
    if not ours:
        check_typed(target, "agent")
        look_here()
    with _made(name, "imported"):
        factory = cast(Callable[..., Any], imported(target))
        has_methods = all(callable(getattr(factory, call, None)) for call in ("reset", "decide"))
    if not ours and not (isinstance(factory, type) and has_methods):  # before it is called
        raise ConfigError(f"agent {name!r} is no controller, no class with reset() and decide()")
    return factory


def _made(name: str, how: str) -> AbstractContextManager[None]:
    return failure_as_sentence(
        lambda error: ConfigError(f"agent {name!r} cannot be {how}: {one_line(error)}")
    )
