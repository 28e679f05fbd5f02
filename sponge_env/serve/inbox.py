"""Where calls wait for the serving thread, whichever thread they come from."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from sponge_env.serve.interface import Call, Reply


class Submitted(NamedTuple):
    """A call, or that it was taken back."""

    ticket: int
    call: Call | None
    """None for one that was taken back."""
    done: Callable[[Reply], None]


class Inbox:
    """A queue without a lock, whose reader is woken once for many calls."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Submitted] = deque()
        self._woken = False
        self._tickets = itertools.count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, call: Call, done: Callable[[Reply], None]) -> int:
        """Put a call in; return its ticket."""
        ticket = next(self._tickets)
        self._put(Submitted(ticket, call, done))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Say that a call was taken back."""
        self._put(Submitted(ticket, None, _nobody))

    def _put(self, submitted: Submitted) -> None:
        self._waiting.append(submitted)
        # Whoever is woken unsets it before it reads, so that what it misses wakes it again.
        if not self._woken:
            self._woken = True
            self._wake()

    def take(self, most: int) -> Iterator[Submitted]:
        """Yield what is there, up to so many, in the order in which it came.

        Whoever was woken calls it, whether anything is there or not: it may have been taken by
        who was awake before. Several may take at the same time.
        """
        self._woken = False
        with suppress(IndexError):
            for _ in range(most):
                yield self._waiting.popleft()


def _nobody(_reply: Reply) -> None:
    """Do nothing: who takes a call back is told by its own."""
