"""Lists of alternatives of which none is better than another in both cost and time.

Each list is a row of two-dimensional arrays, ascending by cost and descending by time. It
has a fixed length: where that is not enough, two neighbours that are close to each other
become one with the cost of the cheaper and the time of the faster. Merging therefore only
ever makes an alternative better than it is, which keeps a lower bound a lower bound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import FloatArray


class Fronts(NamedTuple):
    """Many lists; ``size[k]`` entries of row ``k`` are in use."""

    cost: IntArray
    """(lists, length)."""
    time: FloatArray
    """(lists, length) seconds, or the share of a batch that is left."""
    credit_s: FloatArray
    """(lists, length) start of the CPU's accounts, see :mod:`sponge_env.oracle.relaxed`."""
    worst: FloatArray
    """(lists, length) the time that an entry had before others were merged into it."""
    size: IntArray
    """(lists,)."""


def make_fronts(lists: int, length: int) -> Fronts:
    """Allocate empty lists."""
    cost, size = np.zeros((lists, length), np.int64), np.zeros(lists, np.int64)
    time, credit_s, worst = np.zeros((3, lists, length))
    return Fronts(cost, time, credit_s, worst, size)


@entry_point
def put(
    fronts: Fronts, row: int, cost: int, time: float, credit_s: float, tolerance: float
) -> None:
    """Add an alternative to a list, unless one in it is at least as good.

    Of ``time`` and ``credit_s`` less is better; what an alternative that is left out had of the
    second goes to the one that is kept. An entry that is slower than a costlier one by no more
    than ``tolerance`` takes over its time.
    """
    costs, times, credits_s = fronts.cost[row], fronts.time[row], fronts.credit_s[row]
    worst, own = fronts.worst[row], time
    size = fronts.size[row]
    at = size
    while at > 0 and costs[at - 1] > cost:
        at -= 1
    if at > 0 and (times[at - 1] <= time or worst[at - 1] <= time + tolerance):
        times[at - 1] = min(times[at - 1], time)
        credits_s[at - 1] = min(credits_s[at - 1], credit_s)
        return
    if at > 0 and costs[at - 1] == cost:
        at -= 1
    end = at
    while end < size and times[end] >= own - tolerance:
        credit_s, time = min(credit_s, credits_s[end]), min(time, times[end])
        end += 1
    if end == at and size == costs.size:
        gone = _merge_closest(fronts, row)
        size -= 1
        at -= at > gone
        end = at
    _move(fronts, row, end, size, at + 1 - end)
    costs[at], times[at], credits_s[at], worst[at] = cost, time, credit_s, own
    fronts.size[row] = size + at + 1 - end


@compiled
def _merge_closest(fronts: Fronts, row: int) -> int:
    """Make one of the neighbours that lose the least by it; return which one went."""
    costs, times, credits_s = fronts.cost[row], fronts.time[row], fronts.credit_s[row]
    closest, least = 0, math.inf
    for k in range(fronts.size[row] - 1):
        loss = (costs[k + 1] - costs[k]) * (times[k] - times[k + 1])
        if loss < least:
            closest, least = k, loss
    times[closest] = min(times[closest], times[closest + 1])
    credits_s[closest] = min(credits_s[closest], credits_s[closest + 1])
    _move(fronts, row, closest + 2, fronts.size[row], -1)
    return closest + 1


@compiled
def _move(fronts: Fronts, row: int, start: int, end: int, by: int) -> None:
    """Move the entries [start, end) of a list."""
    for n in range(end - start):
        k = start + n if by < 0 else end - 1 - n
        fronts.cost[row, k + by] = fronts.cost[row, k]
        fronts.time[row, k + by] = fronts.time[row, k]
        fronts.credit_s[row, k + by] = fronts.credit_s[row, k]
        fronts.worst[row, k + by] = fronts.worst[row, k]
