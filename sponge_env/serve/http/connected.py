"""Work for a client, as long as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from sponge_env.serve.http.body import GONE

T = TypeVar("T")
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(scope: Scope, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do some work; it is cancelled, and ClientGoneError raised, once the client closes."""
    task = asyncio.current_task()
    watch: asyncio.Future[None] | None = (scope.get("extensions") or {}).get(GONE)
    if watch is None:  # another server's, which tells it in no other way
        watch = asyncio.create_task(_until_closed(receive))
    gone = False

    def closed(watch: asyncio.Future[None]) -> None:
        nonlocal gone
        if not watch.cancelled() and task is not None:
            gone = True
            task.cancel()

    watch.add_done_callback(closed)
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            raise ClientGoneError from None
        raise
    finally:
        watch.remove_done_callback(closed)
        watch.cancel()


async def _until_closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
