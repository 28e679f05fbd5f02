"""Controllers called with care: their errors become sentences, their answers are checked."""

import dataclasses
import inspect
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from types import FrameType

import numpy as np

from sponge_env.control.split import model_view
from sponge_env.errors import ControllerError, SpongeError
from sponge_env.interfaces import Allocation, Controller, StageAllocation, SystemSpec, SystemView
from sponge_env.scenario.spec import check_allocation


@contextmanager
def failure_as_sentence(said: Callable[[BaseException], SpongeError]) -> Iterator[None]:
    """Turn whatever a user's code raises into a sentence; the working folder stays as it is."""
    folder = _working_folder()
    try:
        yield
        if _working_folder() != folder:
            raise ValueError("it changes the working folder")
    except (SpongeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and GeneratorExit, too
        # contextlib would take a RuntimeError that a StopIteration caused for the StopIteration.
        raise said(error) from (None if isinstance(error, StopIteration) else error)
    finally:
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)


def _working_folder() -> str | None:
    with suppress(OSError):  # it may have been removed
        return os.getcwd()
    return None


def one_line(error: BaseException, plain: bool = True) -> str:
    """Return an error in one line, with its type unless ``plain`` and the text is enough."""
    try:
        text = (str(error).splitlines() or [""])[0]
    except Exception:
        text = ""
    plain &= isinstance(error, ImportError | AttributeError | TypeError | ValueError)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def start(controller: Controller, spec: SystemSpec, seed: int) -> Controller:
    """Reset a controller and return it, one per model for a set; errors are ControllerErrors."""
    with _named(controller, "reset"):
        if spec.models and not isinstance(controller, EachModel):
            controller = EachModel(controller)
        controller.reset(spec, seed)
    return controller


class EachModel:
    """Gives each model of a set its own copy of a controller, which sees that model only."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a copy for each model."""
        try:
            copies = [deepcopy(self._controller) for _ in spec.models]
        except Exception as error:
            why = f"a controller for several models must be copyable: {one_line(error)}"
            raise ControllerError(why) from error
        parts = [start(own, model, seed) for own, model in zip(copies, spec.models, strict=True)]
        self._stages = [*spec.initial.stages]  # The last answers
        self._models = [*zip(parts, spec.models, [list[float]() for _ in parts], strict=True)]

    def decide(self, view: SystemView) -> Allocation:
        """Return what all of them ask for, or raise the first failure after all have decided."""
        feasible, guarded, failure = True, False, None
        for k, (part, own, past_s) in enumerate(self._models):
            try:
                answer = decision(part, model_view(view, k, past_s), own)
            except SpongeError as error:
                failure = failure or ControllerError(str(error))
                continue
            self._stages[k] = answer.stages[0]
            feasible, guarded = feasible and answer.feasible, guarded or answer.guarded
        if failure is not None:
            failure.stages = tuple(self._stages)
            raise failure
        return Allocation(stages=tuple(self._stages), feasible=feasible, guarded=guarded)


def decision(
    controller: Controller, view: SystemView, spec: SystemSpec, limit_s: float | None = None
) -> Allocation:
    """Return what a controller decides in time, or raise a :class:`ControllerError`."""
    with _named(controller, "decide"), nullcontext() if limit_s is None else _at_most(limit_s):
        answer = controller.decide(view)
    try:
        if not isinstance(answer, Allocation):
            raise ValueError(f"it must return an Allocation, not {type(answer).__name__}")
        check_allocation(answer, spec, view.ready)
        if not all(isinstance(said, bool | np.bool_) for said in (answer.feasible, answer.guarded)):
            raise ValueError("feasible and guarded must be true or false")
    except ValueError as error:
        raise ControllerError(f"{_call(controller, 'decide')}: {error}") from None
    if all(type(number) is int for stage in answer.stages for number in stage):
        return answer
    stages = (StageAllocation(*map(int, each)) for each in answer.stages)
    return dataclasses.replace(answer, stages=tuple(stages))


@contextmanager
def _at_most(limit_s: float) -> Iterator[None]:
    """Raise a ``TimeoutError`` in the main thread's Python code if it runs for longer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends_s = time.monotonic() + limit_s

    def stop(number: int, at: FrameType | None) -> None:
        if time.monotonic() >= ends_s:
            raise TimeoutError(f"it took longer than {limit_s:g} s")
        if callable(before):  # of an interrupt, which uses this signal too
            before(number, at)

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: each of several models may have a controller that hangs.
    signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)
    try:
        yield
    finally:
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if 0 < left_s < ends_s - time.monotonic():  # an interrupt's, which is to be raised again
            signal.setitimer(signal.ITIMER_REAL, left_s)


def _named(controller: Controller, method: str) -> AbstractContextManager[None]:
    def said(error: BaseException) -> ControllerError:
        place = ""
        with suppress(TypeError, OSError):  # made up while running
            path = inspect.getfile(type(controller))
            passed = traceback.extract_tb(error.__traceback__)
            if lines := [frame.lineno for frame in passed if frame.filename == path]:
                place = f" in {Path(path).name}, line {lines[-1]}"
        message = one_line(error, plain=False)
        return ControllerError(f"{_call(controller, method)} failed{place}: {message}")

    return failure_as_sentence(said)


def _call(controller: Controller, method: str) -> str:
    return f"{type(controller).__module__}:{type(controller).__qualname__}.{method}()"
