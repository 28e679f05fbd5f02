"""Calls that have not ended, and the rows of ``requests`` that they hold.

A row is free, or it is a call's, or tasks of a call that has ended still run in it: a call that was
taken back or is late leaves its row only when the last batch with a task of it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sponge_env.interfaces import Completion
from sponge_env.serve.interface import Reply


class OpenCall:
    """A call that has not ended."""

    __slots__ = ("arrived_s", "batch", "cores", "done", "row", "service_s", "ticket", "until_s",
                 "variant")  # fmt: skip

    def __init__(
        self, ticket: int, row: int, arrived_s: float, done: Callable[[Reply], None]
    ) -> None:
        self.ticket, self.row, self.done = ticket, row, done
        self.arrived_s = self.until_s = arrived_s
        """``until_s`` is the end of the batches that it was part of."""
        self.service_s = 0.0
        self.batch = self.cores = 0
        """Of its last batch, as is ``variant``."""
        self.variant = ""

    def served(self, completion: Completion) -> None:
        """Count a batch that it was part of; two at the same time count once."""
        finished_s = completion.finished_s
        self.service_s += max(0.0, finished_s - max(completion.started_s, self.until_s))
        self.until_s = max(self.until_s, finished_s)


class Rows:
    """Who has which row."""

    def __init__(self, count: int) -> None:
        """Begin with so many free rows; :attr:`spare` is one more, for what is refused."""
        self.spare = count
        self._free = list(range(count))[::-1]
        self._calls: list[OpenCall | None] = [None] * (count + 1)
        self._tasks = [0] * (count + 1)
        """Tasks that run, by row."""
        self._batches: dict[int, Sequence[int]] = {}
        """Rows of the requests in each batch, one for each task."""

    @property
    def free(self) -> bool:
        """Whether there is a free row."""
        return bool(self._free)

    @property
    def next(self) -> int:
        """The row that the next call gets; the spare one if none is free."""
        return self._free[-1] if self._free else self.spare

    def hold(self, call: OpenCall) -> None:
        """Give a call the row that was :attr:`next`."""
        if self._free.pop() != call.row:
            raise RuntimeError(f"row {call.row} is not the next")
        self._calls[call.row] = call

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
            call = self._calls[row]
            if call is not None:
                calls.append(call)
            elif not self._tasks[row]:
                self._free.append(row)
        return calls

    def close(self, row: int) -> OpenCall | None:
        """End the call that has a row, and return it; None if what had ended was refused."""
        call = self._calls[row]
        if call is not None:
            self._calls[row] = None
            if not self._tasks[row]:
                self._free.append(row)
        return call

    def check(self) -> None:
        """Raise a RuntimeError unless each row is free or somebody's, and no row is twice."""
        held = [row for row, call in enumerate(self._calls) if call or self._tasks[row]]
        if sorted([*self._free, *held]) != list(range(self.spare)):
            raise RuntimeError(f"rows are lost or taken twice: {self._free} free, {held} held")
