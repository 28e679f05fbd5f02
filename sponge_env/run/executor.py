"""Executors work through many tasks: here, or in a few processes.

Unlike in the standard library's pools, a process that dies takes only its task along, and
closing the results ends every process at once, whatever it is doing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Work = Callable[[Any], Any]
"""What is done with a task; a module's function or a partial one, for it is sent by name."""
Results = Generator[tuple[Task, Any], None, None]
"""Tasks with their results, or with a :class:`Failure`, as they end. Closing it stops all."""

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
    """Runs tasks somewhere."""

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with what became of it; to be closed by the caller."""


class Inline:
    """Runs one task after the other, in this process."""

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with what became of it, in their order."""
        for task in tasks:
            yield task, _attempt(work, task)


@dataclass(frozen=True, slots=True)
class Processes:
    """Runs tasks in processes of its own, each with one thread."""

    count: int
    """How many tasks run at a time."""

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with what became of it, in the order in which they end."""
        waiting, busy = deque(tasks), dict[Connection, _Helper]()
        try:
            while waiting and len(busy) < self.count:
                _start(work, waiting.popleft(), busy)
            while busy:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    helper = busy.pop(connection)
                    result, alive = _receive(connection, helper)
                    if alive and waiting:
                        busy[connection] = _Helper(helper.process, waiting.popleft())
                        connection.send(busy[connection].task)
                    else:
                        connection.close()
                        helper.process.join()
                        if waiting:  # it died: another takes its place
                            _start(work, waiting.popleft(), busy)
                    yield helper.task, result
        finally:
            for helper in busy.values():
                helper.process.terminate()
            for connection, helper in busy.items():
                helper.process.join()
                connection.close()


@dataclass(frozen=True, slots=True)
class _Helper:
    process: SpawnProcess
    task: Any


def _start(work: Work, task: Any, busy: dict[Connection, _Helper]) -> None:
    """Start a process and give it its first task."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    with _environment(ONE_THREAD):
        process.start()
    theirs.close()  # so that reading from ours ends when the process does
    busy[ours] = _Helper(process, task)
    ours.send(task)


def _receive(connection: Connection, helper: _Helper) -> tuple[Any, bool]:
    """Return a task's result and whether its process lives on."""
    try:
        return connection.recv(), True
    except (EOFError, ConnectionResetError):
        helper.process.join()
        message = f"its process ended with code {helper.process.exitcode}"
        return Failure("ProcessDied", message), False


def _serve(connection: Connection, work: Work) -> None:
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


def _attempt(work: Work, task: Any) -> Any:
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
