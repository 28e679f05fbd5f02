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
from sponge_env.oracle.problem import Problem

SLACK_S = 1e-9
"""A request this late may be so by rounding only; the lower side lets it pass."""


@compiled
def _busy_period(
    p: Problem, kind: int, start: int, free_s: float, speedup: float
) -> tuple[int, int]:
    """Serve one class from ``start`` on until the replicas have nothing to do.

    Returns:
        The request after the last, and the violations.
    """
    late, i = 0, start
    while i < p.first[kind + 1] and (i == start or p.release_s[i] < free_s):
        done_s = max(free_s, p.release_s[i]) + 1.0 / (p.rate_rps * speedup)
        at_least_s = max(done_s, p.release_s[i] + p.fastest_s)
        in_time = at_least_s <= p.deadline_s[i] + SLACK_S
        late += 0 if in_time else p.counts[i]
        if in_time or not (p.may_skip or p.drop_grace_s < math.inf):
            free_s = done_s
        i += 1
    return i, late


@entry_point
def late_from_idle(p: Problem, speedup: float, late: IntArray) -> None:
    """Write the violations from each request on if nothing waits when it arrives.

    Args:
        p: The problem.
        speedup: Replicas that share the work.
        late: (n + 1,) is written.
    """
    late[:] = 0
    for kind in range(p.classes):
        for start in range(p.first[kind + 1] - 1, p.first[kind] - 1, -1):
            after, violations = _busy_period(p, kind, start, p.release_s[start], speedup)
            rest = late[after] if after < p.first[kind + 1] else 0
            late[start] = violations + rest


@compiled
def unavoidable(
    p: Problem, late: IntArray, kind: int, start: int, free_s: float, speedup: float
) -> int:
    """Count the violations of one class from a state on that nothing can avoid.

    Args:
        p: The problem.
        late: What :func:`late_from_idle` wrote.
        kind: The class.
        start: Its first request that was not started.
        free_s: When a replica can begin with it.
        speedup: Replicas that share the work.
    """
    end = p.first[kind + 1]
    if start >= end:
        return 0
    if p.release_s[start] >= free_s:
        return int(late[start])
    after, violations = _busy_period(p, kind, start, free_s, speedup)
    return violations + (int(late[after]) if after < end else 0)


def lookahead(p: Problem, speedup: float = 1.0) -> IntArray:
    """Return the (n + 1,) violations from each request on, served from an idle moment."""
    late = np.zeros(p.release_s.size + 1, dtype=np.int64)
    late_from_idle(p, speedup, late)
    return late
