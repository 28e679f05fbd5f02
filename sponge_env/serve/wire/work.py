"""Coroutines without tasks: what they wait for resumes them without a turn of the event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Result(Generic[T]):
    """Something that one coroutine awaits, of :class:`Work` or a task, in the same thread."""

    def __init__(self) -> None:
        self._values: list[T] = []  # It, if it is there
        self._then: Callable[[Any], object] | None = None

    def set_result(self, value: T) -> None:
        """Resume who awaits it; the first time counts."""
        if not self._values:
            self._values.append(value)
            if self._then is not None:
                self._then(self)

    def add_done_callback(self, then: Callable[[Any], object]) -> None:
        """Call something when it is there."""
        self._then = then

    def __await__(self) -> Generator[Any, None, T]:
        if not self._values:
            if asyncio.current_task() is None:
                yield self
            else:
                future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._then = lambda done: None if future.done() else future.set_result(done)
                yield from future
        return self._values[0]


class Work:
    """Runs a coroutine, which must not raise, and may await futures as well."""

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self._awaited: Any = None

    def resume(self, awaited: object = None) -> None:
        """Run on, once what is awaited is there; at first nothing is."""
        if awaited is self._awaited:  # else it was cancelled
            self._awaited = None
            with suppress(StopIteration):
                self._awaited = self._coroutine.send(None)
                self._awaited.add_done_callback(self.resume)

    def cancel(self) -> None:
        """End it where it waits."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._coroutine.close()
            if isinstance(awaited, asyncio.Future):
                awaited.cancel()
