"""Coroutines that run without tasks of asyncio: what they wait for resumes them at once.

The way through the event loop, from a result to the task that awaits it, takes a turn of the loop
each time, which is 50 us where caches are cold.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Result(Generic[T]):
    """What one coroutine of :class:`Work` awaits; set once, in the loop's thread."""

    def __init__(self) -> None:
        self._value: list[T] = []
        self._then: Callable[[Any], None] | None = None

    def done(self) -> bool:
        """Return whether it is there."""
        return bool(self._value)

    def set_result(self, value: T) -> None:
        """Resume who awaits it."""
        self._value.append(value)
        if self._then is not None:
            self._then(self)

    def add_done_callback(self, then: Callable[[Any], None]) -> None:
        """Call something when it is there."""
        self._then = then

    def cancel(self) -> None:
        """Resume nobody any more."""
        self._then = None

    def __await__(self) -> Generator[Any, None, T]:
        if not self._value:
            if asyncio.current_task() is None:
                yield self
            else:
                future = asyncio.get_running_loop().create_future()
                self._then = lambda _: future.done() or future.set_result(None)
                yield from future
        return self._value[0]


class Work:
    """Runs a coroutine, which must not raise."""

    # It may also await futures of asyncio. A task of asyncio may await a result.

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self._awaited: Any = None  # What it waits for, if it waits

    def resume(self, awaited: object = None) -> None:
        """Run on, once what is awaited is there; at first nothing is."""
        if awaited is not self._awaited:
            return  # it was cancelled
        self._awaited = None
        with suppress(StopIteration):
            self._awaited = self._coroutine.send(None)
            self._awaited.add_done_callback(self.resume)

    def cancel(self) -> None:
        """End it where it waits."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.cancel()
            self._coroutine.close()
