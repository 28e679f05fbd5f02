"""Earliest-deadline-first queue."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from reference.requests import Request

from sponge_env.interfaces import FloatArray


class EdfQueue:
    """Waiting requests in the order of their deadlines; equal deadlines by id."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, request: Request) -> None:
        """Add a request."""
        heapq.heappush(self._heap, (request.deadline_s, request.id, request))

    def pop(self, count: int) -> tuple[Request, ...]:
        """Remove and return up to ``count`` requests with the earliest deadlines."""
        return tuple(heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap))))

    def pop_due_before(self, time_s: float) -> Iterable[Request]:
        """Remove and yield, earliest first, the requests with a deadline before ``time_s``."""
        while self._heap and self._heap[0][0] < time_s:
            yield heapq.heappop(self._heap)[2]

    def deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines, ascending."""
        return np.sort(np.array([entry[0] for entry in self._heap], dtype=np.float64))
