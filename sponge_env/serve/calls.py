"""The calls of a server: those that wait to be taken in, those that have not ended."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from sponge_env.interfaces import Completion
from sponge_env.serve.interface import Batches, Call, Reply, Status


class Submitted(NamedTuple):
    """A call, or the cancelling of one."""

    ticket: int
    call: Call | None  # None to cancel the call of this ticket
    done: Callable[[Reply], None]
    status: Status = Status.CANCELLED  # How a call ends that this cancels


class Inbox:
    """Calls from any thread for the one that serves: no lock, and one wake-up for many calls."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake  # :meth:`ServingEngine.lend` replaces it: then the loop itself serves
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

    def cancel(self, ticket: int, status: Status = Status.CANCELLED) -> None:
        """Cancel a call; its own callback gets the reply, of that status."""
        self._put(Submitted(ticket, None, lambda _: None, status))

    def _put(self, submitted: Submitted) -> None:
        self._waiting.append(submitted)
        # The reader unsets it before it reads, so that what it misses wakes it again.
        if not self._woken:
            self._woken = True
            self.wake()

    def take(self, count: int) -> Iterator[Submitted]:
        """Yield at most ``count`` entries in their order; several threads may take at once."""
        # A woken thread must call this even if nothing is left.
        self._woken = False
        with suppress(IndexError):
            for _ in range(count):
                yield self._waiting.popleft()


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that has not ended."""

    ticket: int
    row: int
    arrived_s: float
    done: Callable[[Reply], None]
    until_s: float  # End of the batches that it was part of; at first when it arrived
    stage: int = 0  # The one that it enters
    service_s: float = 0.0
    batch: int = 0  # Of its last batch, as are ``cores`` and ``variant``
    cores: int = 0
    variant: str = ""

    def add_batch(self, completion: Completion) -> None:
        """Count the time of a batch that it was part of; time in two at once counts once."""
        finished_s = completion.finished_s
        self.service_s += max(0.0, finished_s - max(completion.started_s, self.until_s))
        self.until_s = max(self.until_s, finished_s)


class RowTable:
    """Which call has which row of ``requests``."""

    # A row is free, or it is a call's, or tasks of a call that has ended still run in it: a call
    # that was cancelled or is late leaves its row when the last batch with a task of it is over.

    def __init__(self, most: int, models: int = 1) -> None:
        """Begin with ``most`` free rows for each model; refused calls get one more, the spare."""
        self.spare = count = most * models
        self._free = list(range(count))[::-1]
        self._left = [most] * models  # Rows that calls of each may still get
        self._entered = [0] * count  # The stage that a row's call enters
        self._calls: list[OpenCall | None] = [None] * (count + 1)
        self._tasks = [0] * (count + 1)  # Tasks that run, by row
        self._batches: dict[int, Sequence[int]] = {}  # Rows of each batch's requests, one a task

    def has_room(self, stage: int) -> bool:
        """Return whether there is a free row for a call that enters a stage."""
        return self._left[stage] > 0

    @property
    def next(self) -> int:
        """The row that the next call gets; the spare one if none is free."""
        return self._free[-1] if self._free else self.spare

    def hold(self, call: OpenCall) -> None:
        """Give a call the row that was :attr:`next`."""
        row = self._free.pop()
        self._calls[row], self._entered[row] = call, call.stage
        self._left[call.stage] -= 1

    def _release(self, row: int) -> None:
        self._free.append(row)
        self._left[self._entered[row]] += 1

    def begin(self, batch: int, rows: Sequence[int]) -> None:
        """Note that a batch runs with a task in each of these rows."""
        self._batches[batch] = rows
        for row in rows:
            self._tasks[row] += 1

    def end(self, batch: int) -> list[OpenCall]:
        """Note that a batch is over; return the open calls of its tasks."""
        calls = []
        for row in self._batches.pop(batch):
            self._tasks[row] -= 1
            if (call := self._calls[row]) is not None:
                calls.append(call)
            elif not self._tasks[row]:
                self._release(row)
        return calls

    def close(self, row: int) -> OpenCall | None:
        """End the call that has a row, and return it; None for a call that was refused."""
        if (call := self._calls[row]) is not None:
            self._calls[row] = None
            if not self._tasks[row]:
                self._release(row)
        return call


class BatchCounts:
    """Batches that ended with answers, by stage and size; one thread counts, any may read."""

    def __init__(self, batch_max: Sequence[int]) -> None:
        """Begin at 0; ``batch_max`` is the largest batch of each stage."""
        self._sizes = [[Batches(size, 0, 0.0) for size in range(most + 1)] for most in batch_max]

    def add(self, completion: Completion) -> None:
        """Count a batch that has ended."""
        sizes, size = self._sizes[completion.batch.stage], completion.batch.size
        service_s = sizes[size].service_s + (completion.finished_s - completion.started_s)
        sizes[size] = Batches(size, sizes[size].ended + 1, service_s)

    def totals(self) -> tuple[tuple[Batches, ...], ...]:
        """Return the counts of each stage, smallest size first, without sizes that never ran."""
        return tuple(tuple(each for each in sizes if each.ended) for sizes in self._sizes)
