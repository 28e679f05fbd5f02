"""Many tasks in a few processes.

Unlike in the standard library's pools, a process that dies takes only its task along, and
closing the results ends every process at once, whatever it is doing.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar, cast

from sponge_env.utils import installation
from sponge_env.utils.installation import ONE_THREAD

Task = TypeVar("Task")
Work = Callable[[Any], Any]  # Done with a task; a module's function, or a partial, sent by name
Results = Generator[tuple[Task, Any], None, None]
"""Tasks with their results, or with a :class:`Failure`, as they end. Closing it stops all."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result."""

    type: str  # Name of the exception, or ``ProcessDied``
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class Executor(Protocol):
    """Runs tasks somewhere."""

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with its result or failure, in the order in which they end."""


class Inline:
    """Runs tasks here, one after the other."""

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with its result or failure."""
        for task in tasks:
            yield task, attempt(work, task)


@dataclass(frozen=True, slots=True)
class Processes:
    """Runs tasks in processes of its own, each with one thread."""

    count: int  # How many tasks run at a time

    def run(self, work: Work, tasks: Sequence[Task]) -> Results[Task]:
        """Yield each task with its result or failure, in the order in which they end."""
        waiting = deque(tasks)
        helpers = [_Helper(work) for _ in range(min(self.count, len(tasks)))]
        busy = dict[Connection, _Helper]()
        try:
            for helper in helpers:
                busy[helper.begin(waiting.popleft())] = helper
            while busy:
                for connection in wait(list(busy)):
                    helper = busy.pop(cast(Connection, connection))
                    task, result = helper.task, helper.result()
                    if waiting:
                        busy[helper.begin(waiting.popleft())] = helper
                    yield task, result
        finally:
            for helper in helpers:
                helper.end()
            for helper in helpers:
                helper.join()


class _Helper:
    def __init__(self, work: Work) -> None:
        self.task: Any = None
        self._work = work
        self._process: multiprocessing.process.BaseProcess | None = None

    def begin(self, task: Any) -> Connection:
        """Give a task to the process, started if there is none; return where it will answer."""
        self.task = task
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            given = theirs, self._work, installation.typed()
            self._process = context.Process(target=_serve, args=given, daemon=True)
            with _one_thread():
                self._process.start()
            theirs.close()  # so that reading from ours ends when the process does
        with suppress(BrokenPipeError):  # it died meanwhile: its end of file will say so
            self._connection.send(task)
        return self._connection

    def result(self) -> Any:
        """Return the task's result or failure."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            process, self._process = self._process, None
            assert process is not None
            process.join()
            self._connection.close()
            return Failure("ProcessDied", f"its process ended with code {process.exitcode}")

    def end(self) -> None:
        """Have the process end, whatever it is doing."""
        if self._process is not None and self._process.pid is not None:
            self._process.terminate()
            self._connection.close()  # one that finishes its task waits for no other

    def join(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None and self._process.pid is not None:
            self._process.join()


def _serve(connection: Connection, work: Work, typed: Sequence[str] | None) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's reach all; the parent decides
        signal.signal(number, signal.SIG_IGN)
    try:
        with installation.typing(typed):
            while True:
                connection.send(attempt(work, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def attempt(work: Work, task: Any) -> Any:
    """Return the result of a task, or the :class:`Failure` that its exception is."""
    try:
        return work(task)
    except Exception as error:
        return Failure(type(error).__name__, str(error) or repr(error))


@contextmanager
def _one_thread() -> Iterator[None]:
    before, main = dict(os.environ), threading.current_thread() is threading.main_thread()
    os.environ.update(ONE_THREAD)
    # Inherited, so that a terminal's interrupt does not reach a process that is still importing.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for name in ONE_THREAD.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
