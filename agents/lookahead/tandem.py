"""The queues that the look-ahead plays: stages one after the other, with no more than it needs.

A decision plays thousands of requests in half a millisecond. So each stage's queue, in order of the
deadlines and with equal replicas, keeps only deadlines and the ends of batches, and none of the
core's records. Its moves are those of the core all the same:
:func:`_admit` is :func:`~sponge_env.core.queue.push`, a batch is formed by :func:`advance` when
:func:`~sponge_env.core.step.simulate` would form it, as large as
:func:`~sponge_env.core.batching.form_batch` makes it where nothing is dropped (a controller is not
told what is), what it leads to joins the next queue at that instant as
:func:`~sponge_env.core.pipeline.pass_on` has it, and :func:`resize` is what
:func:`~sponge_env.core.service.resize_service` does to whole cores. ``tests/test_sponge_mpc.py``
serves drawn requests both ways.

No stage depends on those after it, so each is played until a moment before the next one is.
"""

from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, inlined

HEAD, TAIL, NEXT, COMING, LEFT = 0, 1, 2, 3, 4  # Places in :attr:`Queues.marks`
_TARDINESS_PER_S = 0.2  # Weight of being late for longer


class Queues(NamedTuple):
    """Waiting and running tasks of each stage; times count from the decision."""

    due_s: FloatArray  # (stages, capacity) deadlines: of batches, then, ascending, of what waits
    marks: IntArray  # (stages, 5) head, tail, next arrival, how many are known, tasks done
    free_s: FloatArray  # (stages, replicas) when each takes its next batch; infinite if it is none
    size: IntArray  # (stages, replicas) tasks that it runs
    first: IntArray  # (stages, replicas) place of their first deadline
    ids: IntArray  # (stages, capacity) whose task each deadline is; none of a single stage
    counted: FloatArray  # (requests,) by how much each has counted as late so far


class SamplePath(NamedTuple):
    """One future, and what counts in it."""

    arrivals_s: FloatArray
    """(stages, places, 2) when each task comes and is due, ascending by the former. Those of the
    later stages are written as the ones before are served."""
    ids: IntArray  # (stages, places) whose tasks those of the later stages are
    first_id: int  # Of the first to come; those that are there have lower ones
    tasks: IntArray  # (stages, draws) tasks of the next stage that each in turn leads to; last 0
    guard_s: float  # An answer so close before its deadline counts as late in part
    most: IntArray  # (stages,) how many waited at most when a batch was formed, raised


def make_queues(stages: int, capacity: int, replicas: int, requests: int = 0) -> Queues:
    """Return empty queues."""
    size, first = (np.zeros((stages, replicas), np.int64) for _ in range(2))
    marks, free_s = np.zeros((stages, 5), np.int64), np.zeros((stages, replicas))
    several = stages > 1
    ids, counted = np.zeros((stages, capacity * several), np.int64), np.zeros(requests * several)
    return Queues(np.empty((stages, capacity)), marks, free_s, size, first, ids, counted)


@inlined
def queue_of(queues: Queues, k: int) -> Queues:
    """Return one stage's part of each array."""
    due_s, marks, free_s = queues.due_s[k], queues.marks[k], queues.free_s[k]
    size, first, ids = queues.size[k], queues.first[k], queues.ids[k]
    return Queues(due_s, marks, free_s, size, first, ids, queues.counted)


@compiled
def copy_queues(source: Queues, target: Queues) -> None:
    """Make the target equal to the source."""
    for k in range(source.marks.shape[0]):
        old, new = queue_of(source, k), queue_of(target, k)
        oldest = old.marks[HEAD]
        for replica in range(old.free_s.size):
            new.free_s[replica] = old.free_s[replica]
            new.size[replica] = old.size[replica]
            new.first[replica] = old.first[replica]
            if old.size[replica] > 0:
                oldest = min(oldest, old.first[replica])
        for place in range(oldest, old.marks[TAIL]):
            new.due_s[place] = old.due_s[place]
        for place in range(oldest, min(old.marks[TAIL], old.ids.size)):
            new.ids[place] = old.ids[place]
        for mark in range(old.marks.size):
            new.marks[mark] = old.marks[mark]
    for request in range(source.counted.size):
        target.counted[request] = source.counted[request]


@compiled
def resize(queues: Queues, k: int, now_s: float, old_s: FloatArray, new_s: FloatArray) -> None:
    """Rescale what is left of a stage's running batches, by (batch_max,) seconds of a batch."""
    queue = queue_of(queues, k)
    for replica in range(queue.free_s.size):
        size = queue.size[replica]
        if size > 0 and queue.free_s[replica] > now_s:
            left_s = queue.free_s[replica] - now_s
            queue.free_s[replica] = now_s + left_s * new_s[size - 1] / old_s[size - 1]


@compiled
def advance(
    queues: Queues, k: int, future: SamplePath, service_s: FloatArray, batch: int, from_s: float,
    until_s: float,
) -> float:  # fmt: skip
    """Serve a stage from one moment until another, when nothing more is started.

    Return the late requests among those answered, weighted by :func:`_lateness`.
    """
    late, now_s, most = 0.0, from_s, future.most[k]
    queue, arrivals_s = queue_of(queues, k), future.arrivals_s[k]
    # Local copies: registers are faster than memory.
    head, tail, following = queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT]
    coming = queue.marks[COMING]
    for replica in range(queue.free_s.size):
        if queue.free_s[replica] <= until_s:
            late += _settle(queues, k, replica, future)
    while True:
        replica = _first_free(queue.free_s)
        now_s = max(queue.free_s[replica], now_s)
        # With nothing to serve, time jumps to the next arrival.
        if head == tail and now_s < until_s and following < coming:
            now_s = max(now_s, arrivals_s[following, 0])
        admit_s = min(now_s, until_s)
        while following < coming and arrivals_s[following, 0] <= admit_s:
            place = _admit(queue.due_s, arrivals_s[following, 1], head, tail)
            if queue.ids.size > 0:
                own = future.ids[k, following] if k > 0 else future.first_id + following
                _note(queue.ids, own, place, tail)
            tail += 1
            following += 1
        if now_s >= until_s or head == tail:
            break
        size, most = min(batch, tail - head), max(most, tail - head)
        queue.first[replica], queue.size[replica] = head, size
        queue.free_s[replica] = now_s + service_s[size - 1]
        head += size
        if queue.free_s[replica] <= until_s:
            late += _settle(queues, k, replica, future)
    queue.marks[HEAD], queue.marks[TAIL], queue.marks[NEXT] = head, tail, following
    future.most[k] = most
    return late


@compiled
def unfinished(queues: Queues, k: int, now_s: float, service_s: FloatArray) -> float:
    """Return the tasks that wait in a stage, and the share of the running ones that is left."""
    queue = queue_of(queues, k)
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
def _settle(queues: Queues, k: int, replica: int, future: SamplePath) -> float:
    """End a batch: pass on the tasks that it leads to, and count the late answers."""
    # A request is as late as the last of its tasks.
    queue, guard_s, late = queue_of(queues, k), future.guard_s, 0.0
    first, size, end_s = queue.first[replica], queue.size[replica], queue.free_s[replica]
    queue.size[replica] = 0
    is_last, staged = k + 1 == queues.marks.shape[0], queue.ids.size > 0
    for place in range(first, first + size):
        over_s = end_s - queue.due_s[place]
        if is_last and over_s <= -guard_s:
            break  # the others are due later, so they are in time as well
        if not is_last and _hand_on(queues, k, future, end_s, place) > 0:
            continue
        if over_s > -guard_s:
            own = _lateness(over_s, guard_s)
            if staged:
                own = max(own - queue.counted[queue.ids[place]], 0.0)
                queue.counted[queue.ids[place]] += own
            late += own
    return late


@compiled
def _lateness(over_s: float, guard_s: float) -> float:
    """Return 1 for a late answer, and less for one only just in time."""
    # A later answer weighs a little more: a late queue should be worked off all the same.
    return 1.0 + (_TARDINESS_PER_S * over_s if over_s > 0.0 else over_s / guard_s)


@compiled
def _hand_on(queues: Queues, k: int, future: SamplePath, end_s: float, place: int) -> int:
    """Let the tasks that follow one arrive in the next stage; return how many there are."""
    done, due_s, own = queues.marks[k, LEFT], queues.due_s[k, place], queues.ids[k, place]
    queues.marks[k, LEFT] = done + 1
    tasks: int = future.tasks[k, done % future.tasks.shape[1]]
    arrivals_s, coming = future.arrivals_s[k + 1], queues.marks[k + 1, COMING]
    for _ in range(min(tasks, arrivals_s.shape[0] - coming)):
        # Batches begin in their order, but a small one may end before a larger one.
        place = insert_arrival(arrivals_s, coming, end_s, due_s)
        _note(future.ids[k + 1], own, place, coming)
        coming += 1
    queues.marks[k + 1, COMING] = coming
    return tasks


@compiled
def insert_arrival(arrivals_s: FloatArray, count: int, arrival_s: float, due_s: float) -> int:
    """Insert a request in order of arrival, behind those of the same time; return its place."""
    place = count
    while place > 0 and arrivals_s[place - 1, 0] > arrival_s:
        for column in range(2):
            arrivals_s[place, column] = arrivals_s[place - 1, column]
        place -= 1
    arrivals_s[place, 0], arrivals_s[place, 1] = arrival_s, due_s
    return place


@compiled
def _admit(waiting_s: FloatArray, due_s: float, head: int, tail: int) -> int:
    """Insert a waiting task behind those that are due no later; return its place."""
    place = tail
    while place > head and waiting_s[place - 1] > due_s:
        waiting_s[place] = waiting_s[place - 1]
        place -= 1
    waiting_s[place] = due_s
    return place


@compiled
def _note(ids: IntArray, own: int, place: int, tail: int) -> None:
    """Note to which request the task at a place belongs."""
    for behind in range(tail, place, -1):
        ids[behind] = ids[behind - 1]
    ids[place] = own
