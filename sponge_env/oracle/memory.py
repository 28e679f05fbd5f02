"""What the lower side keeps while it goes from interval to interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.interfaces import FloatArray
from sponge_env.oracle.pareto import Fronts, make_fronts
from sponge_env.oracle.problem import Problem


class Labels(NamedTuple):
    """States at a boundary, with what they cost; those with most served come first."""

    served: IntArray
    """(labels,) position after the last request that is in a batch."""
    size: IntArray
    """(labels,) requests in the batch that runs; 0 where none does."""
    left: FloatArray
    """(labels,) share of its work that is left."""
    cost: IntArray
    """(labels,)."""


class Memory(NamedTuple):
    """Working space. Rows count the requests served since those of the first label."""

    labels: Labels
    free: Fronts
    """(span,) when the replica is free."""
    idle: IntArray
    """(span,) least cost with the replica free at the interval's end."""
    running: Fronts
    """(span * batch_max,) what is left of a batch at the interval's end, by its size."""


class CoresInterval(NamedTuple):
    """An interval under one number of cores."""

    start_s: float
    end_s: float
    """Infinite for the last one: what is left is served under its cores."""
    cores: int
    pay: int
    """What its cores cost."""
    violation: int
    """What a violation costs, in cores held for an interval."""
    base: int
    """Position of row 0."""
    arrived: int
    """Position after the last request that arrives in it."""
    at_most: int
    """Cost at its end above which nothing is worth being followed."""


def make_memory(p: Problem, room: int, span: int) -> Memory:
    """Allocate working space.

    Args:
        p: The problem.
        room: Alternatives that are kept apart for one state.
        span: Requests between the most and the least that one interval looks at.
    """
    most = span * room
    integers = [np.zeros(most, np.int64) for _ in range(3)]
    return Memory(
        Labels(integers[0], integers[1], np.zeros(most), integers[2]),
        make_fronts(span, room),
        np.zeros(span, np.int64),
        make_fronts(span * p.batch_max, room),
    )
