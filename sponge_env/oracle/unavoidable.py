"""The violations that no schedule can avoid any more, from a state on.

Each class is served as if it had the replicas to itself: one request after the other at the
largest throughput there is, none in less than the shortest service. Whatever the schedule,
the m-th request from here on ends no earlier than that, so what is late even so is late
always, and the classes' violations add up.
"""

from __future__ import annotations

import math

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.oracle.episode import KnownEpisode

SLACK_S = 1e-9
"""A request this late may be so by rounding only; the lower side lets it pass."""


@compiled
def _busy_period(
    e: KnownEpisode, kind: int, start: int, free_s: float, speedup: float
) -> tuple[int, int]:
    """Serve one class until nothing waits; return the next request and the violations."""
    late, i = 0, start
    while i < e.first[kind + 1] and (i == start or e.release_s[i] < free_s):
        done_s = max(free_s, e.release_s[i]) + 1.0 / (e.rate_rps * speedup)
        at_least_s = max(done_s, e.release_s[i] + e.fastest_s)
        in_time = at_least_s <= e.deadline_s[i] + SLACK_S
        late += 0 if in_time else e.counts[i]
        if in_time or not (e.may_skip or e.drop_grace_s < math.inf):
            free_s = done_s
        i += 1
    return i, late


@entry_point
def count_from_idle(e: KnownEpisode, speedup: float, late: IntArray) -> None:
    """Write what :func:`late_from_idle` returns."""
    late[:] = 0
    for kind in range(e.classes):
        for start in range(e.first[kind + 1] - 1, e.first[kind] - 1, -1):
            after, violations = _busy_period(e, kind, start, e.release_s[start], speedup)
            rest = late[after] if after < e.first[kind + 1] else 0
            late[start] = violations + rest


@compiled
def unavoidable(
    e: KnownEpisode, late: IntArray, kind: int, start: int, free_s: float, speedup: float
) -> int:
    """Count the violations of one class that nothing can avoid, from the request ``start`` on.

    ``late`` is what :func:`late_from_idle` returns, ``start`` the first request of the class that
    was not started, and ``free_s`` when a replica can begin with it.
    """
    end = e.first[kind + 1]
    if start >= end:
        return 0
    if e.release_s[start] >= free_s:
        return int(late[start])
    after, violations = _busy_period(e, kind, start, free_s, speedup)
    return violations + (int(late[after]) if after < end else 0)


def late_from_idle(e: KnownEpisode, speedup: float = 1.0) -> IntArray:
    """Return the (n + 1,) violations from each request on if nothing waits when it arrives.

    So many replicas as ``speedup`` share the work.
    """
    late = np.zeros(e.release_s.size + 1, dtype=np.int64)
    count_from_idle(e, speedup, late)
    return late
