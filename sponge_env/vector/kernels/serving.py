"""Batches, ledger and the loop that drives them. Repeats :mod:`sponge_env.serving`.

A request for which the queue has no room is dropped and counted as overflowed.
"""

from __future__ import annotations

import math

from sponge_env.serving.ledger import Outcome
from sponge_env.vector.compiler import compiled
from sponge_env.vector.kernels.arrivals import next_given, next_request
from sponge_env.vector.kernels.queue import bring_forward, deadline_s, has_room, place
from sponge_env.vector.kernels.worker import (
    apply_pending,
    first_ended,
    is_idle,
    next_event_s,
    release,
    share_cpu,
    start_batch,
    update_held,
)
from sponge_env.vector.layout import Env, Replica, World
from sponge_env.vector.settings import GIVEN

_ON_TIME, _LATE, _DROPPED = int(Outcome.ON_TIME), int(Outcome.LATE), int(Outcome.DROPPED)


@compiled
def drive(w: World, batch_max: int, until_s: float) -> None:
    """Serve until ``until_s``.

    While no replica is idle, an arrival changes nothing but the queue. So the clock jumps
    to the next event, and the arrivals until then are taken in at once.
    """
    env = w.env
    while True:
        _take_in(w)
        if env.now_s >= until_s:
            _drop_expired(w)
            return
        idle = _start_batches(w, batch_max)
        wait(w, min(until_s, env.arrival_s) if idle else until_s)


@compiled
def wait(w: World, until_s: float) -> None:
    """Jump to the next event, at the latest to ``until_s``."""
    share_cpu(w)
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
def abandon(w: World) -> None:
    """Drop all that still waits: the episode is over."""
    while w.env.head < w.env.tail:
        _drop_first(w)


@compiled
def _take_in(w: World) -> None:
    """Take in the requests that have arrived."""
    env, settings = w.env, w.settings
    if settings.arrivals == GIVEN:
        while env.arrival_s <= env.now_s:
            request = w.given[env.sent - 1]
            _offer(w, request.deadline_s, request.payload_bytes, True)
            next_given(w)
    else:
        while env.arrival_s <= env.now_s:
            _offer(w, env.sent_s + settings.slo_s, settings.payload_bytes, False)
            next_request(w)


@compiled
def _offer(w: World, due_s: float, payload_bytes: float, sorts: bool) -> None:
    """Take in the request that has arrived."""
    env, metrics = w.env, w.metrics
    delay_s = env.arrival_s - env.sent_s
    env.delay_sum_s += delay_s
    env.delay_max_s = max(env.delay_max_s, delay_s)
    env.payload_sum_bytes += payload_bytes
    hopeless = due_s - env.arrival_s < w.settings.hopeless_below_s
    metrics.offered += 1
    metrics.hopeless += hopeless
    if not has_room(w):
        metrics.overflowed += 1
        _drop(w, env.sent - 1, env.sent_s, hopeless, True)
        return
    position = place(w) if sorts else env.tail
    waiting = w.queue[position & env.ring]
    waiting.row, waiting.sent_s, waiting.hopeless = env.sent - 1, env.sent_s, hopeless
    env.tail += 1


@compiled
def _drop_expired(w: World) -> None:
    env = w.env
    due_before_s = env.now_s - w.settings.drop_grace_s
    while env.head < env.tail and deadline_s(w, env.head) < due_before_s:
        _drop_first(w)


@compiled
def _drop_first(w: World) -> None:
    first = w.queue[w.env.head & w.env.ring]
    _drop(w, first.row, first.sent_s, first.hopeless, False)
    w.env.head += 1


@compiled
def _drop(w: World, row: int, sent_s: float, hopeless: bool, overflowed: bool) -> None:
    w.metrics.dropped += 1
    w.metrics.avoidable_violations += not hopeless
    if w.env.ended < len(w.ledger):
        entry = w.ledger[w.env.ended]
        entry.row, entry.sent_s = row, sent_s
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
                bring_forward(w, size)
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
        on_time = finished_s <= deadline_s(w, position)
        if on_time:
            metrics.on_time += 1
        else:
            metrics.late += 1
            metrics.avoidable_violations += not request.hopeless
        env.latency_sum_s += finished_s - request.sent_s
        if env.ended < len(w.ledger):
            entry = w.ledger[env.ended]
            entry.row, entry.sent_s = request.row, request.sent_s
            entry.started_s, entry.finished_s = replica.started_s, finished_s
            entry.outcome, entry.overflowed = _ON_TIME if on_time else _LATE, False
            entry.batch_size, entry.replica = replica.size, replica.id
            env.ended += 1
    env.running -= replica.size
    env.batches += 1
    env.service_sum_s += finished_s - replica.started_s
    env.answered += replica.size
