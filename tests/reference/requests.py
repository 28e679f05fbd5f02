"""Requests and batches as objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One inference request; it carries its own deadline.

    The client sends it at ``sent_s``; after the transfer over the network it reaches the
    server at ``arrival_s``. ``deadline_s`` is the send time plus the SLO, so the time
    spent on the way is already gone from its budget.
    """

    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float = 0.0

    @property
    def delay_s(self) -> float:
        return self.arrival_s - self.sent_s

    @property
    def budget_on_arrival_s(self) -> float:
        return self.deadline_s - self.arrival_s


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that one replica runs together, earliest deadline first."""

    id: int
    requests: tuple[Request, ...]

    @property
    def size(self) -> int:
        return len(self.requests)
