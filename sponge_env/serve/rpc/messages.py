"""The messages of one call, from a client that is neither silent nor deaf for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import grpc.aio

from sponge_env.serve.wire.front import Headers
from sponge_env.serve.wire.outcomes import WireError

Context = grpc.aio.ServicerContext[Any, Any]

ANY_TIME = nullcontext()
STREAMED = 64
"""Requests of one stream at a time."""


class Stream:
    """One ``ModelStreamInfer``, whose client may neither be silent nor deaf for long."""

    def __init__(
        self,
        context: Context,
        patience_s: float,
        answer: Callable[[bytes, Headers], Coroutine[Any, Any, bytes]],
    ) -> None:
        self._context, self._patience_s, self._answer = context, patience_s, answer
        self._places = asyncio.Semaphore(STREAMED)
        self._answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[bytes]] = set()

    async def serve(self) -> None:
        """Answer until the client ends it; a WireError if it is silent or deaf for too long."""
        reading = asyncio.create_task(self._read())
        try:
            while (answer := await self._answers.get()) is not None:
                await self._write(await answer)
                self._places.release()
            await reading
        finally:
            reading.cancel()
            for task in self._tasks:
                task.cancel()

    async def _read(self) -> None:
        headers = headers_of(self._context)
        try:
            while True:
                await self._places.acquire()
                data = await read_message(self._context, self._patience_s)
                if data is None:
                    return
                task = asyncio.create_task(self._answer(data, headers))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self._answers.put_nowait(task)
        finally:
            self._answers.put_nowait(None)

    async def _write(self, answer: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._context.write(answer)
        except TimeoutError:
            raise WireError("the answers are not read", 408) from None


async def read_message(
    context: Context, timeout_s: float, turn: AbstractAsyncContextManager[Any] = ANY_TIME
) -> bytes | None:
    """Return a call's next message, None after the last; taking too long is a WireError.

    gRPC takes no more than 64 KB of it before its turn.
    """
    try:
        async with asyncio.timeout(timeout_s), turn:
            data = await context.read()
    except TimeoutError:
        raise WireError("the message did not arrive in time", 408) from None
    return data if isinstance(data, bytes) else None


def headers_of(context: Context) -> dict[bytes, bytes]:
    """Return a call's metadata as HTTP's headers are given."""
    pairs = context.invocation_metadata() or ()
    return {_bytes(key).lower(): _bytes(value) for key, value in pairs}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
