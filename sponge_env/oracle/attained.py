"""Schedules that the search has found, with what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.interfaces import Allocation
from sponge_env.oracle.problem import Problem
from sponge_env.oracle.search import find_schedule, make_search


@dataclass(frozen=True, slots=True)
class Attained:
    """A schedule and what it costs."""

    violations: int
    core_intervals: float
    schedule: tuple[Allocation, ...]

    @property
    def cost(self) -> tuple[int, float]:
        """What schedules are compared by."""
        return self.violations, self.core_intervals


def search(p: Problem, late: IntArray, replicas: IntArray, width: int) -> Attained:
    """Search for a schedule of cores and batch sizes.

    Args:
        p: The problem.
        late: See :func:`~sponge_env.oracle.lookahead.lookahead`.
        replicas: (intervals,) to be kept.
        width: Width of the beam.
    """
    rows = np.zeros((p.intervals, 2), np.int64)
    memory = make_search(p, width)
    violations, core_intervals = find_schedule(p, late, replicas, memory, rows)
    pairs = zip(rows.tolist(), replicas.tolist(), strict=True)
    schedule = tuple(Allocation(cores, batch, count) for (cores, batch), count in pairs)
    return Attained(violations, core_intervals, schedule)
