"""Queue, ledger and the loop that drives them. Repeats :mod:`sponge_env.serving`.

The queue is a ring in the order of arrival, which is that of the deadlines (see
:mod:`sponge_env.vector.kernels.arrivals`); no batch comes back into it, for simulated
replicas do not die. A batch is a run of positions, so requests stay where they are while
they run. A request for which the ring has no room is dropped and counted as overflowed.
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
from sponge_env.vector.layout import Replica, World

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
        event_s = next_event_s(w)
        wakes_s = min(until_s, env.arrival_s) if idle else until_s
        env.now_s = max(env.now_s, min(event_s, wakes_s))
        if event_s <= env.now_s:
            apply_pending(w)
            _settle_ended(w)


@compiled
def _offer(w: World) -> None:
    """Take in the request that has arrived."""
    env, metrics = w.env, w.metrics
    delay_s = env.arrival_s - env.sent_s
    env.delay_sum_s += delay_s
    env.delay_max_s = max(env.delay_max_s, delay_s)
    env.payload_sum_bytes += w.settings.payload_bytes
    metrics.offered += 1
    metrics.hopeless += _is_hopeless(w, env.sent_s, env.arrival_s)
    if env.tail - env.oldest > env.ring:
        _find_oldest(w)
    if env.tail - env.oldest > env.ring:
        metrics.overflowed += 1
        _drop(w, env.sent_s, env.arrival_s, True)
        return
    waiting = w.queue[env.tail & env.ring]
    waiting.sent_s, waiting.arrival_s = env.sent_s, env.arrival_s
    env.tail += 1


@compiled
def _find_oldest(w: World) -> None:
    env = w.env
    env.oldest = env.head
    for k in range(env.replicas):
        if w.replicas[k].size:
            env.oldest = min(env.oldest, w.replicas[k].first)


@compiled
def _is_hopeless(w: World, sent_s: float, arrival_s: float) -> bool:
    return sent_s + w.settings.slo_s - arrival_s < w.settings.hopeless_below_s


@compiled
def _drop_expired(w: World) -> None:
    env = w.env
    due_before_s = env.now_s - w.settings.drop_grace_s
    while env.head < env.tail:
        first = w.queue[env.head & env.ring]
        if first.sent_s + w.settings.slo_s >= due_before_s:
            return
        _drop(w, first.sent_s, first.arrival_s, False)
        env.head += 1


@compiled
def _drop(w: World, sent_s: float, arrival_s: float, overflowed: bool) -> None:
    w.metrics.dropped += 1
    w.metrics.avoidable_violations += not _is_hopeless(w, sent_s, arrival_s)
    if w.env.ended < len(w.ledger):
        entry = w.ledger[w.env.ended]
        entry.sent_s, entry.arrival_s = sent_s, arrival_s
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
            start_batch(w, w.replicas[k], size)
            env.head += size
            env.running += size
    return False


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
        sent_s, arrival_s = request.sent_s, request.arrival_s
        on_time = finished_s <= sent_s + w.settings.slo_s
        if on_time:
            metrics.on_time += 1
        else:
            metrics.late += 1
            metrics.avoidable_violations += not _is_hopeless(w, sent_s, arrival_s)
        env.latency_sum_s += finished_s - sent_s
        if env.ended < len(w.ledger):
            entry = w.ledger[env.ended]
            entry.sent_s, entry.arrival_s = sent_s, arrival_s
            entry.started_s, entry.finished_s = replica.started_s, finished_s
            entry.outcome, entry.overflowed = _ON_TIME if on_time else _LATE, False
            entry.batch_size, entry.replica = replica.size, replica.id
            env.ended += 1
    env.running -= replica.size
    env.batches += 1
    env.answered += replica.size
