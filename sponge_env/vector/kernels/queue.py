"""The queue. Repeats :mod:`sponge_env.serving.edf` and :mod:`sponge_env.serving.fifo`.

It is a ring in the order of the deadlines, equal ones by id. What the kernels draw arrives in
that order; requests that are given take their place from the end. No batch comes back, for
simulated replicas do not die. A batch is a run of positions at the head, so requests stay
where they are while they run; first in, first out, those that have waited longest are brought
to the head first.
"""

from __future__ import annotations

from sponge_env.vector.compiler import compiled
from sponge_env.vector.layout import World
from sponge_env.vector.settings import GIVEN


@compiled
def deadline_s(w: World, position: int) -> float:
    """Return the deadline of the request at a position of the queue."""
    waiting = w.queue[position & w.env.ring]
    if w.settings.arrivals == GIVEN:
        return w.given[waiting.row].deadline_s
    return waiting.sent_s + w.settings.slo_s


@compiled
def last_deadline_s(w: World) -> float:
    """Return the latest deadline of the requests that wait or run; 0 if there is none."""
    env, last_s = w.env, 0.0
    if env.head < env.tail:
        last_s = max(last_s, deadline_s(w, env.tail - 1))
    for k in range(env.replicas):
        first = w.replicas[k].first
        for position in range(first, first + w.replicas[k].size):
            last_s = max(last_s, deadline_s(w, position))
    return last_s


@compiled
def has_room(w: World) -> bool:
    """Return whether another request finds room."""
    env = w.env
    if env.tail - env.oldest > env.ring:
        _find_oldest(w)
    return env.tail - env.oldest <= env.ring


@compiled
def _find_oldest(w: World) -> None:
    env = w.env
    env.oldest = env.head
    for k in range(env.replicas):
        if w.replicas[k].size:
            env.oldest = min(env.oldest, w.replicas[k].first)


@compiled
def place(w: World) -> int:
    """Make way for the request that has arrived; return its position."""
    env, position = w.env, w.env.tail
    while position > env.head and _precedes(w, position - 1):
        w.queue[position & env.ring] = w.queue[(position - 1) & env.ring]
        position -= 1
    return position


@compiled
def _precedes(w: World, position: int) -> bool:
    """Return whether the request that has arrived goes before another one."""
    one, other = w.given[w.env.sent - 1], w.given[w.queue[position & w.env.ring].row]
    if one.deadline_s == other.deadline_s:
        return one.id < other.id
    return one.deadline_s < other.deadline_s


@compiled
def bring_forward(w: World, size: int) -> None:
    """Bring the ``size`` requests that have waited longest to the queue's head."""
    env = w.env
    for front in range(env.head, env.head + size):
        oldest = front
        for position in range(front + 1, env.tail):
            if w.queue[position & env.ring].row < w.queue[oldest & env.ring].row:
                oldest = position
        _rotate(w, front, oldest)


@compiled
def _rotate(w: World, front: int, position: int) -> None:
    """Move a request forward to ``front``; those that it passes move back by one."""
    ring = w.env.ring
    moved = w.queue[position & ring]
    row, sent_s, hopeless = moved.row, moved.sent_s, moved.hopeless
    for k in range(position, front, -1):
        w.queue[k & ring] = w.queue[(k - 1) & ring]
    moved = w.queue[front & ring]
    moved.row, moved.sent_s, moved.hopeless = row, sent_s, hopeless
