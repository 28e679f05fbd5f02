"""Which tasks of a stage an option makes late: the rule of the integer program, in compiled code.

An option serves the queue batch by batch in order of the deadlines, after the batches that are
running, and then the forecast arrivals. When a task is done here, it must have the latency of the
later stages left. The throughput must reach the forecast rate. A task that not even the fastest
service can save is *hopeless*: it delays the next ones, but does not count as late.
"""

import math
from typing import NamedTuple

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control.chain import NEVER
from sponge_env.core.compiled import compiled

from .program import TICKS, StageLoad, StageTables
from .rates import ROUNDING


class Service(NamedTuple):
    """How a stage serves on some cores."""

    service_s: FloatArray  # (batch_max,) seconds of a batch
    free_s: FloatArray  # (replicas,) seconds until each takes its next batch
    batch: int  # Largest batch
    settled_s: float  # Seconds of a batch once the queue is gone


class Option(NamedTuple):
    """A choice for a stage: how it serves under it, and until it is in force."""

    new: Service
    old: Service


@compiled
def write_arrivals(state: StageLoad) -> None:
    """Write when each forecast arrival comes, and when it is due."""
    # They come as early as their scatter lets them: number ``n`` comes when ``x`` are expected with
    # ``x + noise * sqrt(x) = n``. Budgets rise evenly, for the first arrivals meet the queue.
    count, noise, low_s = len(state.arrivals_s), state.noise, state.budget_low_s
    step_s = (state.budget_high_s - low_s) / max(count - 1, 1)
    for n in range(count):
        root = (math.sqrt(noise * noise + 4 * n) - noise) / 2
        state.arrivals_s[n, 0] = root * root / state.rate_rps
        state.arrivals_s[n, 1] = state.arrivals_s[n, 0] + (low_s + step_s * n)


class Cores(NamedTuple):
    """What all options of a variant on some cores share."""

    service_s: FloatArray  # (batch_max,) seconds of a batch
    before_s: FloatArray  # The same until the decision is in force
    settled: int  # Size at which batches settle
    settled_before: int  # The same until the decision is in force


@compiled
def latency_s(tables: StageTables, variant: int, batch: float, cores: float) -> float:
    """Return the latency of a batch by the fit."""
    fit = tables.coefficients_s[variant]
    return float(fit[0] * batch / cores + fit[1] / cores + fit[2] * batch + fit[3])


@compiled
def settled_size(tables: StageTables, state: StageLoad, service_s: FloatArray) -> int:
    """Return the smallest batch that holds what arrives during it, at most the largest."""
    replicas = state.free_s.size
    for size in range(1, service_s.size):
        expected = state.rate_rps * service_s[size - 1] / replicas
        holds = size >= expected + state.noise * math.sqrt(expected)
        if holds and size * replicas >= tables.group:
            return size
    return service_s.size


@compiled
def begin_cores(tables: StageTables, state: StageLoad, variant: int, cores: int) -> Cores:
    """Get ready for options on so many cores: a resize acts on running batches at once."""
    for replica in range(state.free_s.size):
        left_s, size, faster = state.running[replica, 0], state.running[replica, 1], 1.0
        if size > 0:
            whole_s = latency_s(tables, state.variant, size, state.cores)
            faster = latency_s(tables, state.variant, size, cores) / whole_s
        state.free_s[replica] = left_s * faster
    service_s, before_s = tables.service_s[variant, cores - 1], state.before_s[variant]
    settled = settled_size(tables, state, service_s), settled_size(tables, state, before_s)
    return Cores(service_s, before_s, settled[0], settled[1])


@compiled
def option_of(state: StageLoad, on: Cores, batch: int) -> Option:
    """Return an option."""
    own_s = on.service_s[min(on.settled, batch) - 1]
    own_before_s = on.before_s[min(on.settled_before, batch) - 1]
    return Option(
        Service(on.service_s, state.free_s, batch, own_s),
        Service(on.before_s, state.running[:, 0], batch, own_before_s),
    )


@compiled
def done_s(service: Service, before: int, queued: int) -> float:
    """Return when the batch of the queue is done that has ``before`` others before it."""
    # Batches go to the replicas round robin, and each takes the same time.
    replicas, whole_s = service.free_s.size, service.service_s[service.batch - 1]
    own_s = service.service_s[min(service.batch, queued - before * service.batch) - 1]
    return float(service.free_s[before % replicas] + before // replicas * whole_s + own_s)


@compiled
def _behind_queue_s(service: Service, queued: int, number: int) -> float:
    """Return when the batch of arrivals starts that has ``number`` others before it."""
    replicas = service.free_s.size
    turn, rounds = number % replicas, number // replicas
    # The last batch of the queue on the same replica; negative where it has none.
    last = (queued + service.batch - 1) // service.batch - replicas + turn
    clear_s = done_s(service, last, queued) if last >= 0 else service.free_s[last + replicas]
    return float(clear_s + rounds * service.service_s[service.batch - 1])


@compiled
def _resized_s(tables: StageTables, state: StageLoad, old_s: float, new_s: float) -> float:
    """Return when work is done that is resized at the end of the delay."""
    # At the old speed it would be done at ``old_s``, at the new one at ``new_s``. The share that is
    # left after the delay goes on at the new speed.
    since_s = max(tables.delay_s, state.ready_s)
    if old_s <= since_s:
        return old_s
    return since_s + ((old_s - since_s) / (old_s - state.ready_s)) * (new_s - state.ready_s)


@compiled
def _queued_done_s(tables: StageTables, state: StageLoad, option: Option, before: int) -> float:
    """Return when a batch of the queue is done, resized after the delay."""
    queued = state.due_s.size
    end_s = done_s(option.new, before, queued)
    if tables.delay_s > 0.0:
        end_s = _resized_s(tables, state, done_s(option.old, before, queued), end_s)
    return end_s


@compiled
def _arrivals_start_s(tables: StageTables, state: StageLoad, option: Option, number: int) -> float:
    """Return when the queue and ``number`` batches of arrivals are done, with the resize."""
    queued = state.due_s.size
    start_s = _behind_queue_s(option.new, queued, number)
    if tables.delay_s > 0.0:
        start_s = _resized_s(tables, state, _behind_queue_s(option.old, queued, number), start_s)
    return start_s


@compiled
def _arrival_done_s(
    tables: StageTables, state: StageLoad, option: Option, start_s: float, arrival_s: float
) -> float:
    """Return when an arrival is done: behind all before it, or after the batch it finds running."""
    own_s = option.new.settled_s
    if arrival_s + option.old.settled_s < tables.delay_s:
        own_s = option.old.settled_s
    return max(start_s, arrival_s + own_s / state.free_s.size) + own_s


@compiled
def _count_short(tables: StageTables, state: StageLoad, option: Option) -> int:
    """Return how many tasks more arrive in an interval than are served."""
    batch = option.new.batch
    served_rps = state.free_s.size * batch / option.new.service_s[batch - 1]
    excess = (state.rate_rps - served_rps) * tables.interval_s
    return int(max(math.ceil(excess - ROUNDING), 0))


@compiled
def count_late(
    tables: StageTables, state: StageLoad, option: Option, hopeless: int, ticks: int, limit: int
) -> int:
    """Count the late tasks if the later stages take so many ticks; stop above ``limit``."""
    later_s = (ticks - ROUNDING) * tables.tick_s if ticks else 0.0
    late = _count_short(tables, state, option)
    # Arrivals first: being behind the queue, they are the likeliest to be late.
    number = stop = 0
    while late <= limit and stop < state.arrivals_s.shape[0]:
        start_s = _arrivals_start_s(tables, state, option, number)
        first, stop = stop, min(stop + option.new.batch, state.arrivals_s.shape[0])
        for order in range(first, stop):
            end_s = _arrival_done_s(tables, state, option, start_s, state.arrivals_s[order, 0])
            late += end_s + later_s > state.arrivals_s[order, 1]
        number += 1
    number = hopeless // option.new.batch
    stop = number * option.new.batch
    while late <= limit and stop < state.due_s.size:
        first, stop = max(stop, hopeless), min(stop + option.new.batch, state.due_s.size)
        end_s = _queued_done_s(tables, state, option, number) + later_s
        # Deadlines ascend: if the last of a batch is late, all of it is.
        if end_s > state.due_s[stop - 1]:
            late += stop - first
        else:
            while first < stop and end_s > state.due_s[first]:
                late, first = late + 1, first + 1
        number += 1
    return late


@compiled
def _left_s(tables: StageTables, state: StageLoad, option: Option, task: int) -> float:
    """Return how much time a task of the queue, or behind it an arrival, has left when done."""
    order, batch = task - state.due_s.size, option.new.batch
    if order < 0:
        waiting_left_s: float = state.due_s[task]
        return waiting_left_s - _queued_done_s(tables, state, option, task // batch)
    start_s = _arrivals_start_s(tables, state, option, order // batch)
    arrival_s, due_s = state.arrivals_s[order, 0], state.arrivals_s[order, 1]
    return float(due_s - _arrival_done_s(tables, state, option, start_s, arrival_s))


@compiled
def _ticks_left(tables: StageTables, left_s: float) -> int:
    """Return whole ticks, for budgets are rounded down; what is late has less than none."""
    if left_s < 0.0:
        return NEVER
    ticks: int = math.floor(min(left_s / tables.tick_s + ROUNDING, float(TICKS)))
    return ticks


@compiled
def room_of(tables: StageTables, state: StageLoad, option: Option, hopeless: int) -> int:
    """Return the longest latency of the later stages with which nothing here is late, in ticks."""
    if _count_short(tables, state, option) > 0:
        return NEVER
    least_s = TICKS * tables.tick_s
    for task in range(hopeless, state.due_s.size + len(state.arrivals_s)):
        least_s = min(least_s, _left_s(tables, state, option, task))
    return _ticks_left(tables, least_s)


@compiled
def write_late(
    tables: StageTables, state: StageLoad, option: Option, hopeless: int, late: IntArray
) -> None:
    """Count the late tasks for each latency of the later stages: (horizon + 1,), overwritten."""
    late[:] = 0
    late[0] = _count_short(tables, state, option)
    for task in range(hopeless, state.due_s.size + len(state.arrivals_s)):
        ticks = _ticks_left(tables, _left_s(tables, state, option, task))
        if ticks + 1 < late.size:
            late[ticks + 1] += 1
    for ticks in range(1, late.size):
        late[ticks] += late[ticks - 1]
