"""Where large requests are parsed: beside the loop, which serves the others meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

LARGE_BYTES = 2**16
"""From here on what has to be parsed, written or unpacked number by number is done in a thread:
JSON of this size takes about 2 ms, the way to a thread and back 0.1 ms."""
_READER = ThreadPoolExecutor(1, "sponge-reader")


async def aside(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Do what takes long for large bodies in another thread."""
    if size < LARGE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


async def in_turn(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Read what is large, number by number, in the one thread for that.

    It lets nothing else of Python run for milliseconds at a time: two would be worse than one
    after the other.
    """
    if size < LARGE_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_READER, work, *arguments)


async def apart(work: Callable[..., T], *arguments: Any) -> T:
    """Do what may take for ever in a thread that the end of the server does not wait for."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="sponge-apart", daemon=True).start()
    return await asyncio.wrap_future(done)
