"""Sends a workload to a server: each request when it is due, whatever became of the others.

A closed loop, which waits for an answer before it sends on, would measure a slow server as one
with little load. The transfer is emulated here: a request is put on the wire when the workload
says that it arrives, and says itself when it was sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.serve.load.client import HEADER_LENGTH, Target, reason, sendable, told
from sponge_env.simulation.workload import Workload

Deadlines = Literal["headers", "timeout"]
"""How a request says its deadline: ``x-slo-ms`` and ``x-sent-at-ms``, or Triton's parameter
``timeout``, in microseconds from its arrival on."""

GRACE_S = 3.0
"""How long after its deadline an answer is still waited for."""
SOON_S = 0.3
"""Until the first request is sent."""

PENDING, ANSWERED, REFUSED, EXPIRED, FAILED, SILENT, ON_THE_WAY = range(7)
"""How a request ended: not yet; with outputs; at once, for want of time or room; dropped while it
waited; with another error; not within :data:`GRACE_S`; still in transfer when all was over."""
KINDS = ("pending", "answered", "refused", "expired", "failed", "silent", "on_the_way")

BY_STATUS: dict[int, int] = {
    HTTPStatus.OK: ANSWERED,
    HTTPStatus.TOO_MANY_REQUESTS: REFUSED,
    HTTPStatus.SERVICE_UNAVAILABLE: REFUSED,
    HTTPStatus.GATEWAY_TIMEOUT: EXPIRED,
}


@dataclass(eq=False)
class Record:
    """What became of n requests, in the order of the workload; times since its start."""

    workload: Workload
    ended: NDArray[np.int8] = field(init=False)
    """(n,) of :data:`KINDS`."""
    put_s: FloatArray = field(init=False)
    """(n,) when each was put on the wire; NaN before."""
    finished_s: FloatArray = field(init=False)
    """(n,) when each was answered or given up; NaN before."""
    queue_s: FloatArray = field(init=False)
    service_s: FloatArray = field(init=False)
    batch: FloatArray = field(init=False)
    """(n,) what the answers say of themselves; NaN where they say nothing."""
    met: FloatArray = field(init=False)
    """(n,) 1 where the answer says that it was in time when it left, 0 where not."""
    variant: list[str] = field(init=False)
    error: str = ""
    """The last error that was neither a refusal nor an expiry."""

    def __post_init__(self) -> None:
        count = self.workload.id.size
        self.ended = np.full(count, PENDING, np.int8)
        self.variant = [""] * count
        for name in ("put_s", "finished_s", "queue_s", "service_s", "batch", "met"):
            setattr(self, name, np.full(count, math.nan))

    @property
    def under_way(self) -> int:
        """Requests that were sent and have not ended."""
        return int(np.sum((self.ended == PENDING) & ~np.isnan(self.put_s)))

    @property
    def lateness_s(self) -> FloatArray:
        """(sent,) how late this client itself was with what it sent."""
        late_s = self.put_s - self.workload.arrival_s
        return late_s[~np.isnan(late_s)]

    def answered(self, at: int, parameters: dict[str, Any]) -> None:
        """Keep what an answer says of itself."""
        for name, unit in (("queue", 1e-3), ("service", 1e-3)):
            with suppress(KeyError, TypeError, ValueError):
                getattr(self, f"{name}_s")[at] = float(parameters[f"{name}_ms"]) * unit
        with suppress(KeyError, TypeError, ValueError):
            self.batch[at] = float(parameters["batch"])
        if isinstance(met := parameters.get("deadline_met"), bool):
            self.met[at] = met
        self.variant[at] = str(parameters.get("variant", ""))


@dataclass
class OpenLoop:
    """Sends one workload to one target."""

    session: aiohttp.ClientSession
    target: Target
    tensors: Sequence[NDArray[Any]]
    """Shown in turn."""
    record: Record
    ends_s: float
    """What has not arrived by then is not sent any more."""
    deadlines: Deadlines = "headers"
    _begun_s: float = 0.0
    """On the monotonic clock, for that of the event loop has milliseconds only."""
    _epoch_s: float = 0.0
    """The same since the epoch."""

    async def run(self, progress: Callable[[float], None]) -> None:
        """Send all; return when all have ended. ``progress`` is told the time now and then."""
        self._begin()
        bodies = list(self._bodies())
        watch = asyncio.create_task(self._tell(progress))
        try:
            async with asyncio.TaskGroup() as group:
                await self._send_all(group, bodies)
        finally:
            watch.cancel()

    def _begin(self) -> None:
        self._begun_s, self._epoch_s = time.monotonic() + SOON_S, time.time() + SOON_S

    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s

    async def _tell(self, progress: Callable[[float], None]) -> None:
        while True:
            progress(max(0.0, self._now_s()))
            await asyncio.sleep(1.0)

    def _bodies(self) -> Iterator[tuple[bytes, str]]:
        """Return what is sent for each tensor, and the length of its JSON."""
        for tensor in self.tensors:
            body, length = self.target.body(tensor, {})
            yield body, str(length)

    async def _send_all(
        self, group: asyncio.TaskGroup, bodies: Sequence[tuple[bytes, str]]
    ) -> None:
        workload, ended = self.record.workload, self.record.ended
        for at, arrival_s in enumerate(workload.arrival_s.tolist()):
            if arrival_s > self.ends_s:
                ended[at:] = ON_THE_WAY
                return
            await asyncio.sleep(0)  # also where it is late: those under way have to have a turn
            while (wait_s := arrival_s - self._now_s()) > 0:  # timers may fire a little early
                await asyncio.sleep(wait_s)
            group.create_task(self._send(at, *bodies[at % len(bodies)]))

    async def _send(self, at: int, body: bytes, length: str) -> None:
        """Send a request and keep what becomes of it."""
        record = self.record
        if self.deadlines == "timeout":
            body, length = self._timed(at)
        headers = {HEADER_LENGTH: length, **self._told(at)}
        record.put_s[at] = now_s = self._now_s()
        wait_s = max(0.0, float(record.workload.deadline_s[at]) - now_s) + GRACE_S
        ended, parameters = SILENT, dict[str, Any]()
        try:
            async with asyncio.timeout(wait_s):
                ended, parameters = await self._asked(body, headers)
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError, ValueError) as error:
            ended, record.error = FAILED, reason(error)
        record.finished_s[at], record.ended[at] = self._now_s(), ended
        if ended == ANSWERED:
            record.answered(at, parameters)

    async def _asked(self, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Return how a request ended, and what its answer says of itself."""
        data, url = sendable(body), self.target.infer_url
        async with self.session.post(url, data=data, headers=headers) as reply:
            content = await reply.read()
        ended = BY_STATUS.get(reply.status, FAILED)
        if ended == FAILED:
            said = content[:200].decode(errors="replace")
            self.record.error = f"status {reply.status}: {said}"
        return ended, told(content, reply.headers.get(HEADER_LENGTH)) if ended == ANSWERED else {}

    def _told(self, at: int) -> dict[str, str]:
        """Return the headers that say a request's deadline."""
        if self.deadlines != "headers":
            return {}
        workload = self.record.workload
        sent_s, deadline_s = float(workload.sent_s[at]), float(workload.deadline_s[at])
        return {
            "x-slo-ms": f"{(deadline_s - sent_s) * 1000:.3f}",
            "x-sent-at-ms": f"{(self._epoch_s + sent_s) * 1000:.3f}",
        }

    def _timed(self, at: int) -> tuple[bytes, str]:
        """Return a body that says how much time is left, and the length of its JSON."""
        left_s = float(self.record.workload.deadline_s[at]) - self._now_s()
        tensor = self.tensors[at % len(self.tensors)]
        body, length = self.target.body(tensor, {"timeout": max(1, int(left_s * 1e6))})
        return body, str(length)
