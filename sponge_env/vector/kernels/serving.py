"""Queue, ledger and the loop that drives them. Repeats :mod:`sponge_env.serving`.

The queue is a ring in the order of the deadlines. A request takes its place from the end:
at once where requests arrive in the order of their deadlines, as those with one SLO do. No
batch comes back into it, for simulated replicas do not die. A batch is a run of positions at
the queue's head, so requests stay where they are while they run; first in, first out, those
that have waited longest are brought there first. A request for which the ring has no room is
dropped and counted as overflowed.
"""

from __future__ import annotations

import math

from sponge_env.serving.ledger import Outcome
from sponge_env.vector.compiler import compiled
from sponge_env.vector.kernels.arrivals import next_request
from sponge_env.vector.kernels.worker import (
    apply_pending,
    first_ended,
    is_idle,
    next_event_s,
    release,
    start_batch,
    update_held,
)
from sponge_env.vector.layout import Env, Replica, Waiting, World

_ON_TIME, _LATE, _DROPPED = int(Outcome.ON_TIME), int(Outcome.LATE), int(Outcome.DROPPED)


@compiled
def drive(w: World, batch_max: int, until_s: float) -> None:
    """Serve until ``until_s``.

    While no replica is idle, an arrival changes nothing but the queue. So the clock jumps
    to the next event, and the arrivals until then are taken in at once.
    """
    env = w.env
    while True:
        while env.arrival_s <= env.now_s:
            _offer(w)
            next_request(w)
        if env.now_s >= until_s:
            _drop_expired(w)
            return
        idle = _start_batches(w, batch_max)
        wait(w, min(until_s, env.arrival_s) if idle else until_s)


@compiled
def wait(w: World, until_s: float) -> None:
    """Jump to the next event, at the latest to ``until_s``."""
    env, event_s = w.env, next_event_s(w)
    env.now_s = max(env.now_s, min(event_s, until_s))
    if event_s <= env.now_s:
        apply_pending(w)
        _settle_ended(w)


@compiled
def any_pending(env: Env) -> bool:
    """Return whether any request waits or runs."""
    return env.running > 0 or env.head < env.tail


@compiled
def last_deadline_s(w: World) -> float:
    """Return the latest deadline of the requests that wait or run; 0 if there is none."""
    env, last_s = w.env, 0.0
    if env.head < env.tail:
        last_s = max(last_s, w.queue[(env.tail - 1) & env.ring].deadline_s)
    for k in range(env.replicas):
        first = w.replicas[k].first
        for position in range(first, first + w.replicas[k].size):
            last_s = max(last_s, w.queue[position & env.ring].deadline_s)
    return last_s


@compiled
def abandon(w: World) -> None:
    """Drop all that still waits: the episode is over."""
    env = w.env
    while env.head < env.tail:
        _drop(w, w.queue[env.head & env.ring], False)
        env.head += 1


@compiled
def _offer(w: World) -> None:
    """Take in the request that has arrived."""
    env, metrics = w.env, w.metrics
    delay_s = env.arrival_s - env.sent_s
    env.delay_sum_s += delay_s
    env.delay_max_s = max(env.delay_max_s, delay_s)
    env.payload_sum_bytes += env.payload_bytes
    metrics.offered += 1
    metrics.hopeless += _is_hopeless(w, env)
    if env.tail - env.oldest > env.ring:
        _find_oldest(w)
    if env.tail - env.oldest > env.ring:
        metrics.overflowed += 1
        _drop(w, env, True)
    else:
        _push(w)


@compiled
def _push(w: World) -> None:
    """Put the request that has arrived in its place: by its deadline, then by its id."""
    env = w.env
    position = env.tail
    while position > env.head and _precedes(env, w.queue[(position - 1) & env.ring]):
        w.queue[position & env.ring] = w.queue[(position - 1) & env.ring]
        position -= 1
    waiting = w.queue[position & env.ring]
    waiting.id, waiting.sent_s, waiting.arrival_s = env.id, env.sent_s, env.arrival_s
    waiting.deadline_s = env.deadline_s
    env.tail += 1


@compiled
def _precedes(one: Env, other: Waiting) -> bool:
    if one.deadline_s == other.deadline_s:
        return one.id < other.id
    return one.deadline_s < other.deadline_s


@compiled
def _find_oldest(w: World) -> None:
    env = w.env
    env.oldest = env.head
    for k in range(env.replicas):
        if w.replicas[k].size:
            env.oldest = min(env.oldest, w.replicas[k].first)


@compiled
def _is_hopeless(w: World, request: Env | Waiting) -> bool:
    return request.deadline_s - request.arrival_s < w.settings.hopeless_below_s


@compiled
def _drop_expired(w: World) -> None:
    env = w.env
    due_before_s = env.now_s - w.settings.drop_grace_s
    while env.head < env.tail:
        first = w.queue[env.head & env.ring]
        if first.deadline_s >= due_before_s:
            return
        _drop(w, first, False)
        env.head += 1


@compiled
def _drop(w: World, request: Env | Waiting, overflowed: bool) -> None:
    w.metrics.dropped += 1
    w.metrics.avoidable_violations += not _is_hopeless(w, request)
    if w.env.ended < len(w.ledger):
        entry = w.ledger[w.env.ended]
        entry.id, entry.sent_s, entry.arrival_s = request.id, request.sent_s, request.arrival_s
        entry.started_s, entry.finished_s = math.nan, w.env.now_s
        entry.outcome, entry.overflowed = _DROPPED, overflowed
        entry.batch_size, entry.replica = 0, -1
        w.env.ended += 1


@compiled
def _start_batches(w: World, batch_max: int) -> bool:
    """Give every idle replica a batch; return whether one stays idle."""
    env = w.env
    for k in range(env.replicas):
        if is_idle(w.env, w.replicas[k]):
            _drop_expired(w)
            if env.head == env.tail:
                return True
            size = min(batch_max, env.tail - env.head)
            if w.settings.fifo:
                _bring_forward(w, size)
            start_batch(w, w.replicas[k], size)
            env.head += size
            env.running += size
    return False


@compiled
def _bring_forward(w: World, size: int) -> None:
    """Bring the ``size`` requests that have waited longest to the queue's head."""
    env = w.env
    for front in range(env.head, env.head + size):
        oldest = front
        for position in range(front + 1, env.tail):
            if _came_before(w.queue[position & env.ring], w.queue[oldest & env.ring]):
                oldest = position
        _rotate(w, front, oldest)


@compiled
def _came_before(one: Waiting, other: Waiting) -> bool:
    if one.arrival_s == other.arrival_s:
        return one.id < other.id
    return one.arrival_s < other.arrival_s


@compiled
def _rotate(w: World, front: int, position: int) -> None:
    """Move a request forward to ``front``; those that it passes move back by one."""
    ring = w.env.ring
    moved = w.queue[position & ring]
    number, sent_s, arrival_s, deadline_s = (
        moved.id,
        moved.sent_s,
        moved.arrival_s,
        moved.deadline_s,
    )
    for k in range(position, front, -1):
        w.queue[k & ring] = w.queue[(k - 1) & ring]
    moved = w.queue[front & ring]
    moved.id, moved.sent_s, moved.arrival_s = number, sent_s, arrival_s
    moved.deadline_s = deadline_s


@compiled
def _settle_ended(w: World) -> None:
    """Book the batches that have ended, in the order of their ends."""
    any_ended = False
    k = first_ended(w)
    while k >= 0:
        any_ended = True
        _answer(w, w.replicas[k])
        release(w, k)
        k = first_ended(w)
    if any_ended:
        update_held(w)
        if w.env.running == 0 and w.env.head == w.env.tail:
            # Beginning anew keeps an ever nearly empty queue in few cache lines.
            w.env.head = w.env.tail = w.env.oldest = 0


@compiled
def _answer(w: World, replica: Replica) -> None:
    """Close the requests of a batch: on time or late."""
    env, metrics, finished_s = w.env, w.metrics, replica.finish_s
    for position in range(replica.first, replica.first + replica.size):
        request = w.queue[position & env.ring]
        on_time = finished_s <= request.deadline_s
        if on_time:
            metrics.on_time += 1
        else:
            metrics.late += 1
            metrics.avoidable_violations += not _is_hopeless(w, request)
        env.latency_sum_s += finished_s - request.sent_s
        if env.ended < len(w.ledger):
            entry = w.ledger[env.ended]
            entry.id, entry.sent_s, entry.arrival_s = request.id, request.sent_s, request.arrival_s
            entry.started_s, entry.finished_s = replica.started_s, finished_s
            entry.outcome, entry.overflowed = _ON_TIME if on_time else _LATE, False
            entry.batch_size, entry.replica = replica.size, replica.id
            env.ended += 1
    env.running -= replica.size
    env.batches += 1
    env.answered += replica.size
