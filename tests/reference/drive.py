"""The one loop that connects arrivals, serving core and worker."""

from __future__ import annotations

from collections.abc import Sequence

from reference.requests import Request
from reference.serving import ServingCore

from sponge_env.interfaces import Worker


class ArrivalCursor:
    """Walks through requests in the order in which they arrive."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Start at the first of ``requests``, which ascend by ``arrival_s``."""
        self._requests = requests
        self._next = 0

    @property
    def next_s(self) -> float:
        """Arrival time of the next request; infinite after the last."""
        if self._next < len(self._requests):
            return self._requests[self._next].arrival_s
        return float("inf")

    def due(self, now_s: float) -> Sequence[Request]:
        """Return the requests that have arrived by ``now_s`` and were not returned yet."""
        first = self._next
        while self.next_s <= now_s:
            self._next += 1
        return self._requests[first : self._next]


def drive(
    core: ServingCore, worker: Worker, arrivals: ArrivalCursor, batch_max: int, until_s: float
) -> None:
    """Serve until ``until_s`` on the worker's clock.

    A batch starts as soon as a replica is idle and a request waits. What falls together
    happens in this order: batches end, requests arrive, batches start.

    Args:
        core: Queue and ledger.
        worker: Runs the batches and owns the clock.
        arrivals: Requests still to come.
        batch_max: Largest batch.
        until_s: When to stop; nothing is started at that moment any more.
    """
    while True:
        now_s = worker.now()
        for request in arrivals.due(min(now_s, until_s)):
            core.offer(request)
        core.collect()
        if now_s >= until_s:
            core.drop_expired(now_s)
            return
        while worker.idle():
            batch = core.form_batch(now_s, batch_max)
            if batch is None:
                break
            worker.start(batch)
        for completion in worker.wait(min(until_s, arrivals.next_s)):
            core.settle(completion)
