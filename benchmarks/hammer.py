"""Sends requests open loop and holds the server to it: to each, one answer, and its own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lean import HEAD_END, fields
from benchmarks.servers import Server

GRACE_S = 10.0
"""How long after its deadline an answer is waited for."""
TWICE_S = 1.0
"""How long what comes twice is waited for, after all."""
ID = "ID-OF-THIS-REQUEST"


@dataclass
class Tally:
    """What became of requests."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    on_time: int = 0
    on_time_within: int = 0
    """Those of them that came while requests were sent, for what comes after has no time of its
    own to be divided by."""
    unanswered: int = 0
    twice: int = 0
    """Bytes that came where nothing was asked, or an answer to another request."""
    seconds: float = 0.0
    """For which requests were sent."""

    @property
    def goodput_rps(self) -> float:
        """Answers in time."""
        return self.on_time_within / self.seconds

    @property
    def errors(self) -> int:
        """Answers that no request of this kind may get."""
        return sum(n for status, n in self.statuses.items() if status not in (200, 503, 504))


class Lane(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._came = tally, bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, parts: Sequence[bytes]) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; return its status and body to come."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.writelines(parts)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Read an answer."""
        self._came += data
        if self._answer is None:
            self._tally.twice += 1
            self.transport.abort()
            return
        end = self._came.find(HEAD_END)
        if end < 0:
            return
        status, headers = fields(bytes(self._came[:end]))
        start = end + len(HEAD_END)
        whole = start + int(headers.get("content-length", 0))
        if len(self._came) < whole:
            return
        body = bytes(self._came[start:whole])
        del self._came[:whole]
        self._tally.twice += bool(self._came)
        length = headers.get("inference-header-content-length")
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_result((status, body[: int(length)] if length else body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))


class Hammer:
    """Sends to one server, over as many connections as there are requests at a time."""

    def __init__(self, server: Server, row: NDArray[Any], slo_s: float) -> None:
        """Send this row again and again, to be answered within so long."""
        (tensor,) = server.metadata["inputs"]
        described = {
            "name": tensor["name"], "datatype": tensor["datatype"], "shape": [1, *row.shape],
            "parameters": {"binary_data_size": row.nbytes},
        }  # fmt: skip
        told = {"binary_data_output": True, "slo_ms": slo_s * 1000}
        self._json = json.dumps({"id": ID, "inputs": [described], "parameters": told})
        self._server, self._row, self._slo_s = server, row.tobytes(), slo_s
        self.tally = Tally()
        self._until_s = 0.0
        self._idle: list[Lane] = []
        self._lanes: list[Lane] = []

    async def run(self, rate_rps: float, seconds: float, seed: int = 0) -> Tally:
        """Send a Poisson process; return when every request is answered or given up."""
        rng, loop = np.random.default_rng(seed), asyncio.get_running_loop()
        begin_s, due_s = loop.time(), 0.0
        self._until_s = begin_s + seconds
        async with asyncio.TaskGroup() as group:
            while (due_s := due_s + rng.exponential(1 / rate_rps)) < seconds:
                await asyncio.sleep(max(0.0, begin_s + due_s - loop.time()))
                group.create_task(self.one())
        self.tally.seconds += seconds
        await asyncio.sleep(TWICE_S)
        for lane in self._lanes:
            lane.transport.abort()
        return self.tally

    async def one(self) -> None:
        """Send a request and count how it ends."""
        tally = self.tally
        tally.sent += 1
        time_s = asyncio.get_running_loop().time
        name, begin_s = f"{tally.sent:018d}", time_s()
        try:
            lane = await self._lane()
            async with asyncio.timeout(self._slo_s + GRACE_S):
                status, body = await lane.ask(self._parts(name))
        except (OSError, TimeoutError):
            tally.unanswered += 1
            return
        if not lane.closed:
            self._idle.append(lane)
        tally.statuses[status] += 1
        if status == 200:
            on_time = (now_s := time_s()) - begin_s <= self._slo_s
            tally.on_time += on_time
            tally.on_time_within += on_time and now_s <= self._until_s
            tally.twice += json.loads(body).get("id") != name

    def _parts(self, name: str) -> list[bytes]:
        head = self._json.replace(ID, name).encode()
        lines = [
            f"POST /v2/models/{self._server.model}/infer HTTP/1.1",
            "Host: localhost",
            f"Content-Length: {len(head) + len(self._row)}",
            f"Inference-Header-Content-Length: {len(head)}",
        ]
        return ["\r\n".join([*lines, "", ""]).encode() + head, self._row]

    async def _lane(self) -> Lane:
        while self._idle:
            if not (lane := self._idle.pop()).closed:
                return lane
        loop = asyncio.get_running_loop()
        address = "127.0.0.1", self._server.port
        _, lane = await loop.create_connection(lambda: Lane(self.tally), *address)
        self._lanes.append(lane)
        return lane


async def leave(server: Server, parts: Sequence[bytes], after_s: float) -> None:
    """Send a request, and go away before it is answered."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.writelines(parts)
        await asyncio.sleep(after_s)
        writer.transport.abort()
