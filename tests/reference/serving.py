"""The serving core: queue, batches and ledger. It knows no clock and does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from reference.edf import EdfQueue
from reference.ledger import Counts, Entry, Ledger
from reference.requests import Request

from sponge_env.interfaces import Batch, Completion, FloatArray


class RequestQueue(Protocol):
    """Waiting requests in the order in which they are served."""

    def __len__(self) -> int: ...

    def push(self, request: Request) -> None:
        """Add a request."""

    def pop(self, count: int) -> tuple[Request, ...]:
        """Remove and return up to ``count`` requests from the front."""

    def pop_due_before(self, time_s: float) -> Iterable[Request]:
        """Remove and return the requests with a deadline before ``time_s``."""

    def deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines, ascending."""


class ServingCore:
    """Turns requests into batches, in the order of its queue, and books how they end."""

    def __init__(
        self,
        drop_grace_s: float,
        hopeless_below_s: float = 0.0,
        queue: RequestQueue | None = None,
    ) -> None:
        """Start empty.

        Args:
            drop_grace_s: A waiting request is dropped once it is later than this:
                infinite to keep all, 0 to drop what has expired.
            hopeless_below_s: Budget on arrival below which a request counts as hopeless.
            queue: An empty queue; earliest deadline first if left out.
        """
        self.ledger = Ledger(hopeless_below_s)
        self._queue: RequestQueue = EdfQueue() if queue is None else queue
        self._drop_grace_s = drop_grace_s
        self.running: dict[int, tuple[Batch, float]] = {}
        """Batches in flight by id, each with the time it was formed."""
        self._batches = 0
        self._arrived: list[Request] = []
        self._ended: list[Entry] = []
        self._completions: list[Completion] = []
        self._inbox: deque[Request] = deque()

    @property
    def counts(self) -> Counts:
        """Requests by outcome, now."""
        return self.ledger.counts

    @property
    def pending(self) -> bool:
        """Whether any request waits or runs."""
        return bool(len(self._queue) or self.running)

    def queued_deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines of the waiting requests, ascending."""
        return self._queue.deadlines_s()

    def post(self, request: Request) -> None:
        """Leave a request for the next :meth:`collect`; safe from any thread."""
        self._inbox.append(request)

    def collect(self) -> None:
        """Take in the requests that other threads have posted."""
        while self._inbox:
            self.offer(self._inbox.popleft())

    def offer(self, request: Request) -> None:
        """Take in a request that has arrived."""
        self.ledger.offer(request)
        self._queue.push(request)
        self._arrived.append(request)

    def drop_expired(self, now_s: float) -> None:
        """Drop the waiting requests that the policy gives up at ``now_s``."""
        for request in self._queue.pop_due_before(now_s - self._drop_grace_s):
            self._ended.append(self.ledger.drop(request, now_s))

    def form_batch(self, now_s: float, size: int) -> Batch | None:
        """Take up to ``size`` requests from the front of the queue as a batch.

        Returns:
            The batch, now booked as running, or None when nothing waits.
        """
        self.drop_expired(now_s)
        requests = self._queue.pop(size)
        if not requests:
            return None
        self.ledger.run(requests)
        self._batches += 1
        batch = Batch(self._batches, requests)
        self.running[batch.id] = batch, now_s
        return batch

    def settle(self, completion: Completion) -> None:
        """Book the end of a batch.

        When its replica died, requests with budget left wait again; the others failed.
        """
        del self.running[completion.batch.id]
        self._completions.append(completion)
        if completion.ok:
            self._ended.extend(self.ledger.answer(completion))
            return
        for request in completion.batch.requests:
            if request.deadline_s > completion.finished_s:
                self.ledger.retry(request)
                self._queue.push(request)
            else:
                self._ended.append(self.ledger.fail(request, completion))

    def abandon(self, now_s: float) -> None:
        """Drop all that still waits: the episode is over."""
        self.collect()
        for request in self._queue.pop(len(self._queue)):
            self._ended.append(self.ledger.drop(request, now_s))

    def take_interval(self) -> tuple[list[Request], list[Entry], list[Completion]]:
        """Return and forget what arrived, what ended, and which batches ended."""
        interval = self._arrived, self._ended, self._completions
        self._arrived, self._ended, self._completions = [], [], []
        return interval
