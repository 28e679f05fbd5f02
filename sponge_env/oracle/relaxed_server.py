"""The lower side: the best schedule of a server that is free in what the real one is not.

This server chooses the size of each batch on its own and may wait for a fuller one, but not the
order of the requests. So it never helps to have less done: of all ways to a state only those are
kept of which none is better in both cost and time. ``docs/oracle.md`` has the proof.

A state at the boundary of two intervals is how many requests are served, the batch that runs,
how much of it is left, and the cost so far.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, dtype_of, entry_point, rows
from sponge_env.oracle.episode import SLACK_S, KnownEpisode, unavoidable

VIOLATION = 2**32  # cost of a violation that outweighs all cores; a core for an interval costs 1
TIME_TOLERANCE_S = 1e-3  # moments that are closer are taken for the earlier one
SHARE_TOLERANCE = 1e-4  # rests of a batch that are closer are taken for the smaller one
OVERFLOW = -1  # the answer when the working space was too small
NEVER = 2**62  # more than any cost


class Entry:
    """One of several alternatives."""

    cost: int
    time: float  # Seconds, or the share of a batch that is left
    credit_s: float  # Since when the CPU's long-run share has been there for the replica
    worst: float  # Time that it had before others were merged into it


class Label:
    """A state at a boundary, with what it costs."""

    served: int  # Position after the last request that is in a batch
    batch: int  # Requests that run; 0 where none do
    left: float  # Share of its work that is left
    cost: int


class Fronts(NamedTuple):
    """Lists of alternatives of which none is better than another in both cost and time.

    Each list is ascending by cost and descending by time. It has a fixed length: where that is not
    enough, two neighbours that are close to each other become one with the cost of the cheaper and
    the time of the faster. Merging therefore only ever makes an alternative better than it is,
    which keeps a lower bound a lower bound.
    """

    entries: NDArray[Any]  # (lists, length) of :class:`Entry`
    size: IntArray  # (lists,) entries in use


def make_fronts(lists: int, length: int) -> Fronts:
    """Allocate empty lists."""
    return Fronts(rows(np.zeros((lists, length), dtype_of(Entry))), np.zeros(lists, np.int64))


@compiled
def put(
    fronts: Fronts, row: int, cost: int, time: float, credit_s: float, tolerance: float
) -> None:
    """Add an alternative to a list, unless one in it is at least as good.

    Of ``time`` and ``credit_s`` less is better; what an alternative that is left out had of the
    second goes to the one that is kept. An entry that is slower than a costlier one by no more
    than ``tolerance`` takes over its time.
    """
    entries, own, size = fronts.entries[row], time, fronts.size[row]
    at = size
    while at > 0 and entries[at - 1].cost > cost:
        at -= 1
    if at > 0:
        before = entries[at - 1]
        if before.time <= time or before.worst <= time + tolerance:
            before.time = min(before.time, time)
            before.credit_s = min(before.credit_s, credit_s)
            return
        at -= before.cost == cost
    end = at
    while end < size and entries[end].time >= own - tolerance:
        credit_s, time = min(credit_s, entries[end].credit_s), min(time, entries[end].time)
        end += 1
    if end == at and size == entries.size:
        gone = _merge_closest(entries)
        size -= 1
        at -= at > gone
        end = at
    _move(entries, end, size, at + 1 - end)
    entry = entries[at]
    entry.cost, entry.time, entry.credit_s, entry.worst = cost, time, credit_s, own
    fronts.size[row] = size + at + 1 - end


@compiled
def _merge_closest(entries: NDArray[Any]) -> int:
    """Make one of the neighbours in a full list that lose the least by it; return which went."""
    closest, least = 0, math.inf
    for k in range(entries.size - 1):
        one, other = entries[k], entries[k + 1]
        loss = (other.cost - one.cost) * (one.time - other.time)
        if loss < least:
            closest, least = k, loss
    one, other = entries[closest], entries[closest + 1]
    one.time = min(one.time, other.time)
    one.credit_s = min(one.credit_s, other.credit_s)
    _move(entries, closest + 2, entries.size, -1)
    return closest + 1


@compiled
def _move(entries: NDArray[Any], start: int, end: int, by: int) -> None:
    """Move the entries [start, end) of a list."""
    for n in range(end - start):
        k = start + n if by < 0 else end - 1 - n
        entries[k + by] = entries[k]


class RelaxedMemory(NamedTuple):
    """Working space. Rows count the requests served since those of the first label."""

    labels: NDArray[Any]  # (labels,) of :class:`Label`, those with most served come first
    free: Fronts  # (span,) when the replica is free
    idle: IntArray  # (span,) least cost with the replica free at the interval's end
    # (span * batch_max,) what is left of a batch at the interval's end, by its size
    running: Fronts


class CoresInterval(NamedTuple):
    """An interval under one number of cores, and what goes with it everywhere."""

    e: KnownEpisode
    m: RelaxedMemory
    start_s: float
    end_s: float  # Infinite for the last one: what is left is served under its cores
    cores: int
    core_cost: int  # What its cores cost
    violation: int  # What a violation costs, in cores held for an interval
    base: int  # Position of row 0
    arrived: int  # Position after the last request that arrives in it
    at_most: int  # Cost at its end above which nothing is followed


def relaxed_memory(e: KnownEpisode, alternatives: int, span: int) -> RelaxedMemory:
    """Allocate working space: so many ``alternatives`` are kept apart for one state.

    ``span`` is the number of requests between the most and the least that one interval looks at.
    """
    return RelaxedMemory(
        rows(np.zeros(span * alternatives, dtype_of(Label))),
        make_fronts(span, alternatives),
        np.zeros(span, np.int64),
        make_fronts(span * e.batch_max, alternatives),
    )


@entry_point
def least_cost(e: KnownEpisode, violation: int, at_most: int, m: RelaxedMemory) -> int:
    """Return what the relaxed server's best schedule costs: core-intervals and violations.

    A violation costs ``violation`` core-intervals. Left out is what must cost more than
    ``at_most``, which some schedule attains. The episode is of one class. OVERFLOW where the
    working space is too small.
    """
    best, labels = at_most, 1
    m.labels[0].served = m.labels[0].batch = m.labels[0].cost = 0
    for k in range(e.intervals):
        base, arrived = m.labels[labels - 1].served, e.arrived[k + 1, 0]
        if arrived - base >= m.idle.size:
            return OVERFLOW
        m.idle[:] = NEVER
        m.running.size[:] = 0
        start_s, end_s = k * e.interval_s, (k + 1) * e.interval_s
        until_s = end_s if k < e.intervals - 1 else math.inf
        most = at_most - e.cores_count[k + 1 :].sum()  # a core in each of the later intervals
        for cores in range(1, e.cores_max + 1):
            core_cost = cores * e.cores_count[k]
            c = CoresInterval(
                e, m, start_s, until_s, cores, core_cost, violation, base, arrived, most
            )
            best = min(best, _serve(c, labels))
        c = CoresInterval(e, m, start_s, end_s, 0, 0, violation, base, arrived, most)
        labels = _collect(c)
        if labels <= 0:
            return best if labels == 0 else OVERFLOW
    return best


@compiled
def _serve(c: CoresInterval, labels: int) -> int:
    """Follow every label through an interval; in the last, return the least cost of all."""
    last = c.arrived - c.base
    c.m.free.size[: last + 1] = 0
    for n in range(labels):
        _resume(c, n)
    for row in range(last + 1):
        _continue(c, row)
    if c.end_s == math.inf and c.m.free.size[last]:
        return int(c.m.free.entries[last, 0].cost)
    return NEVER


@compiled
def _resume(c: CoresInterval, n: int) -> None:
    """Carry a label into an interval: its batch goes on under the interval's cores."""
    label = c.m.labels[n]
    cost, credit_s = label.cost + c.core_cost, c.start_s - c.e.ahead_s[c.cores - 1]
    if label.batch == 0:
        _put_free(c, label.served - c.base, cost, c.start_s, credit_s)
        return
    work_s = c.e.padded_s[label.batch - 1, c.cores - 1] * label.left
    _run(c, label.served, label.batch, work_s, cost, c.start_s, credit_s)


@compiled
def _continue(c: CoresInterval, row: int) -> None:
    """Start every batch that makes sense after so many requests.

    To wait for a fuller batch makes none as soon as another could be over and forgotten.
    """
    served = c.base + row
    for x in range(c.m.free.size[row]):
        entry = c.m.free.entries[row, x]
        cost, free_s, credit_s = entry.cost, entry.time, entry.credit_s
        c.m.idle[row] = min(c.m.idle[row], cost)
        if served < c.arrived and (c.e.may_skip or c.e.drop_grace_s < math.inf):
            _leave_out(c, served, cost, free_s, credit_s)
        until_s = c.end_s
        for size in range(1, min(c.e.batch_max, c.arrived - served) + 1):
            at_s = max(free_s, c.e.release_s[served + size - 1])
            if at_s >= until_s:
                break
            begin_s = at_s + c.e.dispatch_s[size - 1]
            full_s = begin_s - c.e.ahead_awake_s[c.cores - 1]
            work_s = c.e.padded_s[size - 1, c.cores - 1]
            granted_from_s = max(credit_s, full_s)
            over_s = _run(c, served + size, size, work_s, cost, begin_s, granted_from_s)
            until_s = min(until_s, over_s)


@compiled
def _leave_out(c: CoresInterval, served: int, cost: int, free_s: float, credit_s: float) -> None:
    """Leave out the next request: at once, or when it has expired."""
    if not c.e.may_skip:
        expired_s = c.e.deadline_s[served] + c.e.drop_grace_s
        free_s = max(free_s, c.e.release_s[served], expired_s)
    if free_s <= c.end_s:
        cost += c.violation * c.e.counts[served]
        row = served + 1 - c.base
        _put_free(c, row, cost, free_s, credit_s)


@compiled
def _run(
    c: CoresInterval,
    served: int,
    size: int,
    work_s: float,
    cost: int,
    begin_s: float,
    granted_from_s: float,
) -> float:
    """Run a batch to its end, or to that of the interval.

    Its last request is the one before ``served``, its work begins at ``begin_s``, and
    ``granted_from_s`` is since when the CPU's long-run share has been there for it. Returned is
    from when on a replica that ran it is no worse off than one that waited.
    """
    row, share = served - c.base, c.e.share[c.cores - 1]
    credit_s = granted_from_s + work_s / share
    end_s = max(begin_s + work_s, credit_s - c.e.refill_s[c.cores - 1])
    if max(begin_s + work_s, credit_s) > c.end_s:
        done_s = min(c.end_s - begin_s, share * (c.end_s - granted_from_s))
        left_s = work_s - max(0.0, done_s)
        left = left_s / c.e.padded_s[size - 1, c.cores - 1]
        at = row * c.e.batch_max + size - 1
        put(c.m.running, at, cost, left, 0.0, SHARE_TOLERANCE)
    else:
        cost += c.violation * _late(c.e, served - size, served, end_s)
        _put_free(c, row, cost, end_s, credit_s)
    return float(max(end_s, credit_s + c.e.ahead_awake_s[c.cores - 1]))


@compiled
def _put_free(c: CoresInterval, row: int, cost: int, free_s: float, credit_s: float) -> None:
    """Note that the replica can be free at a moment with so much served."""
    if cost <= c.at_most:
        credit_s = max(credit_s, free_s - c.e.ahead_awake_s[c.cores - 1])
        put(c.m.free, row, cost, free_s, credit_s, TIME_TOLERANCE_S)


@compiled
def _late(e: KnownEpisode, first: int, end: int, end_s: float) -> int:
    """Count the violations among requests that end at a moment."""
    late = 0
    for i in range(first, end):
        if e.deadline_s[i] + SLACK_S >= end_s:
            break
        late += e.counts[i]
    return late


@compiled
def _collect(c: CoresInterval) -> int:
    """Make labels of what an interval led to; return how many, or OVERFLOW.

    Left out is what an idle replica with as much served has at the same cost, and what must
    cost more than a schedule that is known.
    """
    count, least = 0, NEVER
    for row in range(c.arrived - c.base, -1, -1):
        if count + c.e.batch_max * c.m.running.entries.shape[1] >= c.m.labels.size:
            return OVERFLOW
        if c.m.idle[row] < least:
            least = c.m.idle[row]
            count += _add(c, row, 0, 0.0, least, count)
        for size in range(1, c.e.batch_max + 1):
            at = row * c.e.batch_max + size - 1
            for x in range(c.m.running.size[at]):
                entry = c.m.running.entries[at, x]
                if entry.cost < least:
                    count += _add(c, row, size, entry.time, entry.cost, count)
    return count


@compiled
def _add(c: CoresInterval, row: int, size: int, left: float, cost: int, n: int) -> bool:
    """Make label ``n``, unless it must cost more than a schedule that is known."""
    served, free_s = c.base + row, c.end_s
    if size:
        free_s += left * c.e.shortest_s[size - 1]
    violations = _late(c.e, served - size, served, free_s)
    violations += unavoidable(c.e, 0, served, free_s, 1.0)
    if cost + c.violation * violations > c.at_most:
        return False
    label = c.m.labels[n]
    label.served, label.batch, label.left, label.cost = served, size, left, cost
    return True
