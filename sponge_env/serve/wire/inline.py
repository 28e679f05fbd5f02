"""Coroutines without tasks: what they wait for resumes them without a turn of the event loop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any

LOG = logging.getLogger("sponge_env")


class InlineFuture:
    """Something that one coroutine awaits, in a task or without, in the same thread."""

    def __init__(self) -> None:
        self._values: list[Any] = []  # The result, once it is there
        self._then: Callable[[Any], object] | None = None

    def set_result(self, value: Any) -> None:
        """Set the result and resume the coroutine that awaits it; only the first call counts."""
        if not self._values:
            self._values.append(value)
            if self._then is not None:
                self._then(self)

    def add_done_callback(self, then: Callable[[Any], object]) -> None:
        """Call ``then`` when the result is there."""
        self._then = then

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._values:
            if asyncio.current_task() is None:
                yield self
            else:
                future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._then = lambda done: None if future.done() else future.set_result(done)
                yield from future
        return self._values[0]


def run_inline(coroutine: Coroutine[Any, None, None]) -> Callable[[], None]:
    """Run a coroutine until it waits, and log its errors; return what ends it while it waits."""
    awaited: Any = None

    def resume(there: object) -> None:
        nonlocal awaited
        if there is awaited:  # else it was ended
            awaited = None
            try:
                awaited = coroutine.send(None)
                awaited.add_done_callback(resume)
            except StopIteration:
                pass
            except Exception:  # must not reach whoever resumes it, which may be the engine
                LOG.exception("a coroutine failed")

    def end() -> None:
        nonlocal awaited
        given_up, awaited = awaited, None
        if given_up is not None:
            coroutine.close()
            if isinstance(given_up, asyncio.Future):
                given_up.cancel()

    resume(None)
    return end
