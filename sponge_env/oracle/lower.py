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
from typing import NamedTuple

import numpy as np

from sponge_env.interfaces import FloatArray
from sponge_env.oracle.lookahead import SLACK_S, unavoidable
from sponge_env.oracle.pareto import Fronts, make_fronts, put
from sponge_env.oracle.problem import BATCH_BITS, MAX_BATCH, MAX_CLASSES, IntArray, Problem
from sponge_env.vector.compiler import compiled, entry_point

VIOLATION = 2**32
"""Cost of a violation, more than all cores of an episode; a core for a window costs 1."""

TIME_TOLERANCE_S = 1e-3
"""Moments that are closer are taken for the earlier one."""

SHARE_TOLERANCE = 1e-4
"""Rests of a batch that are closer are taken for the smaller one."""

OVERFLOW = -1
"""Answer of a kernel whose memory was too small."""


class Labels(NamedTuple):
    """States at a boundary, with what they cost."""

    served: IntArray
    """(labels, MAX_CLASSES) position after the last request of each class in a batch."""
    batch: IntArray
    """(labels,) requests of each class in the batch that runs, BATCH_BITS for each class;
    0 where none runs."""
    left: FloatArray
    """(labels,) share of its work that is left."""
    cost: IntArray
    """(labels,)."""
    count: IntArray
    """(1,) how many there are."""


class Memory(NamedTuple):
    """Working space, allocated once. A *cell* is what has been served, as one number."""

    labels: Labels
    free: Fronts
    """When the replica is free, for each cell that a window reaches."""
    at_cell: IntArray
    """(cells,) row in ``free`` of each cell, or -1."""
    running: Fronts
    """What is left of a batch at the window's end, for each pair of cell and batch."""
    keys: IntArray
    """(slots,) those pairs, hashed; -1 where there is none."""
    rows: IntArray
    """(slots,) row in ``running`` of each."""
    cell: IntArray
    """(rows,) and back: the cell of each row, and the batch."""
    batch: IntArray
    base: IntArray
    """(MAX_CLASSES,) position of each class at cell 0."""
    stride: IntArray
    """(MAX_CLASSES,) cells from one request of a class to the next."""
    used: IntArray
    """(3,) rows of ``free`` and of ``running`` in use, and whether the memory was too
    small."""
    waiting: IntArray
    """(batch_max + 1,) the requests that would make the next batch."""
    kinds: IntArray
    """(batch_max + 1,) their classes."""
    next: IntArray
    """(MAX_CLASSES,) first request of each class that is not among them."""


class Window(NamedTuple):
    """A window under one number of cores."""

    index: int
    start_s: float
    end_s: float
    """Infinite for the last one: what is left is served under its cores."""
    cores: int


def make_memory(p: Problem, room: int, scale: int) -> Memory:
    """Allocate working space.

    Args:
        p: The problem.
        room: Alternatives that are kept apart for one state.
        scale: Factor on the sizes that depend on the episode.
    """
    rows, slots, cells = 4096 * scale, 16384 * scale, 65536 * scale
    labels = Labels(
        np.zeros((rows * room, MAX_CLASSES), np.int64),
        np.zeros(rows * room, np.int64),
        np.zeros(rows * room),
        np.zeros(rows * room, np.int64),
        np.zeros(1, np.int64),
    )
    numbers = [np.zeros(count, np.int64) for count in (rows, rows, MAX_CLASSES, MAX_CLASSES, 3)]
    line = [np.zeros(p.batch_max + 1, np.int64) for _ in range(2)]
    return Memory(
        labels,
        make_fronts(rows, room),
        np.full(cells, -1),
        make_fronts(rows, room),
        np.full(slots, -1),
        np.zeros(slots, np.int64),
        *numbers,
        *line,
        np.zeros(MAX_CLASSES, np.int64),
    )


@entry_point
def least_cost(p: Problem, late: IntArray, at_most: int, m: Memory) -> int:
    """Return the cost of the relaxed server's best schedule.

    Args:
        p: The problem.
        late: See :func:`sponge_env.oracle.lookahead.lookahead`.
        at_most: Cost that some schedule attains; what must cost more is left out.
        m: Working space.

    Returns:
        ``violations * VIOLATION + core-windows``, or OVERFLOW.
    """
    best = at_most
    m.used[2] = 0
    labels = m.labels
    labels.count[0] = 1
    labels.batch[0] = labels.cost[0] = 0
    for kind in range(p.classes):
        labels.served[0, kind] = p.first[kind]
    for k in range(p.windows):
        if not _lay_out_cells(p, k, m):
            return OVERFLOW
        for cores in range(1, p.cores_max + 1):
            last = k == p.windows - 1
            end_s = math.inf if last else (k + 1) * p.interval_s
            best = min(best, _serve(p, Window(k, k * p.interval_s, end_s, cores), m))
        if m.used[2]:
            return OVERFLOW
        _collect(p, late, k, at_most - p.to_pay[k + 1], m)
    return best


@compiled
def _lay_out_cells(p: Problem, k: int, m: Memory) -> bool:
    """Number what can have been served by the end of a window; return whether it fits."""
    cells = 1
    for kind in range(p.classes):
        lowest = m.labels.served[0, kind]
        for n in range(1, m.labels.count[0]):
            lowest = min(lowest, m.labels.served[n, kind])
        m.base[kind], m.stride[kind] = lowest, cells
        cells *= p.arrived[k + 1, kind] - lowest + 1
    m.used[1] = 0
    m.keys[:] = -1
    return bool(cells <= m.at_cell.size)


@compiled
def _serve(p: Problem, window: Window, m: Memory) -> int:
    """Follow every label through a window.

    Returns:
        In the last window the least cost of having served all; else more than any cost.
    """
    m.used[0] = 0
    cells = 1
    for kind in range(p.classes):
        cells += m.stride[kind] * (p.arrived[window.index + 1, kind] - m.base[kind])
    m.at_cell[:cells] = -1
    for n in range(m.labels.count[0]):
        _resume(p, window, n, m)
    for cell in range(cells):
        if m.at_cell[cell] >= 0:
            _continue(p, window, cell, m)
    if window.end_s < math.inf or m.at_cell[cells - 1] < 0:
        return 2**62
    return int(m.free.cost[m.at_cell[cells - 1], 0])


@compiled
def _resume(p: Problem, window: Window, n: int, m: Memory) -> None:
    """Carry a label into a window: its batch goes on under the window's cores."""
    labels, cell, size = m.labels, 0, 0
    for kind in range(p.classes):
        cell += m.stride[kind] * (labels.served[n, kind] - m.base[kind])
        size += _of_class(labels.batch[n], kind)
    cost = labels.cost[n] + window.cores * p.price[window.index]
    credit_s = window.start_s - p.headstart_s[window.cores - 1]
    if size == 0:
        _reach(m, cell, cost, window.start_s, credit_s)
        return
    work_s = p.padded_s[size - 1, window.cores - 1]
    share = p.share[window.cores - 1]
    after_s = credit_s + work_s * labels.left[n] / share
    end_s = max(window.start_s + work_s * labels.left[n], after_s)
    if end_s > window.end_s:
        left_s = _left_s(window, work_s * labels.left[n], share, window.start_s, credit_s)
        _keep(m, cell, labels.batch[n], cost, left_s / work_s)
        return
    for kind in range(p.classes):
        end = labels.served[n, kind]
        for i in range(end - _of_class(labels.batch[n], kind), end):
            cost += VIOLATION * p.counts[i] * (p.deadline_s[i] + SLACK_S < end_s)
    _reach(m, cell, cost, end_s, after_s)


@compiled
def _of_class(batch: int, kind: int) -> int:
    """Return how many requests of a class are in a batch."""
    return (batch >> (BATCH_BITS * kind)) & MAX_BATCH


@compiled
def _left_s(window: Window, work_s: float, share: float, start_s: float, credit_s: float) -> float:
    """Return the work that is left at a window's end."""
    done_s = min(window.end_s - start_s, share * (window.end_s - credit_s))
    return min(work_s, work_s - done_s)


@compiled
def _reach(m: Memory, cell: int, cost: int, free_s: float, credit_s: float) -> None:
    """Note that the replica can be free at a moment with a cell served."""
    if m.at_cell[cell] < 0:
        if m.used[0] == m.free.size.size:
            m.used[2] = 1
            return
        m.at_cell[cell] = m.used[0]
        m.free.size[m.used[0]] = 0
        m.used[0] += 1
    put(m.free, m.at_cell[cell], cost, free_s, credit_s, TIME_TOLERANCE_S)


@compiled
def _keep(m: Memory, cell: int, batch: int, cost: int, left: float) -> None:
    """Note that a batch can run at the window's end with so much of it left."""
    key = (cell << (BATCH_BITS * MAX_CLASSES)) | batch
    slots = m.keys.size
    slot = (key ^ (key >> 17)) * 40503 % slots
    while m.keys[slot] >= 0 and m.keys[slot] != key:
        slot = (slot + 1) % slots
    if m.keys[slot] < 0:
        if m.used[1] == m.running.size.size:
            m.used[2] = 1
            return
        row = m.used[1]
        m.keys[slot], m.rows[slot] = key, row
        m.cell[row], m.batch[row], m.running.size[row] = cell, batch, 0
        m.used[1] += 1
    put(m.running, m.rows[slot], cost, left, 0.0, SHARE_TOLERANCE)


@compiled
def _continue(p: Problem, window: Window, cell: int, m: Memory) -> None:
    """Start every batch that makes sense from a cell."""
    row = m.at_cell[cell]
    for x in range(m.free.size[row]):
        cost, free_s, credit_s = m.free.cost[row, x], m.free.time[row, x], m.free.credit_s[row, x]
        if window.end_s < math.inf:
            _keep(m, cell, 0, cost, 0.0)
        if p.drop_grace_s < math.inf:
            _drop(p, window, cell, cost, free_s, credit_s, m)
        size = _fill(p, window, cell, free_s, m)
        busy_s = math.inf
        if size:
            busy_s = _start(p, window, cell, cost, free_s, credit_s, 1, size, m)
        while True:
            kind = _next_arrival(p, window, size, m)
            if kind < 0 or p.release_s[m.next[kind]] >= min(window.end_s, busy_s):
                break
            at_s = max(free_s, p.release_s[m.next[kind]])
            rank = _insert(p, kind, size, m)
            size = min(size + 1, p.batch_max)
            end_s = _start(p, window, cell, cost, at_s, credit_s, rank, size, m)
            busy_s = min(busy_s, end_s)


@compiled
def _served(p: Problem, window: Window, cell: int, kind: int, m: Memory) -> int:
    """Return the position of a class in a cell."""
    length = p.arrived[window.index + 1, kind] - m.base[kind] + 1
    return m.base[kind] + cell // m.stride[kind] % length


@compiled
def _drop(
    p: Problem, window: Window, cell: int, cost: int, free_s: float, credit_s: float, m: Memory
) -> None:
    """Wait until the first request of a class has expired, and drop it."""
    for kind in range(p.classes):
        i = _served(p, window, cell, kind, m)
        if i < p.arrived[window.index + 1, kind]:
            at_s = max(free_s, p.release_s[i], p.deadline_s[i] + p.drop_grace_s)
            if at_s <= window.end_s:
                dropped = cost + VIOLATION * p.counts[i]
                _reach(m, cell + m.stride[kind], dropped, at_s, credit_s)


@compiled
def _fill(p: Problem, window: Window, cell: int, now_s: float, m: Memory) -> int:
    """Line up the most urgent requests that have arrived; return how many."""
    for kind in range(p.classes):
        m.next[kind] = _served(p, window, cell, kind, m)
    size = 0
    while size < p.batch_max:
        chosen = -1
        for kind in range(p.classes):
            i = m.next[kind]
            if i < p.arrived[window.index + 1, kind] and p.release_s[i] <= now_s:
                if chosen < 0 or p.urgency[i] < p.urgency[m.next[chosen]]:
                    chosen = kind
        if chosen < 0:
            break
        m.waiting[size], m.kinds[size] = m.next[chosen], chosen
        m.next[chosen] += 1
        size += 1
    return size


@compiled
def _next_arrival(p: Problem, window: Window, size: int, m: Memory) -> int:
    """Return the class of the next arrival that would change the line; -1 if none does."""
    chosen = -1
    for kind in range(p.classes):
        i = m.next[kind]
        if i >= p.arrived[window.index + 1, kind]:
            continue
        if size == p.batch_max and p.urgency[i] > p.urgency[m.waiting[size - 1]]:
            continue
        if chosen < 0 or p.release_s[i] < p.release_s[m.next[chosen]]:
            chosen = kind
    return chosen


@compiled
def _insert(p: Problem, kind: int, size: int, m: Memory) -> int:
    """Put the next request of a class into the line; return its place, the first being 1.

    Where the line is full, the last one leaves it.
    """
    if size == p.batch_max:
        size -= 1
        m.next[m.kinds[size]] = m.waiting[size]
    i, at = m.next[kind], size
    while at > 0 and p.urgency[m.waiting[at - 1]] > p.urgency[i]:
        m.waiting[at], m.kinds[at] = m.waiting[at - 1], m.kinds[at - 1]
        at -= 1
    m.waiting[at], m.kinds[at] = i, kind
    m.next[kind] += 1
    return at + 1


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
        cell += m.stride[kind]
        batch += 1 << (BATCH_BITS * kind)
        if size < smallest:
            continue
        work_s = p.padded_s[size - 1, window.cores - 1]
        after_s = credit_s + work_s / share
        end_s = max(begun_s + work_s, after_s)
        first_end_s = min(first_end_s, end_s)
        if end_s > window.end_s:
            left_s = _left_s(window, work_s, share, begun_s, credit_s)
            _keep(m, cell, batch, cost, left_s / work_s)
        else:
            _reach(m, cell, cost + VIOLATION * _late(p, size, end_s, m), end_s, after_s)
    return first_end_s


@compiled
def _late(p: Problem, size: int, end_s: float, m: Memory) -> int:
    """Count the violations among the first requests of the line if they end at a moment."""
    late = 0
    for n in range(size):
        i = m.waiting[n]
        late += p.counts[i] * (p.deadline_s[i] + SLACK_S < end_s)
    return late


@compiled
def _collect(p: Problem, late: IntArray, k: int, at_most: int, m: Memory) -> None:
    """Make labels of what a window led to, but for what can be left out."""
    labels, window = m.labels, Window(k, 0.0, (k + 1) * p.interval_s, 0)
    labels.count[0] = 0
    for row in range(m.used[1]):
        if m.batch[row] == 0:
            _add_label(p, late, window, row, 0, at_most, m)
    idle = labels.count[0]
    for row in range(m.used[1]):
        if m.batch[row]:
            for x in range(m.running.size[row]):
                if not _beaten(p, window, row, m.running.cost[row, x], idle, m):
                    _add_label(p, late, window, row, x, at_most, m)


@compiled
def _beaten(p: Problem, window: Window, row: int, cost: int, idle: int, m: Memory) -> bool:
    """Return whether an idle replica has served as much for no more."""
    for n in range(idle):
        if m.labels.cost[n] <= cost:
            ahead = True
            for kind in range(p.classes):
                served = _served(p, window, m.cell[row], kind, m)
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
    cost, left, batch = m.running.cost[row, x], m.running.time[row, x], m.batch[row]
    size = 0
    for kind in range(p.classes):
        size += _of_class(batch, kind)
    free_s = window.end_s
    if size:
        free_s += left * p.shortest_s[size - 1]
    violations = 0
    for kind in range(p.classes):
        served = _served(p, window, m.cell[row], kind, m)
        labels.served[n, kind] = served
        violations += unavoidable(p, late, kind, served, free_s, 1.0)
        for i in range(served - _of_class(batch, kind), served):
            violations += p.counts[i] * (p.deadline_s[i] + SLACK_S < free_s)
    if cost + VIOLATION * violations <= at_most:
        labels.cost[n], labels.batch[n], labels.left[n] = cost, batch, left
        labels.count[0] = n + 1
