"""Queue, ledger and batches: every offered request is accounted for, always.

Nothing here knows a clock.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reference.workload import Request
from sponge_env.interfaces import Batch, Completion, FloatArray, Outcome, Worker

VIOLATIONS = (Outcome.LATE, Outcome.DROPPED, Outcome.FAILED)


class RequestQueue(Protocol):
    """Waiting requests in the order in which they are served."""

    def __len__(self) -> int: ...

    def push(self, request: Request) -> None: ...

    def pop(self, count: int) -> tuple[Request, ...]:
        """Remove and return up to ``count`` requests from the front."""

    def pop_due_before(self, time_s: float) -> Iterable[Request]:
        """Remove and return the requests with a deadline before ``time_s``."""

    def deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines, ascending."""


class EdfQueue:
    """Earliest deadline first; equal deadlines by id."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.deadline_s, request.id, request))

    def pop(self, count: int) -> tuple[Request, ...]:
        return tuple(heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap))))

    def pop_due_before(self, time_s: float) -> Iterable[Request]:
        while self._heap and self._heap[0][0] < time_s:
            yield heapq.heappop(self._heap)[2]

    def deadlines_s(self) -> FloatArray:
        return np.sort(np.array([entry[0] for entry in self._heap], dtype=np.float64))


class FifoQueue:
    """First in, first out; equal arrivals by id.

    A request that comes back after a crash takes its old place.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def push(self, request: Request) -> None:
        insort(self._requests, request, key=lambda r: (r.arrival_s, r.id))

    def pop(self, count: int) -> tuple[Request, ...]:
        popped = tuple(self._requests[:count])
        del self._requests[:count]
        return popped

    def pop_due_before(self, time_s: float) -> list[Request]:
        due = [request for request in self._requests if request.deadline_s < time_s]
        self._requests = [r for r in self._requests if r.deadline_s >= time_s]
        return due

    def deadlines_s(self) -> FloatArray:
        return np.sort(np.array([r.deadline_s for r in self._requests], dtype=np.float64))


@dataclass(slots=True)
class Entry:
    """What became of one request."""

    request: Request
    hopeless: bool
    outcome: Outcome = Outcome.QUEUED
    started_s: float = np.nan
    """Start of its last batch."""
    finished_s: float = np.nan
    """When its outcome was final."""
    batch_size: int = 0
    replica: int = -1
    attempts: int = 0
    """Batches it was part of; above 1 after a crash."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by outcome. ``offered`` is the sum of the others (hopeless apart)."""

    offered: int
    queued: int
    running: int
    on_time: int
    late: int
    dropped: int
    failed: int
    cancelled: int
    hopeless: int
    avoidable: int
    """Violations of requests that were not hopeless."""

    @property
    def violations(self) -> int:
        return self.late + self.dropped + self.failed

    @property
    def ended(self) -> int:
        return self.on_time + self.violations


class Ledger:
    """Moves requests between outcomes; illegal moves raise, so nothing can get lost."""

    def __init__(self, hopeless_below_s: float = 0.0) -> None:
        self._entries: dict[int, Entry] = {}
        self._counts = dict.fromkeys(Outcome, 0)
        self._hopeless_below_s = hopeless_below_s
        self.one_core_s = 0.0  # time of one request on one core, where that is a limit
        self._hopeless = self._avoidable = 0

    @property
    def counts(self) -> Counts:
        """Requests by outcome, now."""
        return Counts(
            offered=len(self._entries),
            **{outcome.name.lower(): count for outcome, count in self._counts.items()},
            hopeless=self._hopeless,
            avoidable=self._avoidable,
        )

    def offer(self, request: Request) -> None:
        """Take in a new request."""
        if request.id in self._entries:
            raise ValueError(f"request {request.id} was offered twice")
        hopeless = request.budget_on_arrival_s < self._hopeless_below_s
        self._entries[request.id] = Entry(request, hopeless)
        self._counts[Outcome.QUEUED] += 1
        self._hopeless += hopeless

    def run(self, requests: Iterable[Request]) -> None:
        """Mark queued requests as running."""
        for request in requests:
            self._move(request, Outcome.QUEUED, Outcome.RUNNING).attempts += 1

    def retry(self, request: Request) -> None:
        """Put a running request back into the queue after a crash."""
        self._move(request, Outcome.RUNNING, Outcome.QUEUED)

    def end(self, request: Request, outcome: Outcome, completion: Completion) -> Entry:
        """Close a running request as the batch's end says."""
        entry = self._move(request, Outcome.RUNNING, outcome)
        entry.started_s, entry.finished_s = completion.started_s, completion.finished_s
        entry.batch_size, entry.replica = completion.batch.size, completion.replica
        return entry

    def drop(self, request: Request, now_s: float) -> Entry:
        """Close a queued request that is given up."""
        entry = self._move(request, Outcome.QUEUED, Outcome.DROPPED)
        entry.finished_s = now_s
        return entry

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the whole ledger as columns of shape (offered,), in the order of arrival."""
        entries = list(self._entries.values())

        def column(name: str, kind: type) -> NDArray[np.generic]:
            owners = (e.request if hasattr(e.request, name) else e for e in entries)
            return np.array([getattr(owner, name) for owner in owners], dtype=kind)

        times = ("sent_s", "arrival_s", "deadline_s", "payload_bytes", "started_s", "finished_s")
        return {
            "id": column("id", np.int64),
            **{name: column(name, np.float64) for name in times},
            "outcome": np.array([e.outcome.name.lower() for e in entries], dtype=np.str_),
            "hopeless": column("hopeless", np.bool_),
            "needs_cores": np.array(
                [
                    not e.hopeless and e.request.budget_on_arrival_s < self.one_core_s
                    for e in entries
                ],
                dtype=np.bool_,
            ),
            **{name: column(name, np.int64) for name in ("batch_size", "replica", "attempts")},
            "accuracy": np.array(
                [1.0 if e.outcome in (Outcome.ON_TIME, Outcome.LATE) else np.nan for e in entries]
            ),
            "stage": np.array(
                [-1 if e.outcome in (Outcome.QUEUED, Outcome.RUNNING) else 0 for e in entries],
                dtype=np.int64,
            ),
        }

    def _move(self, request: Request, source: Outcome, target: Outcome) -> Entry:
        entry = self._entries[request.id]
        if entry.outcome is not source:
            raise ValueError(
                f"request {request.id} is {entry.outcome.name}, not {source.name}, "
                f"and cannot become {target.name}"
            )
        entry.outcome = target
        self._counts[source] -= 1
        self._counts[target] += 1
        self._avoidable += target in VIOLATIONS and not entry.hopeless
        return entry


class ServingCore:
    """Turns requests into batches, in the order of its queue, and enters how they end."""

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
        self.running: dict[int, tuple[tuple[Request, ...], float]] = {}
        """Requests of the batches in flight by the batch's id, and when it was formed."""
        self._batches = 0
        self._arrived: list[Request] = []
        self._ended: list[Entry] = []
        self._completions: list[Completion] = []

    @property
    def counts(self) -> Counts:
        return self.ledger.counts

    @property
    def pending(self) -> bool:
        """Whether any request waits or runs."""
        return bool(len(self._queue) or self.running)

    def queued_deadlines_s(self) -> FloatArray:
        """Return the (queued,) deadlines of the waiting requests, ascending."""
        return self._queue.deadlines_s()

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
        """Take up to ``size`` requests from the front of the queue; None when nothing waits."""
        self.drop_expired(now_s)
        requests = self._queue.pop(size)
        if not requests:
            return None
        self.ledger.run(requests)
        self._batches += 1
        self.running[self._batches] = requests, now_s
        return Batch(self._batches, tuple(request.id for request in requests))

    def settle(self, completion: Completion) -> None:
        """Enter the end of a batch.

        When its replica died, requests with budget left wait again; the others failed.
        """
        requests, _ = self.running.pop(completion.batch.id)
        self._completions.append(completion)
        for request in requests:
            in_time = completion.finished_s <= request.deadline_s
            if completion.ok:
                outcome = Outcome.ON_TIME if in_time else Outcome.LATE
            elif request.deadline_s > completion.finished_s:
                self.ledger.retry(request)
                self._queue.push(request)
                continue
            else:
                outcome = Outcome.FAILED
            self._ended.append(self.ledger.end(request, outcome, completion))

    def abandon(self, now_s: float) -> None:
        """Drop all that still waits: the episode is over."""
        for request in self._queue.pop(len(self._queue)):
            self._ended.append(self.ledger.drop(request, now_s))

    def take_interval(self) -> tuple[list[Request], list[Entry], list[Completion]]:
        """Return and forget what arrived, what ended, and which batches ended."""
        interval = self._arrived, self._ended, self._completions
        self._arrived, self._ended, self._completions = [], [], []
        return interval


class ArrivalCursor:
    """Walks through requests in the order in which they arrive."""

    def __init__(self, requests: Sequence[Request]) -> None:
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
    core: ServingCore,
    worker: Worker,
    arrivals: ArrivalCursor,
    batch_max: int,
    until_s: float,
) -> None:
    """Serve until ``until_s`` on the worker's clock; nothing is started at that moment any more.

    A batch starts as soon as a replica is idle and a request waits. What falls together happens in
    this order: batches end, requests arrive, batches start.
    """
    while True:
        now_s = worker.now()
        for request in arrivals.due(min(now_s, until_s)):
            core.offer(request)
        if now_s >= until_s:
            core.drop_expired(now_s)
            return
        wake_s = min(until_s, arrivals.next_s)
        while worker.idle():
            core.drop_expired(now_s)
            batch = core.form_batch(now_s, batch_max)
            if batch is None:
                break
            worker.start(batch)
        for completion in worker.wait(wake_s):
            core.settle(completion)
