"""The lower side: the best schedule of a server that is free in what the real one is not.

This server chooses the size of each batch on its own and may wait for a fuller one; what it
cannot choose is the order of the requests. Then it never helps to have less done, so that of
all ways to a state only those need be kept of which none is better in both cost and time.
Nothing is rounded but in the server's favour: its best schedule costs no more than any of
the real one. ``docs/oracle.md`` has the proof.

A state at the boundary of two windows is what has been served of each class, the batch that
runs, how much of it is left, and the cost so far. A cost is violations first, then cores.
"""

from __future__ import annotations

import math
from sponge_env.oracle.line import fill, insert, late_in_line, next_arrival
from sponge_env.oracle.lookahead import SLACK_S, unavoidable
from sponge_env.oracle.memory import (
    SPAN,
    Memory,
    forget_free,
    forget_running,
    keep,
    of_class,
    one_of,
    position,
    reach,
)
from sponge_env.oracle.problem import BATCH_BITS, IntArray, Problem
from sponge_env.oracle.window import Window
from sponge_env.vector.compiler import compiled, entry_point

VIOLATION = 2**32
"""Cost of a violation, more than all cores of an episode; a core for a window costs 1."""

OVERFLOW = -1
"""Answer of a kernel whose memory was too small."""


@entry_point
def least_cost(p: Problem, late: IntArray, violation: int, at_most: int, m: Memory) -> int:
    """Return the cost of the relaxed server's best schedule.

    Args:
        p: The problem.
        late: See :func:`sponge_env.oracle.lookahead.lookahead`.
        violation: What a violation costs, in cores held for a window; VIOLATION to avoid
            violations first.
        at_most: Cost that some schedule attains; what must cost more is left out.
        m: Working space.

    Returns:
        ``violations * violation + core-windows``, or OVERFLOW.
    """
    best = at_most
    m.used[2] = 0
    labels = m.labels
    labels.count[0] = 1
    labels.batch[0] = labels.cost[0] = 0
    for kind in range(p.classes):
        labels.served[0, kind] = p.first[kind]
    for k in range(p.windows):
        if not _set_base(p, k, m):
            return OVERFLOW
        forget_running(m)
        start_s, end_s = k * p.interval_s, (k + 1) * p.interval_s
        until_s = math.inf if k == p.windows - 1 else end_s
        for cores in range(1, p.cores_max + 1):
            best = min(best, _serve(p, Window(k, start_s, until_s, cores, violation), m))
        if m.used[2]:
            return OVERFLOW
        window = Window(k, start_s, end_s, 0, violation)
        _collect(p, late, window, at_most - p.to_pay[k + 1], m)
    return best


@compiled
def _set_base(p: Problem, k: int, m: Memory) -> bool:
    """Count cells from the least that has been served; return whether there are enough."""
    enough = True
    for kind in range(p.classes):
        m.base[kind] = m.labels.served[0, kind]
        for n in range(1, m.labels.count[0]):
            m.base[kind] = min(m.base[kind], m.labels.served[n, kind])
        enough = enough and p.arrived[k + 1, kind] - m.base[kind] <= SPAN
    return enough


@compiled
def _serve(p: Problem, window: Window, m: Memory) -> int:
    """Follow every label through a window.

    Returns:
        In the last window the least cost of having served all; else more than any cost.
    """
    forget_free(m)
    for n in range(m.labels.count[0]):
        _resume(p, window, n, m)
    most = 0
    for kind in range(p.classes):
        most += p.arrived[window.index + 1, kind] - m.base[kind]
    for served in range(most + 1):
        row = m.of_total[served]
        while row >= 0:
            _continue(p, window, row, m)
            row = m.before[row]
    row = m.of_total[most]
    if window.end_s == math.inf and row >= 0:
        return int(m.free.cost[row, 0])
    return 2**62


@compiled
def _resume(p: Problem, window: Window, n: int, m: Memory) -> None:
    """Carry a label into a window: its batch goes on under the window's cores."""
    labels, cell, size = m.labels, 0, 0
    for kind in range(p.classes):
        cell += one_of(kind) * (labels.served[n, kind] - m.base[kind])
        size += of_class(labels.batch[n], kind)
    cost = labels.cost[n] + window.cores * p.price[window.index]
    credit_s = window.start_s - p.headstart_s[window.cores - 1]
    if size == 0:
        reach(p, m, cell, cost, window.start_s, credit_s)
        return
    work_s = p.padded_s[size - 1, window.cores - 1]
    share = p.share[window.cores - 1]
    after_s = credit_s + work_s * labels.left[n] / share
    end_s = max(window.start_s + work_s * labels.left[n], after_s)
    if end_s > window.end_s:
        left_s = _left_s(window, work_s * labels.left[n], share, window.start_s, credit_s)
        keep(m, cell, labels.batch[n], cost, left_s / work_s)
        return
    for kind in range(p.classes):
        end = labels.served[n, kind]
        for i in range(end - of_class(labels.batch[n], kind), end):
            cost += window.violation * p.counts[i] * (p.deadline_s[i] + SLACK_S < end_s)
    reach(p, m, cell, cost, end_s, after_s)


@compiled
def _left_s(window: Window, work_s: float, share: float, start_s: float, credit_s: float) -> float:
    """Return the work that is left at a window's end."""
    done_s = min(window.end_s - start_s, share * (window.end_s - credit_s))
    return min(work_s, work_s - done_s)


@compiled
def _continue(p: Problem, window: Window, row: int, m: Memory) -> None:
    """Start every batch that makes sense from a cell."""
    cell = m.free_cell[row]
    for x in range(m.free.size[row]):
        cost, free_s, credit_s = m.free.cost[row, x], m.free.time[row, x], m.free.credit_s[row, x]
        if window.end_s < math.inf:
            keep(m, cell, 0, cost, 0.0)
        if p.drop_grace_s < math.inf:
            _drop(p, window, cell, cost, free_s, credit_s, m)
        size, rank, at_s, busy_s = fill(p, window, cell, free_s, m), 1, free_s, math.inf
        while True:
            if size:
                busy_s = min(busy_s, _start(p, window, cell, cost, at_s, credit_s, rank, size, m))
            kind = next_arrival(p, window, size, m)
            if kind < 0 or p.release_s[m.next[kind]] >= min(window.end_s, busy_s):
                break
            at_s = max(free_s, p.release_s[m.next[kind]])
            rank = insert(p, kind, size, m)
            size = min(size + 1, p.batch_max)


@compiled
def _drop(
    p: Problem, window: Window, cell: int, cost: int, free_s: float, credit_s: float, m: Memory
) -> None:
    """Wait until the first request of a class has expired, and drop it."""
    for kind in range(p.classes):
        i = position(m, cell, kind)
        if i < p.arrived[window.index + 1, kind]:
            at_s = max(free_s, p.release_s[i], p.deadline_s[i] + p.drop_grace_s)
            if at_s <= window.end_s:
                dropped = cost + window.violation * p.counts[i]
                reach(p, m, cell + one_of(kind), dropped, at_s, credit_s)


@compiled
def _start(
    p: Problem,
    window: Window,
    cell: int,
    cost: int,
    at_s: float,
    credit_s: float,
    smallest: int,
    largest: int,
    m: Memory,
) -> float:
    """Start batches of every size between two from the line; return when the first ends."""
    share = p.share[window.cores - 1]
    begun_s = at_s + p.dispatch_s
    credit_s = max(credit_s, begun_s - p.headstart_s[window.cores - 1])
    first_end_s, batch = math.inf, 0
    for size in range(1, largest + 1):
        kind = m.kinds[size - 1]
        cell += one_of(kind)
        batch += 1 << (BATCH_BITS * kind)
        if size < smallest:
            continue
        work_s = p.padded_s[size - 1, window.cores - 1]
        after_s = credit_s + work_s / share
        end_s = max(begun_s + work_s, after_s)
        first_end_s = min(first_end_s, end_s)
        if end_s > window.end_s:
            left_s = _left_s(window, work_s, share, begun_s, credit_s)
            keep(m, cell, batch, cost, left_s / work_s)
        else:
            reach(p, m, cell, cost + window.violation * late_in_line(p, size, end_s, m), end_s, after_s)
    return first_end_s


@compiled
def _collect(p: Problem, late: IntArray, window: Window, at_most: int, m: Memory) -> None:
    """Make labels of what a window led to, but for what can be left out."""
    labels = m.labels
    labels.count[0] = idle = 0
    for running in range(2):
        for row in range(m.used[1]):
            if (m.running_batch[row] > 0) == running:
                for x in range(m.running.size[row]):
                    if not _beaten(p, window, row, m.running.cost[row, x], idle, m):
                        _add_label(p, late, window, row, x, at_most, m)
        idle = labels.count[0]


@compiled
def _beaten(p: Problem, window: Window, row: int, cost: int, idle: int, m: Memory) -> bool:
    """Return whether an idle replica has served as much for no more."""
    for n in range(idle):
        if m.labels.cost[n] <= cost:
            ahead = True
            for kind in range(p.classes):
                served = position(m, m.running_cell[row], kind)
                ahead = ahead and m.labels.served[n, kind] >= served
            if ahead:
                return True
    return False


@compiled
def _add_label(
    p: Problem, late: IntArray, window: Window, row: int, x: int, at_most: int, m: Memory
) -> None:
    """Make a label, unless it cannot end at a cost of ``at_most``."""
    labels, n = m.labels, m.labels.count[0]
    cost, left, batch = m.running.cost[row, x], m.running.time[row, x], m.running_batch[row]
    size = 0
    for kind in range(p.classes):
        size += of_class(batch, kind)
    free_s = window.end_s
    if size:
        free_s += left * p.shortest_s[size - 1]
    violations = 0
    for kind in range(p.classes):
        served = position(m, m.running_cell[row], kind)
        labels.served[n, kind] = served
        violations += unavoidable(p, late, kind, served, free_s, 1.0)
        for i in range(served - of_class(batch, kind), served):
            violations += p.counts[i] * (p.deadline_s[i] + SLACK_S < free_s)
    if cost + window.violation * violations <= at_most:
        labels.cost[n], labels.batch[n], labels.left[n] = cost, batch, left
        labels.count[0] = n + 1
