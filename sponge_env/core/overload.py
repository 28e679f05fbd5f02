"""The drop rule ``unmeetable``: which requests can no longer be in time.

A request that has expired or is bound to be late is the most urgent one: served first, it would
make all that follow late, too. Times are lower bounds at the measured pace, see
:attr:`.WorkerState.pace`.
"""

import math

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.pipeline import at
from sponge_env.core.queue import deadline_s
from sponge_env.core.records import World
from sponge_env.core.service import dispatched_s, served_s

CHEAP = 0.95  # Share of the larger batch's throughput that a smaller one keeps if more waits


@compiled
def shortest_s(w: World, count: int) -> float:
    """Return the shortest time in which a batch can be answered now."""
    # That is by the variant in force, or by the fastest where each batch chooses its own; under a
    # quota at full speed, for there may be enough tokens.
    first, last = w.stage.variant, w.stage.variant + 1
    if first < 0:
        first, last = 0, w.model.variants
    least_s = math.inf
    for variant in range(first, last):
        least_s = min(least_s, _takes_s(w, variant, count))
    return least_s


@inlined
def _takes_s(w: World, variant: int, count: int) -> float:
    """Return how long a batch of a variant takes on planned cores; with a quota, at least."""
    if w.model.limited:
        work_s = w.numbers[w.model.work_at + variant * w.model.limits.batch + count - 1]
        return dispatched_s(w, variant, count) + work_s * w.stage.pace
    return served_s(w, variant, count, w.stage.planned_cores) * w.stage.pace


@compiled
def size_in_time(w: World, due_s: float, batch_max: int, waiting: int) -> int:
    """Return the size of the largest batch that meets its most urgent request's deadline."""
    # It is 0 if none does, or only one so small that others would be lost.
    slack_s = due_s - w.env.now_s - w.model.after_s
    count = min(batch_max, waiting)
    size, takes_s, whole_s = count + 1, math.inf, math.inf
    while takes_s > slack_s and size > 1:
        size -= 1
        takes_s = shortest_s(w, size)
        if size == count:
            whole_s = takes_s
    if takes_s > slack_s or (waiting > count and size * whole_s < CHEAP * count * takes_s):
        return 0
    return size


@compiled
def earliest_end_s(w: World, due_s: float, decides_s: float) -> float:
    """Return the earliest end of a request that arrives now with a deadline."""
    # More urgent requests and running batches come first, and count as the least work that they can
    # be. Until the next decision at ``decides_s`` it is done under the allocation in force, then by
    # all cores of the machine as efficiently as possible.
    now_s, machine, forced = w.env.now_s, float(w.settings.total_cores), 0.0
    ahead_core_s = w.model.cheapest_core_s * w.stage.pace
    until_s = max(now_s, decides_s)
    for k in range(len(w.stages)):
        if k == w.place or w.models[k].before >> w.place & 1:  # no other model's
            rate = _done_per_s(at(w, k))
            ahead_core_s += _ahead_core_s(at(w, k), due_s, rate, until_s)
            forced += rate * w.stages[k].wanted.replicas
    if w.model.limited:
        # Unused tokens of a period let a replica run faster than its quota for so long.
        ahead_core_s -= w.model.quota.period_s
        machine = min(machine, w.model.cpu_cores) * w.model.core_unit
    forced = min(forced, machine)
    left_core_s = ahead_core_s - (until_s - now_s) * forced
    end_s = now_s + ahead_core_s / forced
    if left_core_s > 0.0:
        end_s = until_s + left_core_s / machine
    return max(end_s, now_s + w.model.hopeless_below_s)


@inlined
def _done_per_s(w: World) -> float:
    """Return how much of the least work a replica does per second under the allocation in force."""
    wanted, model, rate = w.stage.wanted, w.model, 0.0
    if model.limited:
        return wanted.cores * model.core_unit
    for count in range(1, wanted.batch + 1):
        rate = max(rate, count / shortest_s(w, count))
    return rate * model.cheapest_core_s * w.stage.pace


@inlined
def _ahead_core_s(w: World, due_s: float, done_per_s: float, until_s: float) -> float:
    """Return the work of a stage's running batches and of what waits and is due by a deadline."""
    # Without a quota, a running batch counts until ``until_s`` as what its replica would do
    # meanwhile under the allocation in force; what is left of it then, as the least it can be.
    stage, core_s = w.stage, 0.0
    for k in range(stage.replicas):
        replica = w.replicas[k]
        if replica.batch_size:
            takes_s = _takes_s(w, replica.variant, replica.batch_size)
            left_s = max(0.0, takes_s - (w.env.now_s - replica.started_s))
            if w.model.limited:
                core_s += left_s
            else:
                first_s = min(left_s, until_s - w.env.now_s)
                least_s = replica.batch_size * w.model.cheapest_core_s * stage.pace
                core_s += first_s * done_per_s + (left_s - first_s) / takes_s * least_s
    first, last = stage.head, stage.tail
    while first < last:
        middle = (first + last) // 2
        if deadline_s(w, middle) <= due_s:
            first = middle + 1
        else:
            last = middle
    return core_s + (first - stage.head) * w.model.cheapest_core_s * stage.pace
