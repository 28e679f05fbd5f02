"""A request on its way through several stages: its tasks, where they lead, and its end.

A request enters the first stage, or that of its model, with one task. A task that is done leads at
once to as many tasks in every next stage as its fan-out says; a stage that follows several others
gets one task when all that lead to it are done. The request is answered when its last task is.
Where there is one stage, a request is its own task, and no place is kept for it.
"""

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.queue import deadline_s, push, remove
from sponge_env.core.records import OpenRequest, Waiting, World
from sponge_env.core.rng import mixed_uniform
from sponge_env.core.settings import LISTED

FREE = 0  # The ``request`` of a free place, as of memory that was never used
_INITIAL_PLACES = 8  # If there is room for so many


@inlined
def at(w: World, place: int) -> World:
    """Return the environment as another stage sees it."""
    stage, model, queue = w.stages[place], w.models[place], w.all_queues[place]
    replicas, pending = w.all_replicas[place], w.all_pending[place]
    return World(place, stage, model, replicas, pending, queue, *w[6:])


@inlined
def last_deadline_s(w: World) -> float:
    """Return the latest deadline of what waits or runs in any stage; 0 if there is none."""
    last_s = 0.0
    for k in range(len(w.stages)):
        stage, ends = at(w, k), w.stages[k]
        if ends.head < ends.tail:
            last_s = max(last_s, deadline_s(stage, ends.tail - 1))
        for row in range(ends.replicas):
            first = stage.replicas[row].first
            for position in range(first, first + stage.replicas[row].batch_size):
                last_s = max(last_s, deadline_s(stage, position))
    return last_s


@inlined
def staged(w: World) -> bool:
    """Return whether there are several stages."""
    return len(w.stages) > 1


@inlined
def clear(w: World) -> None:
    """Begin with no request in the system and few places."""
    w.env.opened = w.env.opened_running = 0
    if staged(w):
        for k in range(w.env.places + 1):
            w.opened[k].request = FREE
        w.env.places = min(_INITIAL_PLACES, len(w.opened)) - 1


@inlined
def opened(w: World, row: int) -> OpenRequest:
    """Return the place for a request, which may be free or have another request."""
    return w.opened[row & w.env.places]


@inlined
def enter(w: World, row: int) -> bool:
    """Open a request with a task in this stage; return False if there is no room."""
    while opened(w, row).request != FREE and w.env.places + 1 < len(w.opened):
        _double(w)
    place = opened(w, row)
    if place.request != FREE:
        return False
    place.request, place.running, place.batches, place.joined = row + 1, 0, 0, 0
    for k in range(len(w.stages)):
        place.tasks[k] = place.done[k] = 0
        place.accuracy[k] = 0.0
    place.tasks[w.place] = place.left = 1
    w.env.opened += 1
    return True


@inlined
def _double(w: World) -> None:
    places = w.env.places + 1
    for k in range(places):
        row = w.opened[k].request - 1
        if row >= 0 and row & places:
            w.opened[k + places] = w.opened[k]
            w.opened[k].request = FREE
    w.env.places = 2 * places - 1


@inlined
def start_task(w: World, row: int) -> None:
    """Note that a task of a request has gone into a batch."""
    place = opened(w, row)
    w.env.opened_running += place.running == 0
    place.running += 1
    place.batches += 1


@inlined
def end_task(w: World, row: int) -> bool:
    """Note that a batch with a task has ended; return False if its request was given up."""
    place = opened(w, row)
    if place.request != row + 1:
        return False
    place.running -= 1
    w.env.opened_running -= place.running == 0
    return True


@compiled
def join(w: World, row: int, sent_s: float, hopeless: bool, joined_s: float) -> bool:
    """Let a request or a task of it wait in a stage; return False if there is no room."""
    w.stage.joined += 1
    return push(w, row, sent_s, hopeless, 0, joined_s)


@compiled
def pass_on(w: World, request: Waiting, accuracy: float, done_s: float) -> bool:
    """Close a task and queue those that it leads to; return False if there is no room for them."""
    place, here, fits = opened(w, request.row), w.place, True
    row, sent_s, hopeless = request.row, request.sent_s, request.hopeless
    done = place.done[here]
    place.tasks[here] -= 1
    place.left -= 1
    place.done[here] += 1
    place.accuracy[here] += accuracy
    for k in range(here + 1, len(w.stages)):
        after, tasks = w.models[k].after, 0
        if after == 1 << here:
            tasks = _fan_out(w, row, done)
        elif (after & (after - 1)) and not place.joined >> k & 1 and _all_done(w, place, k):
            place.joined |= 1 << k
            tasks = 1
        for _ in range(tasks):
            place.tasks[k] += 1
            place.left += 1
            fits = fits and join(at(w, k), row, sent_s, hopeless, done_s)
    return fits


@inlined
def _fan_out(w: World, row: int, task: int) -> int:
    """Draw how many tasks a finished one leads to in each stage that follows."""
    # In a live system the first stage's answer says how many.
    if w.place == 0 and w.settings.arrival_kind == LISTED and w.requests[row].tasks >= 0:
        return w.requests[row].tasks
    most, at_ = w.model.fan_outs - 1, w.model.fan_out_at
    tasks = most
    if most and w.numbers[at_ + most - 1] > 0:
        # Drawn by request, stage and task, not in turn: it is the same for every controller.
        drawn, tasks = mixed_uniform(w.env.fan_out_key, row, w.place, task), 0
        while tasks < most and w.numbers[at_ + tasks] <= drawn:
            tasks += 1
    return tasks


@inlined
def _all_done(w: World, place: OpenRequest, stage: int) -> bool:
    """Return whether all tasks that lead to a stage are done, and there were any."""
    tasks, done = 0, 0
    for k in range(stage):
        # Tasks may still come from all stages before it, near or far.
        if w.models[stage].before >> k & 1:
            tasks += place.tasks[k]
        if w.models[stage].after >> k & 1:
            done += place.done[k]
    return tasks == 0 and done > 0


@inlined
def accuracy_of(w: World, row: int) -> float:
    """Return the accuracy of an answer: over its stages the product of their tasks' means."""
    place, product = opened(w, row), 1.0
    for k in range(len(w.stages)):
        if place.done[k]:
            product *= place.accuracy[k] / place.done[k]
    return product


@inlined
def leave(w: World, row: int, sent_s: float) -> int:
    """Close a request and take its tasks out of all queues; return how many batches it was in."""
    place = opened(w, row)
    w.env.opened -= 1
    w.env.opened_running -= place.running > 0
    place.request = FREE
    for k in range(len(w.stages)):
        if place.tasks[k]:
            remove(at(w, k), row, sent_s)
    return place.batches
