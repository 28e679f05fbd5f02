"""The ledger: every offered request is accounted for, always."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from reference.requests import Request

from sponge_env.interfaces import Completion


class Outcome(IntEnum):
    """Where a request stands. The last four are final."""

    QUEUED = 0
    RUNNING = 1
    ON_TIME = 2
    LATE = 3
    DROPPED = 4
    FAILED = 5


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
    hopeless: int
    avoidable: int
    """Violations of requests that were not hopeless."""

    @property
    def violations(self) -> int:
        """Late, dropped and failed requests."""
        return self.late + self.dropped + self.failed

    @property
    def ended(self) -> int:
        """Requests whose outcome is final."""
        return self.on_time + self.violations


class Ledger:
    """Moves requests between outcomes; illegal moves raise, so nothing can get lost.

    Offered = on time + late + dropped + failed + queued + running, at all times.
    """

    def __init__(self, hopeless_below_s: float = 0.0) -> None:
        """Start empty.

        Args:
            hopeless_below_s: A request whose budget on arrival is shorter than this
                cannot be answered in time by any controller.
        """
        self._entries: dict[int, Entry] = {}
        self._counts = [0] * len(Outcome)
        self._hopeless_below_s = hopeless_below_s
        self._hopeless = 0
        self._avoidable = 0

    @property
    def counts(self) -> Counts:
        """Requests by outcome, now."""
        queued, running, on_time, late, dropped, failed = self._counts
        return Counts(
            offered=sum(self._counts),
            queued=queued,
            running=running,
            on_time=on_time,
            late=late,
            dropped=dropped,
            failed=failed,
            hopeless=self._hopeless,
            avoidable=self._avoidable,
        )

    def offer(self, request: Request) -> None:
        """Take in a new request.

        Raises:
            ValueError: Its id was offered before.
        """
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

    def answer(self, completion: Completion) -> list[Entry]:
        """Close the requests of a batch that ended: on time or late."""
        closed = []
        for request in completion.batch.requests:
            on_time = completion.finished_s <= request.deadline_s
            outcome = Outcome.ON_TIME if on_time else Outcome.LATE
            entry = self._move(request, Outcome.RUNNING, outcome)
            self._stamp(entry, completion)
            closed.append(entry)
        return closed

    def fail(self, request: Request, completion: Completion) -> Entry:
        """Close a running request whose replica died and whose budget has run out."""
        entry = self._move(request, Outcome.RUNNING, Outcome.FAILED)
        self._stamp(entry, completion)
        return entry

    def drop(self, request: Request, now_s: float) -> Entry:
        """Close a queued request that is given up."""
        entry = self._move(request, Outcome.QUEUED, Outcome.DROPPED)
        entry.finished_s = now_s
        return entry

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the whole ledger as columns, in the order of arrival.

        Each is of shape (offered,). Times are in seconds since the start of the episode.
        """
        entries = self._entries.values()
        requests = [entry.request for entry in entries]
        return {
            "id": np.array([r.id for r in requests], dtype=np.int64),
            "sent_s": np.array([r.sent_s for r in requests], dtype=np.float64),
            "arrival_s": np.array([r.arrival_s for r in requests], dtype=np.float64),
            "deadline_s": np.array([r.deadline_s for r in requests], dtype=np.float64),
            "payload_bytes": np.array([r.payload_bytes for r in requests], dtype=np.float64),
            "started_s": np.array([e.started_s for e in entries], dtype=np.float64),
            "finished_s": np.array([e.finished_s for e in entries], dtype=np.float64),
            "outcome": np.array([e.outcome.name.lower() for e in entries], dtype=np.str_),
            "hopeless": np.array([e.hopeless for e in entries], dtype=np.bool_),
            "batch_size": np.array([e.batch_size for e in entries], dtype=np.int64),
            "replica": np.array([e.replica for e in entries], dtype=np.int64),
            "attempts": np.array([e.attempts for e in entries], dtype=np.int64),
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
        if target in (Outcome.LATE, Outcome.DROPPED, Outcome.FAILED) and not entry.hopeless:
            self._avoidable += 1
        return entry

    @staticmethod
    def _stamp(entry: Entry, completion: Completion) -> None:
        entry.started_s = completion.started_s
        entry.finished_s = completion.finished_s
        entry.batch_size = completion.batch.size
        entry.replica = completion.replica
