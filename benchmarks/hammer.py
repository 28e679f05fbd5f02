"""Sends requests open loop and checks that each gets exactly one answer, and its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import Server
from sponge_env.serve.load.client import HEADER_LENGTH, HttpClient, infer_head, infer_path

GRACE_S = 10.0
"""How long after its deadline an answer is waited for."""
LINGER_S = 1.0
"""How long the end waits for answers that come twice."""


@dataclass
class Tally:
    """How requests ended."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    on_time: int = 0
    on_time_while_sending: int = 0
    """Those of them that came while requests were sent: later ones belong to no span of time."""
    unanswered: int = 0
    wrong: int = 0
    """Answers without a request, or to another request."""
    seconds: float = 0.0
    """Time in which requests were sent."""

    @property
    def goodput_rps(self) -> float:
        """Answers in time, per second."""
        return self.on_time_while_sending / self.seconds

    @property
    def errors(self) -> int:
        """Answers that no request of this kind may get."""
        return sum(n for status, n in self.statuses.items() if status not in (200, 503, 504))


class Hammer:
    """Sends to one server, over as many connections as there are requests at a time."""

    def __init__(self, server: Server, row: NDArray[Any], slo_s: float) -> None:
        """Send this row again and again, with this SLO."""
        (tensor,) = server.metadata["inputs"]
        self._input, self._path = tensor["name"], infer_path(server.model)
        self._row, self._slo_s, self.tally = row, slo_s, Tally()
        self._client = HttpClient(f"http://127.0.0.1:{server.port}")
        self._until_s = 0.0

    async def run(self, rate_rps: float, seconds: float) -> Tally:
        """Send a Poisson process; return when every request is answered or given up."""
        rng, loop, tally = np.random.default_rng(0), asyncio.get_running_loop(), self.tally
        begin_s, due_s = loop.time(), 0.0
        self._until_s = begin_s + seconds
        async with asyncio.TaskGroup() as group:
            while (due_s := due_s + rng.exponential(1 / rate_rps)) < seconds:
                await asyncio.sleep(max(0.0, begin_s + due_s - loop.time()))
                group.create_task(self.send())
        tally.seconds += seconds
        await asyncio.sleep(LINGER_S)
        tally.wrong += sum(connection.unrequested for connection in self._client.connections)
        self._client.close()
        return tally

    async def send(self, leave_after_s: float | None = None) -> None:
        """Send a request and count how it ends; or go away before the answer and count nothing."""
        tally, time_s = self.tally, asyncio.get_running_loop().time
        counted = leave_after_s is None
        tally.sent += counted
        name, begin_s = f"{tally.sent:018d}", time_s()
        head = infer_head(self._input, self._row, {"slo_ms": self._slo_s * 1000}, name)
        body, headers = [head, self._row.tobytes()], {HEADER_LENGTH: len(head)}
        try:
            async with asyncio.timeout(self._slo_s + GRACE_S if counted else leave_after_s):
                answer = await self._client.request("POST", self._path, body, headers)
        except (OSError, TimeoutError):
            tally.unanswered += counted
            return
        if not counted:
            return
        tally.statuses[answer.status] += 1
        if answer.status == 200:
            on_time = (now_s := time_s()) - begin_s <= self._slo_s
            tally.on_time += on_time
            tally.on_time_while_sending += on_time and now_s <= self._until_s
            tally.wrong += answer.json.get("id") != name
