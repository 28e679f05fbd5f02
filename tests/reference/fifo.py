"""First-in-first-out queue: what the order by deadlines is compared with."""

from __future__ import annotations

from bisect import insort

import numpy as np
from reference.requests import Request

from sponge_env.interfaces import FloatArray


class FifoQueue:
    """Waiting requests in the order of their arrival; equal arrivals by id.

    A request that comes back after a crash takes its old place.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def push(self, request: Request) -> None:
        """Add a request."""
        insort(self._requests, request, key=lambda r: (r.arrival_s, r.id))

    def pop(self, count: int) -> tuple[Request, ...]:
        """Remove and return up to ``count`` requests that arrived first."""
        popped = tuple(self._requests[:count])
        del self._requests[:count]
        return popped

    def pop_due_before(self, time_s: float) -> list[Request]:
        """Remove and return, by arrival, the requests with a deadline before ``time_s``."""
        due = [request for request in self._requests if request.deadline_s < time_s]
        if due:
            self._requests = [r for r in self._requests if r.deadline_s >= time_s]
        return due

    def deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines, ascending."""
        return np.sort(np.array([r.deadline_s for r in self._requests], dtype=np.float64))
