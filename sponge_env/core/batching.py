"""The moves of a request: offered, batched, answered, retried, failed or dropped.

At any moment ``offered = on_time + late + dropped + failed + queued + running``. A request for
which the queue has no room is dropped and counted as overflowed.
"""

from __future__ import annotations

import math

from sponge_env.core.arrivals import next_listed, next_request
from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.queue import bring_forward, deadline_s, push
from sponge_env.core.records import ReplicaState, Waiting, World
from sponge_env.core.settings import LISTED
from sponge_env.interfaces import Outcome

ON_TIME, LATE = int(Outcome.ON_TIME), int(Outcome.LATE)
DROPPED, FAILED = int(Outcome.DROPPED), int(Outcome.FAILED)


@inlined
def any_pending(w: World) -> bool:
    """Return whether any request waits or runs."""
    return w.stage.running > 0 or w.stage.head < w.stage.tail


@compiled
def take_in(w: World, until_s: float) -> None:
    """Take in the requests that have arrived by a moment that is now or past."""
    env, settings = w.env, w.settings
    if settings.arrival_kind == LISTED:
        while env.arrival_s <= until_s:
            request = w.requests[env.sent - 1]
            _offer(w, request.deadline_s, request.payload_bytes)
            next_listed(w)
    else:
        while env.arrival_s <= until_s:
            _offer(w, env.sent_s + settings.slo_s, settings.network.payload_bytes)
            next_request(w)


@compiled
def _offer(w: World, due_s: float, payload_bytes: float) -> None:
    """Take in the request that has arrived."""
    env, metrics = w.env, w.metrics
    delay_s = env.arrival_s - env.sent_s
    env.delay_sum_s += delay_s
    env.delay_max_s = max(env.delay_max_s, delay_s)
    env.payload_sum_bytes += payload_bytes
    hopeless = due_s - env.arrival_s < w.settings.hopeless_below_s
    metrics.offered += 1
    metrics.hopeless += hopeless
    if not push(w, env.sent - 1, env.sent_s, hopeless, 0):
        metrics.overflowed += 1
        _drop(w, env.sent - 1, env.sent_s, hopeless, 0, True)


@compiled
def drop_expired(w: World) -> None:
    """Drop the waiting requests that the policy gives up now."""
    stage = w.stage
    while stage.head < stage.tail and is_expired(w, deadline_s(w, stage.head)):
        _drop_first(w)


@inlined
def is_expired(w: World, due_s: float) -> bool:
    """Return whether the policy gives up what waits with this deadline."""
    return due_s < w.env.now_s - w.settings.drop_grace_s


@inlined
def is_on_time(due_s: float, finished_s: float) -> bool:
    """Return whether an answer at a moment meets a deadline."""
    return finished_s <= due_s


@inlined
def abandon(w: World) -> None:
    """Drop all that still waits: the episode is over."""
    while w.stage.head < w.stage.tail:
        _drop_first(w)


@inlined
def _drop_first(w: World) -> None:
    first = w.queue[w.stage.head & w.stage.ring]
    _drop(w, first.row, first.sent_s, first.hopeless, first.retries, False)
    w.stage.head += 1


@compiled
def _drop(
    w: World, row: int, sent_s: float, hopeless: bool, attempts: int, overflowed: bool
) -> None:
    w.metrics.dropped += 1
    w.metrics.avoidable_violations += not hopeless
    if w.env.ended < len(w.ledger):
        entry = w.ledger[w.env.ended]
        entry.row, entry.sent_s = row, sent_s
        entry.started_s, entry.finished_s = math.nan, w.env.now_s
        entry.outcome, entry.overflowed = DROPPED, overflowed
        entry.batch_size, entry.replica, entry.attempts = 0, -1, attempts
        w.env.ended += 1


@compiled
def form_batch(w: World, replica: ReplicaState, batch_max: int) -> int:
    """Give a replica the earliest requests as a batch; return how many, 0 if none waits."""
    stage = w.stage
    drop_expired(w)
    count = min(batch_max, stage.tail - stage.head)
    if count:
        if w.settings.fifo:
            bring_forward(w, count)
        replica.batch_size, replica.first = count, stage.head
        replica.started_s, replica.planned_end_s = w.env.now_s, math.nan
        stage.head += count
        stage.running += count
    return count


@compiled
def answer(w: World, replica: ReplicaState, finished_s: float) -> None:
    """Close the requests of a batch that has ended: on time or late."""
    env, metrics = w.env, w.metrics
    for position in range(replica.first, replica.first + replica.batch_size):
        request = w.queue[position & w.stage.ring]
        on_time = is_on_time(deadline_s(w, position), finished_s)
        if on_time:
            metrics.on_time += 1
        else:
            metrics.late += 1
            metrics.avoidable_violations += not request.hopeless
        env.latency_sum_s += finished_s - request.sent_s
        _enter(w, request, replica, finished_s, ON_TIME if on_time else LATE)
    env.finished += 1
    env.service_sum_s += finished_s - replica.started_s
    env.answered += replica.batch_size
    _leave(w, replica)


@inlined
def give_back(w: World, replica: ReplicaState, finished_s: float) -> None:
    """End a batch whose replica died.

    Requests with budget left wait again; the others have failed.
    """
    metrics = w.metrics
    for k in range(replica.batch_size):
        position = replica.first + k  # which moves when the queue makes room
        request = w.queue[position & w.stage.ring]
        row, sent_s, hopeless = request.row, request.sent_s, request.hopeless
        retries = request.retries + 1
        if deadline_s(w, position) <= finished_s:
            metrics.failed += 1
            metrics.avoidable_violations += not hopeless
            _enter(w, request, replica, finished_s, FAILED)
        elif not push(w, row, sent_s, hopeless, retries):
            metrics.overflowed += 1
            _drop(w, row, sent_s, hopeless, retries, True)
    _leave(w, replica)


@compiled
def _enter(
    w: World, request: Waiting, replica: ReplicaState, finished_s: float, outcome: int
) -> None:
    """Enter how a request ended into the ledger."""
    if w.env.ended < len(w.ledger):
        entry = w.ledger[w.env.ended]
        entry.row, entry.sent_s = request.row, request.sent_s
        entry.started_s, entry.finished_s = replica.started_s, finished_s
        entry.outcome, entry.overflowed = outcome, False
        entry.batch_size, entry.replica = replica.batch_size, replica.id
        entry.attempts = request.retries + 1
        w.env.ended += 1


@inlined
def _leave(w: World, replica: ReplicaState) -> None:
    w.stage.running -= replica.batch_size
    w.env.batches += 1
    w.env.batched += replica.batch_size


@compiled
def rewind(w: World) -> None:
    """Begin anew in the ring if it is empty: an ever nearly empty queue needs few cache lines."""
    stage = w.stage
    if stage.running == 0 and stage.head == stage.tail:
        stage.head = stage.tail = stage.oldest = 0
