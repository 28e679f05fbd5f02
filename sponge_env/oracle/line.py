"""The line of requests that would make the next batch of the relaxed server.

It holds the most urgent ones that have arrived. A server that may wait can let further
arrivals join the line; only those change a batch that get a place in it.
"""

from __future__ import annotations

from sponge_env.oracle.lookahead import SLACK_S
from sponge_env.oracle.memory import Memory, position
from sponge_env.oracle.problem import Problem
from sponge_env.oracle.window import Window
from sponge_env.vector.compiler import compiled


@compiled
def fill(p: Problem, window: Window, cell: int, now_s: float, m: Memory) -> int:
    """Line up the most urgent requests that have arrived; return how many."""
    for kind in range(p.classes):
        m.next[kind] = position(m, cell, kind)
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
def next_arrival(p: Problem, window: Window, size: int, m: Memory) -> int:
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
def insert(p: Problem, kind: int, size: int, m: Memory) -> int:
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
def late_in_line(p: Problem, size: int, end_s: float, m: Memory) -> int:
    """Count the violations among the first requests of the line if they end at a moment."""
    late = 0
    for n in range(size):
        i = m.waiting[n]
        late += p.counts[i] * (p.deadline_s[i] + SLACK_S < end_s)
    return late
