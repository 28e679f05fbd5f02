"""The queue that the look-ahead plays with: one EDF queue, some replicas, known arrivals.

It repeats what :mod:`sponge_env.serving` and the simulated worker do: a batch starts as soon as
a replica is free and a request waits, takes the earliest deadlines, and what is left of it is
rescaled when the cores change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled

HEAD, TAIL, NEXT = 0, 1, 2
"""Places in :attr:`Queue.marks`."""

_TARDINESS_PER_S = 0.2
"""Weight of being late for longer."""


class Queue(NamedTuple):
    """Waiting and running requests; times count from the decision."""

    due_s: FloatArray
    """(capacity,) deadlines; those between head and tail wait, ascending. Those of a running
    batch stay where they were."""
    marks: IntArray
    """(3,) head, tail, and the next arrival."""
    free_s: FloatArray
    """(replicas,) when each replica takes its next batch."""
    size: IntArray
    """(replicas,) requests that it runs."""
    first: IntArray
    """(replicas,) place of their first deadline."""


def make_queue(capacity: int, replicas: int) -> Queue:
    """Return an empty queue."""
    return Queue(
        np.empty(capacity),
        np.zeros(3, dtype=np.int64),
        np.zeros(replicas),
        np.zeros(replicas, dtype=np.int64),
        np.zeros(replicas, dtype=np.int64),
    )


@compiled
def copy_queue(source: Queue, target: Queue) -> None:
    """Make the target equal to the source."""
    oldest = source.marks[HEAD]
    for replica in range(source.free_s.size):
        target.free_s[replica] = source.free_s[replica]
        target.size[replica] = source.size[replica]
        target.first[replica] = source.first[replica]
        if source.size[replica] > 0:
            oldest = min(oldest, source.first[replica])
    for place in range(oldest, source.marks[TAIL]):
        target.due_s[place] = source.due_s[place]
    for mark in range(3):
        target.marks[mark] = source.marks[mark]


@compiled
def resize(queue: Queue, now_s: float, old_s: FloatArray, new_s: FloatArray) -> None:
    """Rescale what is left of the running batches.

    Args:
        queue: Changed.
        now_s: The moment.
        old_s: (batch_max,) seconds of a batch before.
        new_s: The same afterwards.
    """
    for replica in range(queue.free_s.size):
        size = queue.size[replica]
        if size > 0 and queue.free_s[replica] > now_s:
            left_s = queue.free_s[replica] - now_s
            queue.free_s[replica] = now_s + left_s * new_s[size - 1] / old_s[size - 1]


@compiled
def advance(
    queue: Queue,
    arrivals_s: FloatArray,
    service_s: FloatArray,
    batch: int,
    from_s: float,
    until_s: float,
    guard_s: float,
) -> float:
    """Serve from one moment to another and count the requests that end late.

    Args:
        queue: Changed.
        arrivals_s: (arrivals, 2) when each comes and when it is due, ascending by the former.
        service_s: (batch_max,) seconds of a batch.
        batch: Largest batch.
        from_s: Start.
        until_s: Nothing is started then any more.
        guard_s: An answer so close before its deadline counts in part.

    Returns:
        Late requests among the batches that ended, weighted as :func:`_lateness` says.
    """
    late, now_s = 0.0, from_s
    # Kept apart from the queue, for registers are faster than memory.
    head, tail, following = queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT]
    for replica in range(queue.free_s.size):
        if queue.free_s[replica] <= until_s:
            late += _settle(queue, replica, guard_s)
    while True:
        replica = _first_free(queue.free_s)
        now_s = max(queue.free_s[replica], now_s)
        # With nothing to serve, time jumps to the next arrival.
        if head == tail and now_s < until_s and following < arrivals_s.shape[0]:
            now_s = max(now_s, arrivals_s[following, 0])
        tail, following = _admit(
            queue.due_s, arrivals_s, min(now_s, until_s), head, tail, following
        )
        if now_s >= until_s or head == tail:
            break
        size = min(batch, tail - head)
        queue.first[replica], queue.size[replica] = head, size
        queue.free_s[replica] = now_s + service_s[size - 1]
        head += size
        if queue.free_s[replica] <= until_s:
            late += _settle(queue, replica, guard_s)
    queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT] = head, tail, following
    return late


@compiled
def unfinished(queue: Queue, now_s: float, service_s: FloatArray) -> float:
    """Return the requests that wait, and the share of the running ones that is left."""
    count = float(queue.marks[TAIL] - queue.marks[HEAD])
    for replica in range(queue.free_s.size):
        size = queue.size[replica]
        if size > 0 and queue.free_s[replica] > now_s:
            left_s = queue.free_s[replica] - now_s
            count += size * min(1.0, left_s / (service_s[size - 1]))
    return count


@compiled
def _first_free(free_s: FloatArray) -> int:
    first = 0
    for replica in range(1, free_s.size):
        if free_s[replica] < free_s[first]:
            first = replica
    return first


@compiled
def _settle(queue: Queue, replica: int, guard_s: float) -> float:
    """Count the late ones of the batch that has ended."""
    late, end_s = 0.0, queue.free_s[replica]
    for place in range(queue.first[replica], queue.first[replica] + queue.size[replica]):
        over_s = end_s - queue.due_s[place]
        if over_s <= -guard_s:
            break  # so are all the others, which are due later
        late += _lateness(over_s, guard_s)
    queue.size[replica] = 0
    return late


@compiled
def _lateness(over_s: float, guard_s: float) -> float:
    """Weight an answer by the time from its deadline: 1 if late, less if only just in time.

    Of two late answers the later one weighs a little more, for a queue in which everything is
    late should be worked off all the same.
    """
    if over_s > 0.0:
        return 1.0 + _TARDINESS_PER_S * over_s
    return 1.0 + over_s / guard_s


@compiled
def _admit(
    due_s: FloatArray, arrivals_s: FloatArray, now_s: float, head: int, tail: int, following: int
) -> tuple[int, int]:
    """Let those wait that have arrived, in the order of their deadlines.

    Returns:
        The queue's tail, and the next arrival.
    """
    while following < arrivals_s.shape[0] and arrivals_s[following, 0] <= now_s:
        place, own_s = tail, arrivals_s[following, 1]
        while place > head and due_s[place - 1] > own_s:
            due_s[place] = due_s[place - 1]
            place -= 1
        due_s[place] = own_s
        tail += 1
        following += 1
    return tail, following
