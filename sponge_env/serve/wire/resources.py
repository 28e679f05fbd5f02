"""The cost of large requests: memory, which is counted, and parsing, which is done in threads."""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from numpy.typing import NDArray

from sponge_env.serve.wire.outcomes import WireError

T = TypeVar("T")

LARGE_BYTES = 2**16
"""From this size on, what is parsed, written or unpacked number by number goes to a thread: JSON of
this size takes about 2 ms, the way to a thread and back 0.1 ms."""
READER = ThreadPoolExecutor(1, "sponge-reader")
"""Parses large data, one after the other: that blocks all other Python threads for milliseconds."""


class MemoryLimit:
    """Counts the bytes that the requests of a server hold; used in its loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.released: deque[int] = deque()  # Sizes of what is not used any more; from any thread
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        while self.released:
            self._held_bytes -= self.released.popleft()
        return self._held_bytes

    def hold(self, size: int) -> None:
        """Count bytes that the caller will give back; a WireError if there is no room for them."""
        if self.held_bytes + size > self.max_bytes:
            raise WireError("too many bodies at a time", 503)
        self._held_bytes += size

    def release_with(self, array: NDArray[Any], size: int) -> None:
        """Give bytes back once neither an array nor a view on it is used any more."""
        weakref.finalize(array, self.released.append, size).atexit = False

    def keep(self, array: NDArray[Any]) -> None:
        """Count an array as long as it is used; a WireError if there is no room for it."""
        self.hold(array.nbytes)
        self.release_with(array, array.nbytes)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count bytes within the context; a WireError if there is no room for them."""
        if size > self.max_bytes:  # a second attempt would not help
            raise WireError("reading this request takes more memory than the server has", 413)
        self.hold(size)
        try:
            yield
        finally:
            self.released.append(size)


class HeldBytes:
    """A growing number of bytes that one request holds, given back with this object."""

    def __init__(self, memory: MemoryLimit) -> None:
        self._memory, self._size = memory, 0

    def add(self, size: int) -> None:
        """Count more bytes; a WireError if there is no room for them."""
        self._memory.hold(size)
        self._size += size

    def release_with(self, array: NDArray[Any]) -> None:
        """Give all of it back with an array instead."""
        self._memory.release_with(array, self._size)
        self._size = 0

    def __del__(self) -> None:
        self._memory.released.append(self._size)


async def run_in_thread(
    size: int, work: Callable[..., T], *arguments: Any, threads: ThreadPoolExecutor | None = None
) -> T:
    """Run something, in another thread if the size of its data is large."""
    if size < LARGE_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


async def run_detached(work: Callable[..., T], *arguments: Any) -> T:
    """Run something that may hang, in a thread that the end of the server does not wait for."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # it cannot be cancelled from here on

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="sponge-detached", daemon=True).start()
    return await asyncio.wrap_future(done)
