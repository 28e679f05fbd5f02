"""The program of ``sponge-mpc``: play a queue under pairs of cores and batch, take the cheapest.

A decision plays thousands of requests in half a millisecond, so its queue, in order of the
deadlines and for some equal replicas, keeps deadlines and ends of batches and none of the core's
records. Its moves are those of the core all the same:
:func:`_admit` is :func:`~sponge_env.core.queue.push`, a batch is formed by :func:`advance` when
:func:`~sponge_env.core.step.simulate` would form it, as large as
:func:`~sponge_env.core.batching.form_batch` makes it where nothing is dropped (a controller is not
told what is), and :func:`resize` is what :func:`~sponge_env.core.service.resize_service` does to
whole cores. ``tests/test_sponge_mpc.py`` serves drawn requests both ways.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point

from .forecast import Chance, Outlook, sample_path

HEAD, TAIL, NEXT = 0, 1, 2
"""Places in :attr:`Queue.marks`."""
_TARDINESS_PER_S = 0.2
"""Weight of being late for longer."""
_MOVES = 6
"""Ways to change a pair; see :func:`_moved`."""
_STRIDE = 1 / 16
"""Share of the cores by which the look-ahead changes them, one at least."""


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


class Rules(NamedTuple):
    """What stays the same for an episode; prices are in core-seconds."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds of a batch; row ``c - 1``, column ``b - 1``."""
    interval_s: float
    delay_s: float
    """Time until a decision is in force."""
    look_ahead: int
    """Intervals that are played after the one for which is decided."""
    guard_s: float
    """An answer so close before its deadline counts as late in part."""
    late_price: float
    release_price: float
    batching: bool
    """Whether other batches than the largest are tried."""
    replicas: int
    """Replicas, each of which holds the cores."""
    cores_max: int
    """Most cores that each of them can have; those in force may be more."""


class Scratch(NamedTuple):
    """Arrays to play in, allocated once."""

    start: Queue
    """Queue at the decision, under the cores in force; then after the next interval, and at the
    end of the look-ahead."""
    middle: Queue
    end: Queue
    speed: FloatArray
    """(intervals,) speed of transfers, the next interval and the look-ahead."""
    arrivals_s: FloatArray
    """(paths, places, 2) when each request arrives and is due."""
    counts: IntArray
    """(paths,) number of arrivals."""
    score: FloatArray
    """(cores_max, batch_max) scores found; NaN where none was."""
    late: FloatArray
    """(cores_max, batch_max) late requests to expect in the next interval, by the scores."""


class Decision(NamedTuple):
    """What is decided, and with what."""

    rules: Rules
    chance: Chance
    scratch: Scratch
    """Its ``start`` is read, the rest is overwritten."""
    backlog_price: float
    """Core-seconds that a request costs which is left at the end."""
    cores: int
    """Those that were asked for last."""
    cores_in_force: int
    pending: FloatArray
    """(resizes, 2) when earlier decisions will be in force, and their cores."""


def make_scratch(rules: Rules, paths: int, intervals: int, queued: int, places: int) -> Scratch:
    """Allocate what a queue and so many arrivals on each path need."""
    start, middle, end = (make_queue(queued + places, rules.replicas) for _ in range(3))
    shape = rules.service_s.shape
    return Scratch(
        start=start,
        middle=middle,
        end=end,
        speed=np.empty(intervals),
        arrivals_s=np.empty((paths, places, 2)),
        counts=np.zeros(paths, dtype=np.int64),
        score=np.empty(shape),
        late=np.empty(shape),
    )


@entry_point
def plan(
    decision: Decision, outlook: Outlook, kinds: FloatArray, batch: int
) -> tuple[int, int, float, float]:
    """Return the pair that costs least, its late requests in the next interval, and its cost.

    The search walks downhill from the allocation in force, of which ``batch`` is a part. All
    scores are of the same sample paths, so they fall and rise smoothly and the walk is short.
    """
    rules, chance, scratch = decision.rules, decision.chance, decision.scratch
    for path in range(chance.weight.size):
        scratch.counts[path] = sample_path(
            outlook,
            chance,
            path,
            kinds,
            rules.interval_s,
            rules.delay_s + rules.interval_s,
            scratch.speed,
            scratch.arrivals_s[path],
        )
    scratch.score[:] = math.nan
    # Any pair that is better begins the round of moves anew; a round without one is the end.
    best_cores, move = min(decision.cores, rules.cores_max), 0
    best_batch = batch if rules.batching else rules.service_s.shape[1]
    best = _score(decision, best_cores, best_batch, math.inf)
    while move < _MOVES:
        c, b = _moved(rules, best_cores, best_batch, move)
        move += 1
        if math.isnan(scratch.score[c - 1, b - 1]):
            score = _score(decision, c, b, best)
            if score < best:
                best, best_cores, best_batch, move = score, c, b, 0
    return best_cores, best_batch, scratch.late[best_cores - 1, best_batch - 1], best


@compiled
def _moved(rules: Rules, cores: int, batch: int, move: int) -> tuple[int, int]:
    """Return a neighbour of a pair, within the limits."""
    cores_max, batch_max = rules.cores_max, rules.service_s.shape[1]
    if move == 0:
        cores -= 1
    elif move == 1:
        cores += 1
    elif move == 2:
        cores *= 2
    elif not rules.batching:
        return cores, batch
    elif move == 3:
        # Far at once: a queue that is served in full batches changes little in between.
        batch = batch // 2 if batch == batch_max else batch_max
    elif move == 4:
        batch -= max(1, batch // 4)
    else:
        batch += max(1, batch // 4)
    return min(max(cores, 1), cores_max), min(max(batch, 1), batch_max)


@compiled
def _score(decision: Decision, c: int, b: int, limit: float) -> float:
    """Return the expected cost of a pair: its cores, and what each path costs under it.

    The paths come worst first, and no more are played once the cost has reached ``limit``.
    """
    rules, chance, scratch = decision.rules, decision.chance, decision.scratch
    row_s, guard_s = rules.service_s[c - 1], rules.guard_s
    released = max(0, decision.cores - c)
    score = rules.replicas * (c * rules.interval_s + rules.release_price * released)
    until_s = rules.delay_s + rules.interval_s
    then, expected = c, 0.0
    for path in range(chance.weight.size):
        if score >= limit:
            break
        arrivals_s = scratch.arrivals_s[path, : scratch.counts[path]]
        copy_queue(scratch.start, scratch.middle)
        late = _wait(decision, arrivals_s, c, b)
        late += advance(scratch.middle, arrivals_s, row_s, b, rules.delay_s, until_s, guard_s)
        rest, then = _look_ahead(decision, arrivals_s, c, b, then)
        expected += chance.weight[path] * late
        score += chance.weight[path] * (rules.late_price * late + rest)
    scratch.score[c - 1, b - 1], scratch.late[c - 1, b - 1] = score, expected
    return score


@compiled
def _wait(decision: Decision, arrivals_s: FloatArray, c: int, b: int) -> float:
    """Serve until the decision is in force, resizes asked for before included; return the late."""
    rules, queue, pending = decision.rules, decision.scratch.middle, decision.pending
    was_s, from_s, late = rules.service_s[decision.cores_in_force - 1], 0.0, 0.0
    for row in range(pending.shape[0]):
        until_s = min(pending[row, 0], rules.delay_s)
        late += advance(queue, arrivals_s, was_s, b, from_s, until_s, rules.guard_s)
        then_s = rules.service_s[int(pending[row, 1]) - 1]
        resize(queue, until_s, was_s, then_s)
        was_s, from_s = then_s, until_s
    if rules.delay_s > 0.0:
        late += advance(queue, arrivals_s, was_s, b, from_s, rules.delay_s, rules.guard_s)
    resize(queue, rules.delay_s, was_s, rules.service_s[c - 1])
    return late


@compiled
def _look_ahead(
    decision: Decision, arrivals_s: FloatArray, c: int, b: int, then: int
) -> tuple[float, int]:
    """Return what a path costs after the next interval, with the cores that suit it best.

    The search for them starts at ``then``, those that suited the path before.
    """
    best = _rest(decision, arrivals_s, c, b, then)
    if decision.rules.look_ahead == 0:
        return best, then
    best_cores = then
    # The rest is about convex in the cores: where one side is downhill, the other is not.
    for sign in (-1, 1):
        if best_cores != then:
            break
        while True:
            cores = best_cores + sign * max(1, int(best_cores * _STRIDE))
            if not 1 <= cores <= decision.rules.cores_max:
                break
            rest = _rest(decision, arrivals_s, c, b, cores)
            if rest >= best:
                break
            best, best_cores = rest, cores
    return best, best_cores


@compiled
def _rest(decision: Decision, arrivals_s: FloatArray, c: int, b: int, then: int) -> float:
    """Return what a path costs after the next interval if it goes on with ``then`` cores.

    Without look-ahead the backlog is priced at once, and worked off as it stands.
    """
    rules, scratch = decision.rules, decision.scratch
    begin_s = rules.delay_s + rules.interval_s
    horizon_s = rules.delay_s + (1 + rules.look_ahead) * rules.interval_s
    row_s, guard_s = rules.service_s[then - 1], rules.guard_s
    copy_queue(scratch.middle, scratch.end)
    resize(scratch.end, begin_s, rules.service_s[c - 1], row_s)
    late = advance(scratch.end, arrivals_s, row_s, b, begin_s, horizon_s, guard_s)
    left = unfinished(scratch.end, horizon_s, row_s)
    # What is left is served, too, or a plan could leave its late requests behind the horizon.
    late += advance(scratch.end, arrivals_s, row_s, b, horizon_s, math.inf, guard_s)
    cores_s = rules.replicas * then * (horizon_s - begin_s)
    return cores_s + rules.late_price * late + decision.backlog_price * left


def make_queue(capacity: int, replicas: int) -> Queue:
    """Return an empty queue."""
    marks, size, first = (np.zeros(length, np.int64) for length in (3, replicas, replicas))
    return Queue(np.empty(capacity), marks, np.zeros(replicas), size, first)


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
    """Rescale what is left of the running batches, by (batch_max,) seconds of a batch."""
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
    """Serve from one moment until another, at which nothing is started any more.

    (arrivals, 2) say when each comes and when it is due, ascending by the former; (batch_max,)
    the seconds of a batch. Returns the late requests among the batches that ended, weighted by
    :func:`_settle`.
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
    """Count the late ones of the batch that has ended: 1 each, less if only just in time.

    Of two late answers the later one weighs a little more, for a queue in which everything is
    late should be worked off all the same.
    """
    late, end_s = 0.0, queue.free_s[replica]
    for place in range(queue.first[replica], queue.first[replica] + queue.size[replica]):
        over_s = end_s - queue.due_s[place]
        if over_s <= -guard_s:
            break  # so are all the others, which are due later
        late += 1.0 + (_TARDINESS_PER_S * over_s if over_s > 0.0 else over_s / guard_s)
    queue.size[replica] = 0
    return late


@compiled
def _admit(
    due_s: FloatArray, arrivals_s: FloatArray, now_s: float, head: int, tail: int, following: int
) -> tuple[int, int]:
    """Let those wait that have arrived, by deadline; return tail and next arrival."""
    while following < arrivals_s.shape[0] and arrivals_s[following, 0] <= now_s:
        place, own_s = tail, arrivals_s[following, 1]
        while place > head and due_s[place - 1] > own_s:
            due_s[place] = due_s[place - 1]
            place -= 1
        due_s[place] = own_s
        tail += 1
        following += 1
    return tail, following
