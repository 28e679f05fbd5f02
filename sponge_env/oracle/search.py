"""The upper side: a search for a schedule in the serving core's own semantics.

A beam search: from interval to interval it follows many schedules at once, with every number of
cores and every batch cap that makes a difference. Of those that cost the same so far, in
violations that are certain and in cores, it keeps the few that have got furthest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import FloatArray
from sponge_env.oracle.lookahead import unavoidable
from sponge_env.oracle.lower import NEVER, VIOLATION
from sponge_env.oracle.problem import Problem
from sponge_env.oracle.serving import (
    REPLICA,
    STATE,
    Branches,
    begin,
    branch,
    late_in_batch,
    serve,
)

LEVELS = 12
"""Costs that are followed, in cores of each replica above the least one."""


class Candidates(NamedTuple):
    """Schedules that an interval was tried with."""

    cost: IntArray
    """(candidates,)."""
    progress: FloatArray
    """(candidates,) requests served, the part of a batch that is done included."""
    parent: IntArray
    """(candidates,) position of the schedule it goes on from."""
    cores: IntArray
    """(candidates,) the allocation."""
    batch: IntArray
    """(candidates,)."""
    tried: IntArray
    """(1,) how many there are."""


class Search(NamedTuple):
    """Working space."""

    branches: Branches
    """Schedules in two halves that take turns, and one more to try things with."""
    beam: int
    """Schedules that are followed."""
    width: int
    """Schedules of equal cost that are followed."""
    candidates: Candidates
    kept: IntArray
    """(LEVELS, width) candidates by cost, furthest first."""
    least: IntArray
    """(1,) least cost among the candidates."""
    kept_count: IntArray
    """(LEVELS,)."""
    parents: IntArray
    """(intervals, beam) position of the schedule that each goes on from."""
    cores: IntArray
    """(intervals, beam) and with which allocation."""
    batch: IntArray
    """(intervals, beam)."""


def make_search(p: Problem, width: int) -> Search:
    """Allocate working space for a beam of ``LEVELS * width`` schedules.

    Args:
        p: The problem.
        width: Schedules of equal cost that are followed.
    """
    beam = LEVELS * width
    states = 2 * beam + 1
    most = beam * p.cores_max * p.batch_max
    candidates = Candidates(
        np.zeros(most, np.int64),
        np.zeros(most),
        np.zeros(most, np.int64),
        np.zeros(most, np.int64),
        np.zeros(most, np.int64),
        np.zeros(1, np.int64),
    )
    return Search(
        Branches(np.zeros(states, STATE), np.zeros((states, p.replica_slots), REPLICA)),
        beam,
        width,
        candidates,
        np.zeros((LEVELS, width), np.int64),
        np.zeros(1, np.int64),
        np.zeros(LEVELS, np.int64),
        *(np.zeros((p.intervals, beam), np.int64) for _ in range(3)),
    )


@entry_point
def find_schedule(
    p: Problem, late: IntArray, replicas: IntArray, s: Search, schedule: IntArray
) -> tuple[int, float]:
    """Search for a good schedule with given replicas.

    Args:
        p: The problem.
        late: See :func:`sponge_env.oracle.lookahead.lookahead`.
        replicas: (intervals,) to be kept in each interval.
        s: Working space.
        schedule: (intervals, 2) cores and batch; is written.

    Returns:
        Its violations, and its core-intervals.
    """
    begin(p, branch(p, s.branches, 0))
    here, there, followed = 0, s.beam, 1
    for interval in range(p.intervals):
        s.candidates.tried[0], s.least[0] = 0, NEVER
        for n in range(followed):
            _try_all(p, late, s, here + n, interval, replicas[interval])
        followed = _choose(s, interval, replicas[interval])
        for n in range(followed):
            cores, batch = s.cores[interval, n], s.batch[interval, n]
            _copy(s.branches, here + s.parents[interval, n], there + n)
            w = branch(p, s.branches, there + n)
            serve(p, w, interval, cores, batch, replicas[interval])
        here, there = there, here
    n = _cheapest(s, here, followed)
    state = s.branches.states[here + n]
    for interval in range(p.intervals - 1, -1, -1):
        schedule[interval, 0], schedule[interval, 1] = s.cores[interval, n], s.batch[interval, n]
        n = s.parents[interval, n]
    return state.violations, state.counted_core_s / p.interval_s


@compiled
def _cheapest(s: Search, here: int, followed: int) -> int:
    best = 0
    for n in range(followed):
        state, least = s.branches.states[here + n], s.branches.states[here + best]
        if state.violations < least.violations or (
            state.violations == least.violations and state.counted_core_s < least.counted_core_s
        ):
            best = n
    return best


@compiled
def _copy(branches: Branches, source: int, target: int) -> None:
    branches.states[target] = branches.states[source]
    for n in range(branches.states[source].replicas):
        branches.replicas[target, n] = branches.replicas[source, n]


@compiled
def _try_all(p: Problem, late: IntArray, s: Search, k: int, interval: int, replicas: int) -> None:
    """Serve an interval with all allocations; a cap that no batch met makes no difference."""
    scratch = 2 * s.beam
    state = s.branches.states[k]
    so_far = VIOLATION * state.violations + int(state.counted_core_s / p.interval_s)
    for cores in range(1, min(p.cores_max, p.total_cores // replicas) + 1):
        if so_far + p.price[interval] * cores * replicas >= s.least[0] + LEVELS * replicas:
            break
        batch = p.batch_max
        while batch > 0:
            _copy(s.branches, k, scratch)
            w = branch(p, s.branches, scratch)
            largest = serve(p, w, interval, cores, batch, replicas)
            _note(p, late, s, k, interval, cores, batch)
            batch = min(batch, largest) - 1


@compiled
def _note(
    p: Problem, late: IntArray, s: Search, k: int, interval: int, cores: int, batch: int
) -> None:
    """Add the schedule that was just tried to the candidates."""
    k_tried, end_s = 2 * s.beam, (interval + 1) * p.interval_s
    state, free_s = s.branches.states[k_tried], end_s
    in_force = state.cores  # fewer than were asked for while replicas drain
    violations, progress = state.violations, 0.0
    for n in range(state.replicas):
        replica = s.branches.replicas[k_tried, n]
        if replica.batch_size:
            work_s = p.work_s[replica.batch_size - 1, in_force - 1] / p.share[in_force - 1]
            left = min(1.0, (replica.finish_s - end_s) / work_s)
            done_s = end_s + left * p.shortest_s[replica.batch_size - 1]
            progress -= left * replica.batch_size
            violations += late_in_batch(p, replica, done_s)
            if state.replicas == 1:
                free_s = done_s
    for kind in range(p.classes):
        served = state.served[kind]
        progress += served
        violations += unavoidable(p, late, kind, served, free_s, float(state.replicas))
    c, n = s.candidates, s.candidates.tried[0]
    c.cost[n] = VIOLATION * violations + math.ceil(state.counted_core_s / p.interval_s - 1e-6)
    c.progress[n], c.parent[n] = progress, k % s.beam
    c.cores[n], c.batch[n] = cores, batch
    c.tried[0] = n + 1
    s.least[0] = min(s.least[0], c.cost[n])


@compiled
def _choose(s: Search, interval: int, replicas: int) -> int:
    """Choose the candidates that are followed; return how many they are."""
    c = s.candidates
    s.kept_count[:] = 0
    for n in range(c.tried[0]):
        level = (c.cost[n] - s.least[0]) // replicas
        if level < LEVELS:
            _keep(s, n, level)
    return _furthest(s, interval)


@compiled
def _keep(s: Search, n: int, level: int) -> None:
    """Add a candidate to those of its cost if it is among the furthest."""
    c, kept, count = s.candidates, s.kept[level], s.kept_count[level]
    at = count
    while at > 0 and c.progress[kept[at - 1]] <= c.progress[n]:
        if c.progress[kept[at - 1]] == c.progress[n]:
            return
        at -= 1
    if at == s.width:
        return
    count = min(count + 1, s.width)
    for k in range(count - 1, at, -1):
        kept[k] = kept[k - 1]
    kept[at] = n
    s.kept_count[level] = count


@compiled
def _furthest(s: Search, interval: int) -> int:
    """Follow the candidates that are ahead of all that cost less."""
    c, followed, ahead = s.candidates, 0, -math.inf
    for level in range(LEVELS):
        for k in range(s.kept_count[level]):
            n = s.kept[level, k]
            if c.progress[n] > ahead:
                s.parents[interval, followed] = c.parent[n]
                s.cores[interval, followed] = c.cores[n]
                s.batch[interval, followed] = c.batch[n]
                followed += 1
        if s.kept_count[level]:
            ahead = max(ahead, c.progress[s.kept[level, 0]])
    return followed
