"""Controllers by name, imported only when asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from sponge_env.errors import ConfigError, SpongeError, unknown
from sponge_env.interfaces import Controller

REGISTRIES = ("agents:CONTROLLERS", "baselines:CONTROLLERS")
"""Where named controllers are registered; the package itself knows none."""


def known_controllers() -> dict[str, str]:
    """Return all registered names and their lazy ``"module:callable"`` strings."""
    registered: dict[str, str] = {}
    for target in REGISTRIES:
        module_name, _, attribute = target.partition(":")
        registered.update(getattr(importlib.import_module(module_name), attribute))
    return registered


def make_controller(
    name: str, registry: Mapping[str, str], options: Mapping[str, Any] | None = None
) -> Controller:
    """Make a controller from a registry of lazy ``"module:callable"`` strings.

    Args:
        name: A registered name, or itself ``"module:Class"``.
        registry: Registered names.
        options: Keyword arguments of the callable.

    Raises:
        ConfigError: No such controller, or options that it does not take.
    """
    target = registry.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not (module_name and attribute):
        raise ConfigError(unknown("agent", name, registry))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"agent {name!r} cannot be imported: {_said(error)}") from error
    try:
        inspect.signature(factory).bind(**(options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"agent {name!r} cannot be made: {error}") from error
    try:
        controller = factory(**(options or {}))
    except SpongeError:
        raise
    except Exception as error:
        raise ConfigError(f"agent {name!r} cannot be made: {_said(error)}") from error
    if not all(callable(getattr(controller, method, None)) for method in ("reset", "decide")):
        raise ConfigError(f"agent {name!r} is no controller: it needs reset() and decide()")
    return cast(Controller, controller)


def _said(error: Exception) -> str:
    """Return an error in one line; its kind too, where its text alone would not tell."""
    text = (str(error).splitlines() or [""])[0]
    plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")
