"""Calls into a controller, whoever wrote it, and a check of its answers."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sponge_env.errors import ControllerError, SpongeError
from sponge_env.interfaces import (
    Allocation,
    Controller,
    StageAllocation,
    SystemSpec,
    SystemView,
)
from sponge_env.spec import check_allocation


def start(controller: Controller, spec: SystemSpec, seed: int) -> None:
    """Reset a controller.

    Raises:
        ControllerError: It fails.
    """
    with _named(controller, "reset"):
        controller.reset(spec, seed)


def decision(controller: Controller, view: SystemView, spec: SystemSpec) -> Allocation:
    """Return what a controller decides, in Python's own numbers.

    Raises:
        ControllerError: It fails, or answers with no allocation within the limits.
    """
    with _named(controller, "decide"):
        answer = controller.decide(view)
    if not isinstance(answer, Allocation):
        raise ControllerError(
            f"{_name(controller)}.decide() must return an Allocation, not {_type(answer)}"
        )
    try:
        check_allocation(answer, spec)
    except ValueError as error:
        raise ControllerError(f"{_name(controller)}.decide(): {error}") from None
    numbers = (dataclasses.astuple(stage) for stage in answer.stages)
    stages = tuple(StageAllocation(*map(int, stage)) for stage in numbers)
    return Allocation(stages=stages, feasible=answer.feasible)


@contextmanager
def _named(controller: Controller, method: str) -> Iterator[None]:
    """Turn whatever a controller raises into a sentence that names it and the line."""
    try:
        yield
    except SpongeError:
        raise
    except Exception as error:
        said = f"{_type(error)}: {error}".splitlines()[0].removesuffix(": ")
        raise ControllerError(
            f"{_name(controller)}.{method}() failed{_place(error, controller)}: {said}"
        ) from error


def _place(error: Exception, controller: Controller) -> str:
    """Say which line of the controller's own file an error came through."""
    try:
        path = inspect.getfile(type(controller))
    except (TypeError, OSError):  # made up while running
        return ""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f" in {Path(path).name}, line {lines[-1]}" if lines else ""


def _name(controller: Controller) -> str:
    return f"{type(controller).__module__}:{type(controller).__qualname__}"


def _type(value: object) -> str:
    return type(value).__name__
