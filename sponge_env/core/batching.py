"""The moves of a request: offered, batched, answered, retried, failed, dropped or cancelled.

At any moment ``offered = on_time + late + dropped + failed + cancelled + queued + running``. A
request for which the queue has no room is dropped and counted as overflowed.
"""

import math

from sponge_env.core import pipeline
from sponge_env.core.arrivals import next_listed, next_request
from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.overload import size_in_time
from sponge_env.core.queue import ATTEMPTS, bring_forward, deadline_s, due_s, push, remove
from sponge_env.core.records import LedgerRow, ReplicaState, Waiting, World
from sponge_env.core.service import planned_s
from sponge_env.core.settings import LISTED
from sponge_env.interfaces import Outcome

ON_TIME, LATE = int(Outcome.ON_TIME), int(Outcome.LATE)
DROPPED, FAILED = int(Outcome.DROPPED), int(Outcome.FAILED)
CANCELLED = int(Outcome.CANCELLED)


@compiled
def take_in(w: World, until_s: float) -> None:
    """Take in the requests that have arrived by a moment that is now or past."""
    env, settings = w.env, w.settings
    if settings.arrival_kind == LISTED:
        while env.arrival_s <= until_s:
            request = w.requests[env.sent - 1]
            entry = pipeline.at(w, request.enters)
            offer(entry, request.deadline_s, request.payload_bytes, True)
            next_listed(w)
    else:
        while env.arrival_s <= until_s:
            offer(w, env.sent_s + settings.slo_s, settings.network.payload_bytes, True)
            next_request(w)


@compiled
def offer(w: World, due_s: float, payload_bytes: float, welcome: bool) -> bool:
    """Take in the request that has arrived in this stage; return False if it is dropped at once."""
    # It is dropped if there is no room, or if it is not ``welcome``.
    env, metrics = w.env, w.metrics
    delay_s = env.arrival_s - env.sent_s
    env.delay_sum_s += delay_s
    env.delay_max_s = max(env.delay_max_s, delay_s)
    env.payload_sum_bytes += payload_bytes
    # Judged on arrival: nothing that a controller does later makes a request hopeless.
    hopeless = due_s - env.arrival_s < w.model.hopeless_below_s
    metrics.offered += 1
    metrics.hopeless += hopeless
    fits = welcome and (not pipeline.staged(w) or pipeline.enter(w, env.sent - 1))
    w.stage.refused += not fits
    if fits and pipeline.join(w, env.sent - 1, env.sent_s, hopeless, env.arrival_s):
        return True
    _drop(w, env.sent - 1, env.sent_s, hopeless, 0, welcome)
    return False


@compiled
def drop_expired(w: World) -> None:
    """Drop the waiting requests that the policy gives up now."""
    stage = w.stage
    while stage.head < stage.tail and is_expired(w, deadline_s(w, stage.head)):
        _drop_first(w)


@inlined
def is_expired(w: World, due_s: float) -> bool:
    """Return whether the policy gives up what waits with this deadline."""
    return due_s < w.env.now_s + w.model.drop_below_s


def is_on_time(due_s: float, finished_s: float) -> bool:
    """Return whether an answer at a moment meets a deadline."""
    return finished_s <= due_s


_is_on_time = inlined(is_on_time)  # For compiled code


@compiled
def cancel(w: World, row: int, sent_s: float) -> None:
    """Cancel a request that has not ended; if it runs, its answer will be discarded."""
    if pipeline.staged(w):
        _close_cancelled(w, row, sent_s, pipeline.leave(w, row, sent_s))
        return
    waiting = w.stage.tail - w.stage.head
    remove(w, row, sent_s)
    if w.stage.tail - w.stage.head < waiting:
        _close_cancelled(w, row, sent_s, 0)
    else:
        w.requests[row].cancelled = True


@compiled
def _close_cancelled(w: World, row: int, sent_s: float, attempts: int) -> None:
    w.metrics.cancelled += 1
    _enter_unanswered(w, row, sent_s, CANCELLED, attempts, False, False)


@inlined
def _is_cancelled(w: World, row: int) -> bool:
    return w.settings.arrival_kind == LISTED and w.requests[row].cancelled


@inlined
def abandon(w: World) -> None:
    """Drop all that still waits in any stage: the episode is over."""
    for k in range(len(w.stages)):
        while w.stages[k].head < w.stages[k].tail:
            _drop_first(pipeline.at(w, k))


@inlined
def _drop_first(w: World) -> None:
    first = w.queue[w.stage.head & w.stage.ring]
    row, sent_s, hopeless, batches = first.row, first.sent_s, first.hopeless, first.retries
    if pipeline.staged(w):
        batches = pipeline.leave(w, row, sent_s)
    else:
        w.stage.head += 1
        w.stage.waited_s += w.env.now_s
    _drop(w, row, sent_s, hopeless, batches, False)


@compiled
def _drop(w: World, row: int, sent_s: float, hopeless: bool, attempts: int, no_room: bool) -> None:
    w.stage.dropped += 1
    w.metrics.dropped += 1
    w.metrics.overflowed += no_room
    w.metrics.avoidable_violations += not hopeless
    _enter_unanswered(w, row, sent_s, DROPPED, attempts, no_room, hopeless)


@compiled
def _enter_unanswered(
    w: World, row: int, sent_s: float, outcome: int, attempts: int, overflowed: bool, hopeless: bool
) -> None:
    """Enter a request into the ledger that ends now without an answer."""
    if w.env.ended < len(w.ledger):
        entry = _entry(w, row, sent_s, outcome, hopeless)
        entry.started_s, entry.finished_s, entry.overflowed = math.nan, w.env.now_s, overflowed
        entry.batch_size, entry.replica, entry.attempts = 0, -1, attempts


@inlined
def _entry(w: World, row: int, sent_s: float, outcome: int, hopeless: bool) -> LedgerRow:
    entry = w.ledger[w.env.ended]
    w.env.ended += 1
    entry.row, entry.sent_s, entry.outcome, entry.hopeless = row, sent_s, outcome, hopeless
    entry.stage, entry.accuracy, entry.overflowed = w.place, math.nan, False
    return entry


@compiled
def _shed(w: World, batch_max: int) -> int:
    """Drop requests until the first one can be met; return the size of the batch that meets it."""
    stage, size = w.stage, 0
    while size == 0 and stage.head < stage.tail:
        size = size_in_time(w, deadline_s(w, stage.head), batch_max, stage.tail - stage.head)
        if size == 0:
            _drop_first(w)
    return size


@compiled
def form_batch(w: World, replica: ReplicaState, batch_max: int) -> int:
    """Give a replica the earliest requests as a batch; return how many, 0 if none waits."""
    stage = w.stage
    drop_expired(w)
    count = min(batch_max, stage.tail - stage.head)
    if w.settings.sheds:
        count = _shed(w, batch_max)
    if count:
        if w.settings.fifo:
            count = bring_forward(w, count)
        elif w.settings.arrival_kind == LISTED:
            count = _apart(w, count)
        # The batch stays where it lies in the ring, and only the head moves on.
        replica.batch_size, replica.first = count, stage.head
        replica.started_s, replica.planned_end_s = w.env.now_s, math.nan
        replica.variant = _choose_variant(w, count)
        stage.switches += replica.variant != stage.last_variant
        stage.last_variant = replica.variant
        if pipeline.staged(w):
            for position in range(stage.head, stage.head + count):
                pipeline.start_task(w, w.queue[position & stage.ring].row)
        stage.head += count
        stage.running += count
        stage.taken += count
        # The moment at which each wait began was subtracted when the request joined the queue.
        stage.waited_s += count * w.env.now_s
    return count


@compiled
def _apart(w: World, count: int) -> int:
    """Return how many of the first requests to batch: on its last attempt, each runs alone."""
    # If it is why replicas die, no other fails for it.
    first = w.stage.head
    for position in range(first, first + count):
        if w.queue[position & w.stage.ring].retries >= ATTEMPTS - 1:
            return max(1, position - first)
    return count


@inlined
def _choose_variant(w: World, count: int) -> int:
    """Return which model runs a batch of the queue's first requests."""
    # The most accurate one that the slack of the most urgent request allows (SlackFit, of
    # SuperServe: Khare et al., NSDI 2025) where the allocation lets batches choose.
    stage, model = w.stage, w.model
    variant = stage.variant
    if variant < 0:
        slack_s = deadline_s(w, stage.head) - w.env.now_s
        variant = model.variants - 1
        while variant > 0 and planned_s(w, variant, count, stage.planned_cores) > slack_s:
            variant -= 1
    return variant


@compiled
def answer(w: World, replica: ReplicaState, finished_s: float) -> None:
    """Close a batch that has ended: answer its requests, or pass their tasks on."""
    stage = w.stage
    accuracy = w.numbers[w.model.accuracy_at + replica.variant]
    for position in range(replica.first, replica.first + replica.batch_size):
        request = w.queue[position & stage.ring]
        if pipeline.staged(w):
            _end_task(w, request, replica, accuracy, finished_s)
        else:
            _answer(w, request, replica, accuracy, finished_s, request.retries + 1)
    stage.finished += 1
    stage.service_sum_s += finished_s - replica.started_s
    stage.answered += replica.batch_size
    stage.answered_by[replica.variant] += replica.batch_size
    _leave(w, replica)


@inlined
def _end_task(
    w: World, request: Waiting, replica: ReplicaState, accuracy: float, finished_s: float
) -> None:
    """Pass a finished task on, and answer its request if it was the last."""
    row, sent_s, hopeless = request.row, request.sent_s, request.hopeless
    if not pipeline.end_task(w, row):
        return  # its request was given up meanwhile
    if not pipeline.pass_on(w, request, accuracy, finished_s):
        _drop(w, row, sent_s, hopeless, pipeline.leave(w, row, sent_s), True)
    elif pipeline.opened(w, row).left == 0:
        accuracy = pipeline.accuracy_of(w, row)
        batches = pipeline.leave(w, row, sent_s)
        _answer(w, request, replica, accuracy, finished_s, batches)


@compiled
def _answer(
    w: World, request: Waiting, replica: ReplicaState, accuracy: float, end_s: float, attempts: int
) -> None:
    env, metrics = w.env, w.metrics
    if _is_cancelled(w, request.row):
        _close_cancelled(w, request.row, request.sent_s, attempts)
        return
    on_time = _is_on_time(due_s(w, request.row, request.sent_s), end_s)
    if on_time:
        metrics.on_time += 1
        env.accuracy_on_time += accuracy
    else:
        metrics.late += 1
        metrics.avoidable_violations += not request.hopeless
    env.latency_sum_s += end_s - request.sent_s
    env.accuracy_sum += accuracy
    _enter(w, request, replica, end_s, ON_TIME if on_time else LATE, accuracy, attempts)


@inlined
def give_back(w: World, replica: ReplicaState, finished_s: float) -> None:
    """End a batch whose replica died: its requests wait again, or have failed."""
    # Those have that have no budget left, or no further attempt.
    for k in range(replica.batch_size):
        position = replica.first + k  # which moves when the queue makes room
        request = w.queue[position & w.stage.ring]
        if not pipeline.staged(w) or pipeline.end_task(w, request.row):
            _retry(w, request, replica, finished_s)
    _leave(w, replica)


@compiled
def _retry(w: World, request: Waiting, replica: ReplicaState, finished_s: float) -> None:
    row, sent_s, hopeless = request.row, request.sent_s, request.hopeless
    attempts = request.retries + 1
    if _is_cancelled(w, row):
        _close_cancelled(w, row, sent_s, attempts)
    elif due_s(w, row, sent_s) <= finished_s or attempts >= ATTEMPTS:
        if pipeline.staged(w):
            attempts = pipeline.leave(w, row, sent_s)
        w.metrics.failed += 1
        w.metrics.avoidable_violations += not hopeless
        _enter(w, request, replica, finished_s, FAILED, math.nan, attempts)
    elif not push(w, row, sent_s, hopeless, attempts, finished_s):
        if pipeline.staged(w):
            attempts = pipeline.leave(w, row, sent_s)
        _drop(w, row, sent_s, hopeless, attempts, True)


@compiled
def _enter(
    w: World, request: Waiting, replica: ReplicaState, finished_s: float, outcome: int,
    accuracy: float, attempts: int,
) -> None:  # fmt: skip
    if w.env.ended < len(w.ledger):
        entry = _entry(w, request.row, request.sent_s, outcome, request.hopeless)
        entry.started_s, entry.finished_s = replica.started_s, finished_s
        entry.batch_size, entry.replica = replica.batch_size, replica.id
        entry.accuracy, entry.attempts = accuracy, attempts


@inlined
def _leave(w: World, replica: ReplicaState) -> None:
    w.stage.running -= replica.batch_size
    w.stage.batches += 1
    w.stage.batched += replica.batch_size


@compiled
def rewind(w: World) -> None:
    """Start over in an empty ring, so that a short queue stays in few cache lines."""
    stage = w.stage
    if stage.running == 0 and stage.head == stage.tail:
        stage.head = stage.tail = stage.oldest = 0
