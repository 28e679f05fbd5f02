"""The queue: a ring in the order of the deadlines, equal ones by id, that grows as it fills.

What the kernels draw arrives in that order; listed requests take their place from the end, and
so do those that come back from a batch whose replica died. A batch is a run of positions at the
head, so requests stay where they are while they run. Under first in, first out, a batch's requests
are moved to the head before.
"""

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.records import World
from sponge_env.core.settings import LISTED

ATTEMPTS = 3  # A request fails with so many replicas that died: it may be why
INITIAL_RING = 64  # Places that a ring begins with, if there is room for so many


@compiled
def deadline_s(w: World, position: int) -> float:
    """Return the deadline of the request at a position of the queue."""
    waiting = w.queue[position & w.stage.ring]
    return due_s(w, waiting.row, waiting.sent_s)


@compiled
def due_s(w: World, row: int, sent_s: float) -> float:
    """Return the deadline of the request at a place in the order of arrival."""
    if w.settings.arrival_kind == LISTED:
        return w.requests[row].deadline_s
    return sent_s + w.settings.slo_s


@compiled
def push(w: World, row: int, sent_s: float, hopeless: bool, retries: int, joined_s: float) -> bool:
    """Put a request, or a task of it, into the queue; return False if there is no room."""
    # ``row`` is its place in the order of arrival, ``retries`` counts its batches whose replica
    # died; at ``joined_s`` it begins to wait.
    stage = w.stage
    if stage.tail - stage.oldest > stage.ring:
        _close_holes(w)
        _grow(w)
        if stage.tail - stage.oldest > stage.ring:
            return False
    # Drawn requests share one SLO and one payload: the last to arrive has the latest deadline.
    # Later stages get their tasks in the order in which batches end.
    position = stage.tail
    if w.place > 0 or w.settings.arrival_kind == LISTED:
        position = _place_of(w, row, sent_s)
        ring = stage.ring
        for k in range(stage.tail, position, -1):
            w.queue[k & ring] = w.queue[(k - 1) & ring]
    waiting = w.queue[position & stage.ring]
    waiting.row, waiting.sent_s, waiting.hopeless = row, sent_s, hopeless
    waiting.retries = retries
    stage.tail += 1
    stage.waited_s -= joined_s
    return True


@inlined
def _grow(w: World) -> None:
    """Double the ring, if that is possible and more than half of it is full."""
    stage, places = w.stage, w.stage.ring + 1
    if places < len(w.queue) and 2 * (stage.tail - stage.oldest) > places:
        for position in range(stage.oldest, stage.tail):
            if position & places:
                w.queue[position & (2 * places - 1)] = w.queue[position & stage.ring]
        stage.ring = 2 * places - 1


@inlined
def _close_holes(w: World) -> None:
    """Move the running requests up to the head, over the places of those that have ended."""
    # Otherwise no place after a batch that runs for long could be used again.
    ring, end = w.stage.ring, w.stage.head
    k = _last_run(w, end)
    while k >= 0:
        replica = w.replicas[k]
        first = end - replica.batch_size
        for place in range(replica.batch_size - 1, -1, -1):
            w.queue[(first + place) & ring] = w.queue[(replica.first + place) & ring]
        replica.first = end = first
        k = _last_run(w, end)
    w.stage.oldest = end


@compiled
def _last_run(w: World, end: int) -> int:
    last = -1
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        runs = replica.batch_size and replica.first < end
        if runs and (last < 0 or replica.first > w.replicas[last].first):
            last = k
    return last


@inlined
def _place_of(w: World, row: int, sent_s: float) -> int:
    """Return the position of a request in the queue's order."""
    # The search begins at the end: the last to come is mostly due last, too.
    first, last, middle = w.stage.head, w.stage.tail, w.stage.tail - 1
    while first < last:
        if _precedes(w, row, sent_s, middle):
            last = middle
        else:
            first = middle + 1
        middle = (first + last) // 2
    return last


@inlined
def _precedes(w: World, row: int, sent_s: float, position: int) -> bool:
    one_s, other_s = due_s(w, row, sent_s), deadline_s(w, position)
    if one_s != other_s:
        return one_s < other_s
    other = w.queue[position & w.stage.ring].row
    if w.settings.arrival_kind == LISTED:
        return w.requests[row].id < w.requests[other].id
    return row < other


@compiled
def remove(w: World, row: int, sent_s: float) -> None:
    """Take a request's waiting tasks out of the queue, which are found by its deadline."""
    stage, due = w.stage, due_s(w, row, sent_s)
    kept = position = stage.head
    while position < stage.tail and deadline_s(w, position) <= due:
        kept += w.queue[position & stage.ring].row != row
        position += 1
    gone = position - kept
    if gone:
        # What is before them moves back into their places.
        target = position - 1
        for place in range(position - 1, stage.head - 1, -1):
            if w.queue[place & stage.ring].row != row:
                w.queue[target & stage.ring] = w.queue[place & stage.ring]
                target -= 1
        stage.head += gone
        stage.waited_s += gone * w.env.now_s


@inlined
def bring_forward(w: World, count: int) -> int:
    """Bring ``count`` requests that have waited longest to the queue's head; return how many.

    They are fewer if one of them is on its last attempt, and so runs alone.
    """
    stage, ring = w.stage, w.stage.ring
    # A selection, not a sort: a batch takes few of many.
    for front in range(stage.head, stage.head + count):
        oldest = front
        for position in range(front + 1, stage.tail):
            if _came_before(w, w.queue[position & ring].row, w.queue[oldest & ring].row):
                oldest = position
        moved = w.queue[oldest & ring]
        row, sent_s, hopeless, retries = moved.row, moved.sent_s, moved.hopeless, moved.retries
        if retries >= ATTEMPTS - 1 and front > stage.head:
            return front - stage.head
        for k in range(oldest, front, -1):
            w.queue[k & ring] = w.queue[(k - 1) & ring]
        moved = w.queue[front & ring]
        moved.row, moved.sent_s, moved.hopeless, moved.retries = row, sent_s, hopeless, retries
        if retries >= ATTEMPTS - 1:
            return 1
    return count


@inlined
def _came_before(w: World, row: int, other: int) -> bool:
    """Return whether one request arrived before another; ties by id."""
    if w.settings.arrival_kind != LISTED:
        return row < other
    one, two = w.requests[row], w.requests[other]
    if one.arrival_s != two.arrival_s:
        return one.arrival_s < two.arrival_s
    return one.id < two.id
