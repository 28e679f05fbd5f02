"""The lower side: the best schedule of a server that is free in what the real one is not.

This server chooses the size of each batch on its own and may wait for a fuller one; what it
cannot choose is the order of the requests. Then it never helps to have less done, so that of
all ways to a state only those need be kept of which none is better in both cost and time.
Nothing is rounded but in the server's favour: its best schedule costs no more than any of
the real one. ``docs/oracle.md`` has the proof.

A state at the boundary of two intervals is how many requests are served, the batch that runs,
how much of it is left, and the cost so far.
"""

from __future__ import annotations

import math

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.oracle.lookahead import SLACK_S, unavoidable
from sponge_env.oracle.memory import CoresInterval, Memory
from sponge_env.oracle.pareto import put
from sponge_env.oracle.problem import Problem

VIOLATION = 2**32
"""A violation's cost if it is to outweigh all cores; a core for an interval costs 1."""

TIME_TOLERANCE_S = 1e-3
"""Moments that are closer are taken for the earlier one."""

SHARE_TOLERANCE = 1e-4
"""Rests of a batch that are closer are taken for the smaller one."""

OVERFLOW = -1
"""Answer when the working space was too small."""

NEVER = 2**62
"""More than any cost."""


@entry_point
def least_cost(p: Problem, late: IntArray, violation: int, at_most: int, m: Memory) -> int:
    """Return the cost of the relaxed server's best schedule.

    Args:
        p: The problem, of one class.
        late: See :func:`sponge_env.oracle.lookahead.lookahead`.
        violation: What a violation costs, in cores held for an interval.
        at_most: Cost that some schedule attains; what must cost more is left out.
        m: Working space.

    Returns:
        ``violations * violation + core-intervals``, or OVERFLOW.
    """
    best, labels = at_most, 1
    m.labels.served[0] = m.labels.size[0] = m.labels.cost[0] = 0
    for k in range(p.intervals):
        base, arrived = m.labels.served[labels - 1], p.arrived[k + 1, 0]
        if arrived - base >= m.idle.size:
            return OVERFLOW
        m.idle[:] = NEVER
        m.running.size[:] = 0
        start_s, end_s = k * p.interval_s, (k + 1) * p.interval_s
        until_s = end_s if k < p.intervals - 1 else math.inf
        worth = at_most - p.to_pay[k + 1]
        for cores in range(1, p.cores_max + 1):
            pay = cores * p.price[k]
            interval = CoresInterval(start_s, until_s, cores, pay, violation, base, arrived, worth)
            best = min(best, _serve(p, interval, labels, m))
        interval = CoresInterval(start_s, end_s, 0, 0, violation, base, arrived, worth)
        labels = _collect(p, late, interval, m)
        if labels <= 0:
            return best if labels == 0 else OVERFLOW
    return best


@compiled
def _serve(p: Problem, interval: CoresInterval, labels: int, m: Memory) -> int:
    """Follow every label through an interval.

    Returns:
        In the last interval the least cost of having served all; else more than any cost.
    """
    last = interval.arrived - interval.base
    m.free.size[: last + 1] = 0
    for n in range(labels):
        _resume(p, interval, n, m)
    for row in range(last + 1):
        _continue(p, interval, row, m)
    if interval.end_s == math.inf and m.free.size[last]:
        return int(m.free.cost[last, 0])
    return NEVER


@compiled
def _resume(p: Problem, interval: CoresInterval, n: int, m: Memory) -> None:
    """Carry a label into an interval: its batch goes on under the interval's cores."""
    served, size = m.labels.served[n], m.labels.size[n]
    cost, row = m.labels.cost[n] + interval.pay, served - interval.base
    credit_s = interval.start_s - p.ahead_s[interval.cores - 1]
    if size == 0:
        _put_free(p, interval, row, cost, interval.start_s, credit_s, m)
        return
    work_s = p.padded_s[size - 1, interval.cores - 1] * m.labels.left[n]
    _run(p, interval, served, size, work_s, cost, interval.start_s, credit_s, m)


@compiled
def _continue(p: Problem, interval: CoresInterval, row: int, m: Memory) -> None:
    """Start every batch that makes sense after so many requests.

    To wait for a fuller batch makes none as soon as another could be over and forgotten.
    """
    served = interval.base + row
    for x in range(m.free.size[row]):
        cost, free_s, credit_s = m.free.cost[row, x], m.free.time[row, x], m.free.credit_s[row, x]
        m.idle[row] = min(m.idle[row], cost)
        if served < interval.arrived and (p.may_skip or p.drop_grace_s < math.inf):
            _leave_out(p, interval, served, cost, free_s, credit_s, m)
        until_s = interval.end_s
        for size in range(1, min(p.batch_max, interval.arrived - served) + 1):
            at_s = max(free_s, p.release_s[served + size - 1])
            if at_s >= until_s:
                break
            begin_s = at_s + p.dispatch_s[size - 1]
            full_s = begin_s - p.ahead_awake_s[interval.cores - 1]
            work_s = p.padded_s[size - 1, interval.cores - 1]
            account_s = max(credit_s, full_s)
            over_s = _run(p, interval, served + size, size, work_s, cost, begin_s, account_s, m)
            until_s = min(until_s, over_s)


@compiled
def _leave_out(
    p: Problem,
    interval: CoresInterval,
    served: int,
    cost: int,
    free_s: float,
    credit_s: float,
    m: Memory,
) -> None:
    """Leave out the next request: at once, or when it has expired."""
    if not p.may_skip:
        expired_s = p.deadline_s[served] + p.drop_grace_s
        free_s = max(free_s, p.release_s[served], expired_s)
    if free_s <= interval.end_s:
        cost += interval.violation * p.counts[served]
        row = served + 1 - interval.base
        _put_free(p, interval, row, cost, free_s, credit_s, m)


@compiled
def _run(
    p: Problem,
    interval: CoresInterval,
    served: int,
    size: int,
    work_s: float,
    cost: int,
    begin_s: float,
    account_s: float,
    m: Memory,
) -> float:
    """Run a batch to its end, or to that of the interval.

    Args:
        p: The problem.
        interval: The interval.
        served: Position after the batch's last request.
        size: Its requests.
        work_s: Its work.
        cost: The cost before.
        begin_s: When the work begins.
        account_s: Since when the CPU's long-run share has been there for it.
        m: Working space.

    Returns:
        From when on a replica that ran it is no worse off than one that waited.
    """
    row, share = served - interval.base, p.share[interval.cores - 1]
    credit_s = account_s + work_s / share
    end_s = max(begin_s + work_s, credit_s - p.refill_s[interval.cores - 1])
    if max(begin_s + work_s, credit_s) > interval.end_s:
        done_s = min(interval.end_s - begin_s, share * (interval.end_s - account_s))
        left_s = work_s - max(0.0, done_s)
        left = left_s / p.padded_s[size - 1, interval.cores - 1]
        at = row * p.batch_max + size - 1
        put(m.running, at, cost, left, 0.0, SHARE_TOLERANCE)
    else:
        cost += interval.violation * _late(p, served - size, served, end_s)
        _put_free(p, interval, row, cost, end_s, credit_s, m)
    return float(max(end_s, credit_s + p.ahead_awake_s[interval.cores - 1]))


@compiled
def _put_free(
    p: Problem,
    interval: CoresInterval,
    row: int,
    cost: int,
    free_s: float,
    credit_s: float,
    m: Memory,
) -> None:
    """Note that the replica can be free at a moment with so much served."""
    if cost <= interval.at_most:
        credit_s = max(credit_s, free_s - p.ahead_awake_s[interval.cores - 1])
        put(m.free, row, cost, free_s, credit_s, TIME_TOLERANCE_S)


@compiled
def _late(p: Problem, first: int, end: int, end_s: float) -> int:
    """Count the violations among requests that end at a moment."""
    late = 0
    for i in range(first, end):
        if p.deadline_s[i] + SLACK_S >= end_s:
            break
        late += p.counts[i]
    return late


@compiled
def _collect(p: Problem, late: IntArray, interval: CoresInterval, m: Memory) -> int:
    """Make labels of what an interval led to; return how many, or OVERFLOW.

    Left out is what an idle replica with as much served has at the same cost, and what must
    cost more than is worth it.
    """
    count, least = 0, NEVER
    for row in range(interval.arrived - interval.base, -1, -1):
        if count + p.batch_max * m.running.cost.shape[1] >= m.labels.cost.size:
            return OVERFLOW
        if m.idle[row] < least:
            least = m.idle[row]
            count += _add(p, late, interval, row, 0, 0.0, least, count, m)
        for size in range(1, p.batch_max + 1):
            at = row * p.batch_max + size - 1
            for x in range(m.running.size[at]):
                cost = m.running.cost[at, x]
                if cost < least:
                    left = m.running.time[at, x]
                    count += _add(p, late, interval, row, size, left, cost, count, m)
    return count


@compiled
def _add(
    p: Problem,
    late: IntArray,
    interval: CoresInterval,
    row: int,
    size: int,
    left: float,
    cost: int,
    n: int,
    m: Memory,
) -> bool:
    """Make label ``n``, unless it must cost more than is worth it."""
    served, free_s = interval.base + row, interval.end_s
    if size:
        free_s += left * p.shortest_s[size - 1]
    violations = _late(p, served - size, served, free_s)
    violations += unavoidable(p, late, 0, served, free_s, 1.0)
    if cost + interval.violation * violations > interval.at_most:
        return False
    m.labels.served[n], m.labels.size[n] = served, size
    m.labels.left[n], m.labels.cost[n] = left, cost
    return True
