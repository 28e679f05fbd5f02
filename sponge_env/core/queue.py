"""The queue: a ring in the order of the deadlines, equal ones by id.

What the kernels draw arrives in that order; listed requests take their place from the end, and
so do those that come back from a batch whose replica died. A batch is a run of positions at the
head, so requests stay where they are while they run; first in, first out, those that have
waited longest are brought to the head first.
"""

from __future__ import annotations

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.records import World
from sponge_env.core.settings import LISTED


@compiled
def deadline_s(w: World, position: int) -> float:
    """Return the deadline of the request at a position of the queue."""
    waiting = w.queue[position & w.stage.ring]
    if w.settings.arrival_kind == LISTED:
        return w.requests[waiting.row].deadline_s
    return waiting.sent_s + w.settings.slo_s


@compiled
def last_deadline_s(w: World) -> float:
    """Return the latest deadline of the requests that wait or run; 0 if there is none."""
    stage, last_s = w.stage, 0.0
    if stage.head < stage.tail:
        last_s = max(last_s, deadline_s(w, stage.tail - 1))
    for k in range(stage.replicas):
        first = w.replicas[k].first
        for position in range(first, first + w.replicas[k].batch_size):
            last_s = max(last_s, deadline_s(w, position))
    return last_s


@compiled
def push(w: World, row: int, sent_s: float, hopeless: bool, retries: int) -> bool:
    """Put a request into the queue; return False if there is no room.

    Args:
        w: The world.
        row: The request's place in the order of arrival.
        sent_s: When it was sent.
        hopeless: Whether it counts as hopeless.
        retries: Batches that died under it.
    """
    stage = w.stage
    if not _has_room(w):
        return False
    # One SLO and one payload for all: what arrives last has the latest deadline.
    position = _place(w, row) if w.settings.arrival_kind == LISTED else stage.tail
    waiting = w.queue[position & stage.ring]
    waiting.row, waiting.sent_s, waiting.hopeless = row, sent_s, hopeless
    waiting.retries = retries
    stage.tail += 1
    return True


@inlined
def _has_room(w: World) -> bool:
    stage = w.stage
    if stage.tail - stage.oldest > stage.ring:
        _find_oldest(w)
    return stage.tail - stage.oldest <= stage.ring


@inlined
def _find_oldest(w: World) -> None:
    stage = w.stage
    stage.oldest = stage.head
    for k in range(stage.replicas):
        if w.replicas[k].batch_size:
            stage.oldest = min(stage.oldest, w.replicas[k].first)


@inlined
def _place(w: World, row: int) -> int:
    """Make way for a request; return its position."""
    stage, position = w.stage, w.stage.tail
    while position > stage.head and _precedes(w, row, position - 1):
        w.queue[position & stage.ring] = w.queue[(position - 1) & stage.ring]
        position -= 1
    return position


@inlined
def _precedes(w: World, row: int, position: int) -> bool:
    """Return whether a request goes before the one at a position."""
    one, other = w.requests[row], w.requests[w.queue[position & w.stage.ring].row]
    if one.deadline_s == other.deadline_s:
        return one.id < other.id
    return one.deadline_s < other.deadline_s


@inlined
def bring_forward(w: World, count: int) -> None:
    """Bring the ``count`` requests that have waited longest to the queue's head."""
    stage = w.stage
    for front in range(stage.head, stage.head + count):
        oldest = front
        for position in range(front + 1, stage.tail):
            if w.queue[position & stage.ring].row < w.queue[oldest & stage.ring].row:
                oldest = position
        _rotate(w, front, oldest)


@inlined
def _rotate(w: World, front: int, position: int) -> None:
    """Move a request forward to ``front``; those that it passes move back by one."""
    ring = w.stage.ring
    moved = w.queue[position & ring]
    row, sent_s, hopeless, retries = moved.row, moved.sent_s, moved.hopeless, moved.retries
    for k in range(position, front, -1):
        w.queue[k & ring] = w.queue[(k - 1) & ring]
    moved = w.queue[front & ring]
    moved.row, moved.sent_s, moved.hopeless, moved.retries = row, sent_s, hopeless, retries
