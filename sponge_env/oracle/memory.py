"""What the lower side keeps: states at a boundary, and all that a window reaches from them.

A *cell* is what has been served, as one number: for each class the requests since a base,
CELL_BITS for each. What a window reaches is looked up by cell, and at its end by cell and
batch, in hash tables.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sponge_env.interfaces import FloatArray
from sponge_env.oracle.pareto import Fronts, make_fronts, put
from sponge_env.oracle.problem import BATCH_BITS, MAX_BATCH, MAX_CLASSES, IntArray, Problem
from sponge_env.vector.compiler import compiled

CELL_BITS = 15
"""Bits for the requests of one class."""

SPAN = 2**CELL_BITS - 1
"""Most requests of one class that one window may look at."""

TIME_TOLERANCE_S = 1e-3
"""Moments that are closer are taken for the earlier one."""

SHARE_TOLERANCE = 1e-4
"""Rests of a batch that are closer are taken for the smaller one."""


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
    """Working space, allocated once."""

    labels: Labels
    base: IntArray
    """(MAX_CLASSES,) position of each class at cell 0."""
    free: Fronts
    """When the replica is free, for each cell that a window reaches."""
    free_cell: IntArray
    """(rows,) the cell of each list in ``free``."""
    free_slots: IntArray
    """(slots,) the row of a cell, or -1."""
    of_total: IntArray
    """(totals,) last row of those with so many requests served since the base, or -1."""
    before: IntArray
    """(rows,) the row before it with the same total, or -1."""
    running: Fronts
    """What is left of a batch at the window's end, for each pair of cell and batch."""
    running_cell: IntArray
    """(rows,)."""
    running_batch: IntArray
    """(rows,) as in :attr:`Labels.batch`."""
    running_slots: IntArray
    """(slots,) the row of such a pair, or -1."""
    used: IntArray
    """(3,) lists in ``free`` and in ``running``, and whether there was no room for one."""
    waiting: IntArray
    """(batch_max + 1,) the requests that would make the next batch."""
    kinds: IntArray
    """(batch_max + 1,) their classes."""
    next: IntArray
    """(MAX_CLASSES,) first request of each class that is not among them."""


def make_memory(p: Problem, room: int, rows: int) -> Memory:
    """Allocate working space.

    Args:
        p: The problem.
        room: Alternatives that are kept apart for one state.
        rows: States that a window may reach.
    """

    def integers(*count: int) -> IntArray:
        return np.zeros(count, np.int64)

    most = rows * room
    labels = Labels(
        integers(most, MAX_CLASSES), integers(most), np.zeros(most), integers(most), integers(1)
    )
    return Memory(
        labels=labels,
        base=integers(MAX_CLASSES),
        free=make_fronts(rows, room),
        free_cell=integers(rows),
        free_slots=integers(4 * rows),
        of_total=integers(p.release_s.size + 1),
        before=integers(rows),
        running=make_fronts(rows, room),
        running_cell=integers(rows),
        running_batch=integers(rows),
        running_slots=integers(4 * rows),
        used=integers(3),
        waiting=integers(p.batch_max + 1),
        kinds=integers(p.batch_max + 1),
        next=integers(MAX_CLASSES),
    )


@compiled
def one_of(kind: int) -> int:
    """Return the difference between the cells before and after one request of a class."""
    return 1 << (CELL_BITS * kind)


@compiled
def position(m: Memory, cell: int, kind: int) -> int:
    """Return the position of a class in a cell."""
    return int(m.base[kind] + ((cell >> (CELL_BITS * kind)) & SPAN))


@compiled
def total(p: Problem, cell: int) -> int:
    """Return how many requests have been served since the base."""
    requests = 0
    for kind in range(p.classes):
        requests += (cell >> (CELL_BITS * kind)) & SPAN
    return requests


@compiled
def of_class(batch: int, kind: int) -> int:
    """Return how many requests of a class are in a batch."""
    return (batch >> (BATCH_BITS * kind)) & MAX_BATCH


@compiled
def _hash(number: int, slots: int) -> int:
    """Return the slot to begin with; the multiplier is that of Fibonacci hashing."""
    return int(((number * 0x9E3779B97F4A7C1) >> 20) % slots)


@compiled
def forget_free(m: Memory) -> None:
    """Empty the lists of when the replica is free."""
    m.used[0] = 0
    m.free_slots[:] = -1
    m.of_total[:] = -1


@compiled
def forget_running(m: Memory) -> None:
    """Empty the lists of what runs at the window's end."""
    m.used[1] = 0
    m.running_slots[:] = -1


@compiled
def reach(p: Problem, m: Memory, cell: int, cost: int, free_s: float, credit_s: float) -> None:
    """Note that the replica can be free at a moment with a cell served."""
    slots = m.free_slots.size
    slot = _hash(cell, slots)
    while m.free_slots[slot] >= 0 and m.free_cell[m.free_slots[slot]] != cell:
        slot = (slot + 1) % slots
    row = m.free_slots[slot]
    if row < 0:
        row = m.used[0]
        if row == m.free_cell.size:
            m.used[2] = 1
            return
        served = total(p, cell)
        m.free_slots[slot], m.free_cell[row], m.free.size[row] = row, cell, 0
        m.before[row], m.of_total[served] = m.of_total[served], row
        m.used[0] += 1
    put(m.free, row, cost, free_s, credit_s, TIME_TOLERANCE_S)


@compiled
def keep(m: Memory, cell: int, batch: int, cost: int, left: float) -> None:
    """Note that a batch can run at the window's end with so much of it left."""
    slots = m.running_slots.size
    slot = _hash(cell * 31 + batch, slots)
    row = m.running_slots[slot]
    while row >= 0 and (m.running_cell[row] != cell or m.running_batch[row] != batch):
        slot = (slot + 1) % slots
        row = m.running_slots[slot]
    if row < 0:
        row = m.used[1]
        if row == m.running_cell.size:
            m.used[2] = 1
            return
        m.running_slots[slot], m.running_cell[row], m.running_batch[row] = row, cell, batch
        m.running.size[row] = 0
        m.used[1] += 1
    put(m.running, row, cost, left, 0.0, SHARE_TOLERANCE)
