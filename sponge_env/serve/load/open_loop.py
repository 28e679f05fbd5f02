"""Sends a workload to a server: each request when it is due, whatever happens to the others.

A closed loop, which waits for an answer before it sends on, would measure a slow server as one
with little load. The transfer is emulated here: a request is put on the wire when the workload
says that it arrives, and states itself when it was sent.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.serve.load.client import (
    HEADER_LENGTH,
    Answer,
    HttpClient,
    infer_head,
    infer_path,
    reason,
)
from sponge_env.serve.load.target import Target
from sponge_env.simulation.workload import Workload

Deadlines = Literal["headers", "timeout"]
"""How a request states its deadline: ``x-slo-ms`` and ``x-sent-at-ms``, or Triton's parameter
``timeout``, in microseconds from its arrival on."""

GRACE_S = 3.0
"""How long after its deadline an answer is still waited for."""
LEAD_S = 0.3
"""Time until the first request is sent."""

PENDING, ANSWERED, REFUSED, EXPIRED, FAILED, SILENT, IN_TRANSFER = range(7)
"""How a request ended: not yet; with outputs; refused at once; dropped while it waited; with
another error; not within :data:`GRACE_S`; still in transfer when the load ended."""
KINDS = ("pending", "answered", "refused", "expired", "failed", "silent", "on_the_way")

BY_STATUS: dict[int, int] = {
    HTTPStatus.OK: ANSWERED,
    HTTPStatus.TOO_MANY_REQUESTS: REFUSED,
    HTTPStatus.SERVICE_UNAVAILABLE: REFUSED,
    HTTPStatus.GATEWAY_TIMEOUT: EXPIRED,
}


@dataclass(eq=False)
class Record:
    """How n requests ended, in the order of the workload; times since its start."""

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
    """(n,) what the answers tell about themselves; NaN where they tell nothing."""
    variant: list[str] = field(init=False)
    error: str = ""
    """The last error that was neither a refusal nor an expiry."""

    def __post_init__(self) -> None:
        count = self.workload.id.size
        self.ended = np.full(count, PENDING, np.int8)
        self.variant = [""] * count
        for name in ("put_s", "finished_s", "queue_s", "service_s", "batch"):
            setattr(self, name, np.full(count, math.nan))

    @property
    def on_time(self) -> NDArray[np.bool_]:
        """(n,) whether the answer was here by the deadline."""
        in_time: NDArray[np.bool_] = self.ended == ANSWERED
        return np.logical_and(in_time, self.finished_s <= self.workload.deadline_s)

    @property
    def latency_s(self) -> FloatArray:
        """(n,) time from sending to the end."""
        return self.finished_s - self.workload.sent_s

    @property
    def status(self) -> str:
        """Progress so far, in a few words."""
        ended = self.ended != PENDING
        running, violated = np.sum(~ended & ~np.isnan(self.put_s)), np.sum(ended & ~self.on_time)
        return f"{np.sum(ended)} ended, {running} running, {violated} violations"

    def lateness_s(self, quantile: float) -> float:
        """Return a quantile of how late this client itself was; 0 if it has sent nothing."""
        late_s = self.put_s - self.workload.arrival_s
        sent_s = late_s[~np.isnan(late_s)]
        return float(np.quantile(sent_s, quantile)) if sent_s.size else 0.0

    def read_parameters(self, at: int, answer: Answer) -> None:
        """Keep what an answer tells about itself, where it tells anything."""
        values = answer.json
        parameters = values.get("parameters") if isinstance(values, dict) else None
        if not isinstance(parameters, dict):
            return
        fields = (("queue_s", "queue_ms", 1e-3), ("service_s", "service_ms", 1e-3),
                  ("batch", "batch", 1.0))  # fmt: skip
        for name, key, unit in fields:
            with suppress(KeyError, TypeError, ValueError):
                getattr(self, name)[at] = float(parameters[key]) * unit
        self.variant[at] = str(parameters.get("variant", ""))


@dataclass
class OpenLoop:
    """Sends one workload to one target."""

    client: HttpClient
    target: Target
    tensors: Sequence[NDArray[Any]]
    """Sent in turn."""
    record: Record
    ends_s: float
    """Requests that arrive later are not sent."""
    deadlines: Deadlines = "headers"
    _begin_s: float = 0.0
    """On the monotonic clock, for that of the event loop has milliseconds only."""
    _begin_unix_s: float = 0.0

    async def run(self, progress: Callable[[float], None]) -> None:
        """Send all; return when all have ended. ``progress`` gets the time each second."""
        self._begin_s, self._begin_unix_s = time.monotonic() + LEAD_S, time.time() + LEAD_S
        bodies = [tensor.tobytes() for tensor in self.tensors]
        reporting = asyncio.create_task(self._report(progress))
        try:
            async with asyncio.TaskGroup() as group:
                await self._send_all(group, bodies)
        finally:
            reporting.cancel()

    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    async def _report(self, progress: Callable[[float], None]) -> None:
        while True:
            progress(max(0.0, self._now_s()))
            await asyncio.sleep(1.0)

    async def _send_all(self, group: asyncio.TaskGroup, bodies: Sequence[bytes]) -> None:
        for at, arrival_s in enumerate(self.record.workload.arrival_s.tolist()):
            if arrival_s > self.ends_s:
                self.record.ended[at:] = IN_TRANSFER
                return
            await asyncio.sleep(0)  # also where it is late, so that answers are read
            while (wait_s := arrival_s - self._now_s()) > 0:  # timers may fire a little early
                await asyncio.sleep(wait_s)
            group.create_task(self._send(at, bodies[at % len(bodies)]))

    async def _send(self, at: int, body: bytes) -> None:
        record = self.record
        parameters, headers = self._deadline(at)
        head = infer_head(self.target.input_name, self.tensors[at % len(self.tensors)], parameters)
        headers[HEADER_LENGTH] = str(len(head))
        record.put_s[at] = now_s = self._now_s()
        wait_s = max(0.0, float(record.workload.deadline_s[at]) - now_s) + GRACE_S
        ended = SILENT
        try:
            async with asyncio.timeout(wait_s):
                path = infer_path(self.target.model)
                answer = await self.client.request("POST", path, [head, body], headers)
            ended = BY_STATUS.get(answer.status, FAILED)
        except TimeoutError:
            pass
        except OSError as error:
            ended, record.error = FAILED, reason(error)
        else:
            if ended == FAILED:
                text = answer.body[:200].decode(errors="replace")
                record.error = f"status {answer.status}: {text}"
        record.finished_s[at], record.ended[at] = self._now_s(), ended
        if ended == ANSWERED:
            record.read_parameters(at, answer)

    def _deadline(self, at: int) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the parameters and the headers that state a request's deadline."""
        workload = self.record.workload
        sent_s, deadline_s = float(workload.sent_s[at]), float(workload.deadline_s[at])
        if self.deadlines == "timeout":
            return {"timeout": max(1, int((deadline_s - self._now_s()) * 1e6))}, {}
        return {}, {
            "x-slo-ms": f"{(deadline_s - sent_s) * 1000:.3f}",
            "x-sent-at-ms": f"{(self._begin_unix_s + sent_s) * 1000:.3f}",
        }
