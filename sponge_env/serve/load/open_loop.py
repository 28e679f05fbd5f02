"""Sends a workload to a server: each request when it is due, whatever happens to the others.

A closed loop, which waits for an answer before it sends on, would measure a slow server as one
with little load. The transfer is emulated here: a request is put on the wire when the workload
says that it arrives, and states itself when it was sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from numpy.typing import NDArray

from sponge_env.serve.load.client import HEADER_LENGTH, HttpClient, infer_head, infer_path, reason
from sponge_env.serve.load.result import (
    ANSWERED,
    EXPIRED,
    FAILED,
    IN_TRANSFER,
    REFUSED,
    SILENT,
    LoadResult,
)

GRACE_S = 3.0
"""How long after its deadline an answer is still waited for."""
LEAD_S = 0.3
"""Time until the first request is sent."""

BY_STATUS: dict[int, int] = {
    HTTPStatus.OK: ANSWERED,
    HTTPStatus.TOO_MANY_REQUESTS: REFUSED,
    HTTPStatus.SERVICE_UNAVAILABLE: REFUSED,
    HTTPStatus.GATEWAY_TIMEOUT: EXPIRED,
}


@dataclass
class OpenLoop:
    """Sends a workload, and notes in its result how each request ended."""

    client: HttpClient
    tensors: Sequence[NDArray[Any]]
    """Sent in turn."""
    result: LoadResult
    deadlines: str = "headers"
    """How requests state them; see ``DEADLINES`` of the command."""
    _begin_s: float = math.inf
    """On the monotonic clock, for that of the event loop has milliseconds only."""
    _begin_unix_s: float = 0.0

    async def run(self) -> None:
        """Send all; return when all have ended."""
        self._begin_s, self._begin_unix_s = time.monotonic() + LEAD_S, time.time() + LEAD_S
        bodies = [tensor.tobytes() for tensor in self.tensors]
        scenario, result = self.result.scenario, self.result
        longest_s = max(scenario.slo_s, *(one.slo_s for one in scenario.classes), 0.0)
        async with asyncio.TaskGroup() as group:
            for at, arrival_s in enumerate(result.workload.arrival_s.tolist()):
                if arrival_s > scenario.duration_s + longest_s:
                    result.ended[at:] = IN_TRANSFER
                    return
                await asyncio.sleep(0)  # also where it is late, so that answers are read
                while (wait_s := arrival_s - self.now_s) > 0:  # timers may fire a little early
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(at, bodies[at % len(bodies)]))

    @property
    def now_s(self) -> float:
        """Time since the beginning of the workload."""
        return time.monotonic() - self._begin_s

    async def _send(self, at: int, body: bytes) -> None:
        result, target = self.result, self.result.target
        parameters, headers = self._deadline(at)
        head = infer_head(target.input_name, self.tensors[at % len(self.tensors)], parameters)
        headers[HEADER_LENGTH] = str(len(head))
        result.put_s[at] = now_s = self.now_s
        wait_s = max(0.0, float(result.workload.deadline_s[at]) - now_s) + GRACE_S
        ended = SILENT
        try:
            async with asyncio.timeout(wait_s):
                path = infer_path(target.model)
                answer = await self.client.request("POST", path, [head, body], headers)
            ended = BY_STATUS.get(answer.status, FAILED)
        except TimeoutError:
            pass
        except OSError as error:
            ended, result.error = FAILED, reason(error)
        else:
            if ended == FAILED:
                text = answer.body[:200].decode(errors="replace")
                result.error = f"status {answer.status}: {text}"
        result.finished_s[at], result.ended[at] = self.now_s, ended
        if ended == ANSWERED:
            result.read_parameters(at, answer)

    def _deadline(self, at: int) -> tuple[dict[str, Any], dict[str, str]]:
        workload = self.result.workload
        sent_s, deadline_s = float(workload.sent_s[at]), float(workload.deadline_s[at])
        if self.deadlines == "timeout":
            return {"timeout": max(1, int((deadline_s - self.now_s) * 1e6))}, {}
        return {}, {
            "x-slo-ms": f"{(deadline_s - sent_s) * 1000:.3f}",
            "x-sent-at-ms": f"{(self._begin_unix_s + sent_s) * 1000:.3f}",
        }
