"""The rows of one request: handed to the engine together, their replies joined into one answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.serve.interface import Call, Engine, Reply, Served, Status
from sponge_env.serve.wire.outcomes import WireError, raise_unanswered
from sponge_env.serve.wire.protocol import OUTPUT, TASKS

UNKNOWN = Reply(Status.STOPPED)
"""Stands in for a reply that is not there yet."""


Record = Callable[[Sequence[Call], Sequence[Reply]], None]
"""Takes the calls of a request once all of them have ended."""


async def replies(engine: Engine, calls: Sequence[Call], record: Record) -> list[Reply]:
    """Have the engine take the calls and wait for all replies, in their order.

    Once one of them is not answered, the others are taken back, for nobody can use them; so are
    all when whoever waits is cancelled. They are recorded either way. More than the engine can
    ever hold are a WireError, and never handed over.
    """
    if len(calls) > engine.served.queue_max:
        most = engine.served.queue_max
        raise WireError(f"a request has at most {most} rows here, not {len(calls)}")
    waiting = _Waiting(engine, calls, record)
    try:
        waiting.submit()
        return await waiting.all
    except BaseException:
        waiting.take_back()
        raise


class _Waiting:
    """Collects replies in the engine's thread and wakes the loop once, with the last of them."""

    def __init__(self, engine: Engine, calls: Sequence[Call], record: Record) -> None:
        self._engine, self._calls, self._record = engine, calls, record
        self._loop = asyncio.get_running_loop()
        self._replies: list[Reply] = [UNKNOWN] * len(calls)
        self._tickets: list[int] = []
        self._left, self._lock = len(calls), threading.Lock()
        self._in_vain = False
        self.all: asyncio.Future[list[Reply]] = self._loop.create_future()

    def submit(self) -> None:
        for row, call in enumerate(self._calls):
            if self._in_vain:  # a row before was refused at once
                self._done(row, Reply(Status.CANCELLED))
            else:
                self._tickets.append(self._engine.submit(call, partial(self._done, row)))

    def take_back(self) -> None:
        for ticket in self._tickets:
            self._engine.cancel(ticket)

    def _done(self, row: int, reply: Reply) -> None:
        with self._lock:
            self._replies[row] = reply
            self._left -= 1
            last, first = self._left == 0, not self._in_vain
            self._in_vain |= reply.status is not Status.ANSWERED
        if last:
            self._wake(self._finish)
        elif first and self._in_vain:
            self._wake(self.take_back)

    def _wake(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(what)

    def _finish(self) -> None:
        if not self.all.done():
            self.all.set_result(self._replies)
        # whoever waits goes on in the next turn of the loop, at whose end the answer goes out
        self._loop.call_soon(self._loop.call_soon, self._record, self._calls, self._replies)


def joined_outputs(served: Served, ended: Sequence[Reply]) -> dict[str, NDArray[Any]]:
    """Return the answer's tensors by name, with the rows' answers along the first axis.

    Raises an ``UnansweredError`` unless there is an answer to each row. A pipeline answers a row
    with as many rows as it led to, and ``tasks`` tells how many belong to each.
    """
    raise_unanswered(ended)
    parts = [np.asarray(reply.output) for reply in ended]
    if len(served.stages) == 1:
        return {OUTPUT: parts[0][np.newaxis] if len(parts) == 1 else np.stack(parts)}
    counts = np.array([len(part) for part in parts], np.int64)
    return {OUTPUT: np.concatenate(parts), TASKS: counts}


def joined_parameters(ended: Sequence[Reply]) -> Mapping[str, Any]:
    """Return what an answer says of how it came about: of its slowest row, where they differ."""
    slowest = max(ended, key=lambda reply: reply.finished_s)
    return {
        "deadline_met": all(reply.in_time for reply in ended),
        "queue_ms": round(max(reply.queue_s for reply in ended) * 1000, 3),
        "service_ms": round(max(reply.service_s for reply in ended) * 1000, 3),
        "batch": slowest.batch,
        "cores": slowest.cores,
        "variant": slowest.variant,
    }
