"""Executors work through many tasks: here, or in a few processes.

Unlike in the standard library's pools, a process that dies takes only its task along, and
leaving the executor ends every process at once, whatever it is doing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, Self, TypeVar

Task = TypeVar("Task")

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""The processes are the parallelism; more threads than CPUs only get in each other's way."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result."""

    type: str
    """Name of the exception, or ``ProcessDied``."""
    message: str
    cause: Exception | None = field(default=None, compare=False)
    """The exception itself, where the task ran in this process."""


class Executor(Protocol):
    """Runs a function on tasks; a context manager that stops everything when it is left."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result, or with a :class:`Failure`, as they end."""


class Inline:
    """Runs a function on one task after the other, in this process."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: nothing runs by itself."""

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result, or with a :class:`Failure`, in their order."""
        for task in tasks:
            yield task, _attempt(self._work, task)


@dataclass(frozen=True, slots=True)
class _Helper:
    process: SpawnProcess
    task: Any


class Processes:
    """Runs a function on tasks in processes of its own, each with one thread."""

    def __init__(self, work: Callable[[Any], Any], processes: int) -> None:
        """Start nothing yet.

        Args:
            work: A module's function, for it is sent by name.
            processes: How many tasks run at a time.
        """
        self._work = work
        self._processes = processes
        self._busy: dict[Connection, _Helper] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, also in the middle of a task."""
        for helper in self._busy.values():
            helper.process.terminate()
        for connection, helper in self._busy.items():
            helper.process.join()
            connection.close()
        self._busy.clear()

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result, or with a :class:`Failure`, as they end."""
        waiting = deque(tasks)
        while waiting and len(self._busy) < self._processes:
            self._start(waiting.popleft())
        while self._busy:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                task = self._busy[connection].task
                result, alive = self._receive(connection)
                self._go_on(connection, alive, waiting)
                yield task, result

    def _start(self, task: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        with _environment(ONE_THREAD):
            process.start()
        theirs.close()  # so that reading from ours ends when the process does
        self._busy[ours] = _Helper(process, task)
        ours.send(task)

    def _receive(self, connection: Connection) -> tuple[Any, bool]:
        """Return a task's result and whether its process lives on."""
        try:
            return connection.recv(), True
        except (EOFError, ConnectionResetError):
            process = self._busy[connection].process
            process.join()
            message = f"its process ended with code {process.exitcode}"
            return Failure("ProcessDied", message), False

    def _go_on(self, connection: Connection, alive: bool, waiting: deque[Any]) -> None:
        """Give a process the next task; replace it if it died, end it if there is none."""
        helper = self._busy.pop(connection)
        if alive and waiting:
            self._busy[connection] = _Helper(helper.process, waiting.popleft())
            connection.send(self._busy[connection].task)
            return
        connection.close()
        helper.process.join()
        if waiting:
            self._start(waiting.popleft())


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Do tasks until there are no more, or nobody is left to want them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    try:
        while True:
            result = _attempt(work, connection.recv())
            if isinstance(result, Failure):
                result = replace(result, cause=None)  # not every exception can be sent
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _attempt(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except Exception as error:
        return Failure(type(error).__name__, str(error) or repr(error), error)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that a new process sees."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
