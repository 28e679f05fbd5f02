"""Controllers, whoever wrote them: made by name, called with care, their answers checked."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast, get_type_hints

from sponge_env.errors import ConfigError, ControllerError, SpongeError, unknown
from sponge_env.interfaces import Allocation, Controller, StageAllocation, SystemSpec, SystemView
from sponge_env.scenario.spec import check_allocation
from sponge_env.utils.installation import bundled, look_here
from sponge_env.utils.installation import imported as imported

REGISTRIES = ("agents", "baselines")
"""Packages whose ``CONTROLLERS`` register controllers, and whose ``ABOUT`` describes them; this
one itself knows none. The first has ``FILES`` as well."""


def known_controllers() -> dict[str, str]:
    """Return all registered names and their lazy ``"module:callable"`` strings."""
    return _registered("CONTROLLERS", *REGISTRIES)


def described_controllers() -> dict[str, str]:
    """Return what each registered controller does, in one line."""
    return _registered("ABOUT", *REGISTRIES)


def file_controllers() -> dict[str, str]:
    """Return what follows a file, by the word before the colon in ``word:FILE``."""
    return _registered("FILES", REGISTRIES[0])


def _registered(kind: str, *packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        found |= imported(f"{bundled(package)}:{kind}")
    return found


def make_controller(
    name: str, registry: Mapping[str, str], options: Mapping[str, Any] | None = None
) -> Controller:
    """Make a controller by its registered name or ``"module:Class"``, or raise ``ConfigError``."""
    factory, options = _factory(name, registry), options or {}
    try:
        inspect.signature(factory).bind(**options)  # its message is plainer than the call's
        controller = factory(**options)
    except SpongeError:
        raise
    except Exception as error:
        raise ConfigError(f"agent {name!r} cannot be made: {_one_line(error)}") from error
    if not all(callable(getattr(controller, method, None)) for method in ("reset", "decide")):
        raise ConfigError(f"agent {name!r} is no controller: it needs reset() and decide()")
    return cast(Controller, controller)


def who_takes(option: str, agents: Mapping[str, str]) -> str:
    """Return the one agent that takes an option; none or several are a :class:`ConfigError`.

    The agents are given with their controllers.
    """
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
    if target not in known_controllers().values():
        look_here()
    try:
        return cast(Callable[..., Any], imported(target))
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"agent {name!r} cannot be imported: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """Return an error in one line; its kind too, where its text alone would not tell."""
    text = (str(error).splitlines() or [""])[0]
    plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def start(controller: Controller, spec: SystemSpec, seed: int) -> None:
    """Reset a controller; whatever it raises becomes a :class:`ControllerError`."""
    with _named(controller, "reset"):
        controller.reset(spec, seed)


def decision(controller: Controller, view: SystemView, spec: SystemSpec) -> Allocation:
    """Return what a controller decides, in Python's own numbers.

    If it fails, or answers with no allocation within the limits, that is a ``ControllerError``.
    """
    with _named(controller, "decide"):
        answer = controller.decide(view)
    try:
        if not isinstance(answer, Allocation):
            raise ValueError(f"it must return an Allocation, not {type(answer).__name__}")
        check_allocation(answer, spec)
    except ValueError as error:
        raise ControllerError(f"{_call(controller, 'decide')}: {error}") from None
    stages = (StageAllocation(*map(int, each)) for each in answer.stages)
    return dataclasses.replace(answer, stages=tuple(stages))


@contextmanager
def _named(controller: Controller, method: str) -> Iterator[None]:
    """Turn whatever a controller raises into a sentence that names it and the line."""
    try:
        yield
    except SpongeError:
        raise
    except Exception as error:
        place = ""
        with suppress(TypeError, OSError):  # made up while running
            path = inspect.getfile(type(controller))
            passed = traceback.extract_tb(error.__traceback__)
            if lines := [frame.lineno for frame in passed if frame.filename == path]:
                place = f" in {Path(path).name}, line {lines[-1]}"
        message = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        called = _call(controller, method)
        raise ControllerError(f"{called} failed{place}: {message}") from error


def _call(controller: Controller, method: str) -> str:
    return f"{type(controller).__module__}:{type(controller).__qualname__}.{method}()"
