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
    unanswered: int = 0
    wrong: int = 0
    """Answers without a request, or to another request."""


class Hammer:
    """Sends to one server, over as many connections as there are requests at a time."""

    def __init__(self, server: Server, row: NDArray[Any], slo_s: float) -> None:
        """Send this row again and again, with this SLO."""
        (tensor,) = server.metadata["inputs"]
        self._input, self._path = tensor["name"], infer_path(server.model)
        self._row, self._slo_s, self.tally = row, slo_s, Tally()
        self._client = HttpClient(f"http://127.0.0.1:{server.port}")

    async def run(self, rate_rps: float, seconds: float) -> Tally:
        """Send a Poisson process; return when every request is answered or given up."""
        rng, loop, tally = np.random.default_rng(0), asyncio.get_running_loop(), self.tally
        begin_s, due_s = loop.time(), 0.0
        async with asyncio.TaskGroup() as group:
            while (due_s := due_s + rng.exponential(1 / rate_rps)) < seconds:
                await asyncio.sleep(max(0.0, begin_s + due_s - loop.time()))
                group.create_task(self._send())
        await asyncio.sleep(LINGER_S)
        tally.wrong += sum(connection.unrequested for connection in self._client.connections)
        self._client.close()
        return tally

    async def _send(self) -> None:
        """Send a request and count how it ends."""
        tally = self.tally
        tally.sent += 1
        name = f"{tally.sent:018d}"
        head = infer_head({self._input: self._row}, {"slo_ms": self._slo_s * 1000}, name)
        body, headers = [head, self._row.tobytes()], {HEADER_LENGTH: len(head)}
        try:
            async with asyncio.timeout(self._slo_s + GRACE_S):
                answer = await self._client.request("POST", self._path, body, headers)
        except (OSError, TimeoutError):
            tally.unanswered += 1
            return
        tally.statuses[answer.status] += 1
        if answer.status == 200:
            tally.wrong += answer.json.get("id") != name
