"""The upper side: a search for a schedule in the serving core's own semantics.

A beam search: from interval to interval it follows many schedules at once, with every number of
cores and every batch cap that makes a difference. Of those that cost the same so far, in
violations that are certain and in cores, it keeps the few that have got furthest.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, dtype_of, entry_point, inlined, rows
from sponge_env.interfaces import Allocation
from sponge_env.oracle.episode import KnownEpisode, unavoidable
from sponge_env.oracle.serving import REPLICA, STATE, Branches, begin, branch, late_in_batch, serve
from sponge_env.packing import most_cores

VIOLATION = 2**32  # cost of a violation that outweighs all cores; a core for an interval costs 1
NEVER = 2**62  # more than any cost
_most_cores = inlined(most_cores)
LEVELS = 12  # costs that are followed, in cores of each replica above the least one


@dataclass(frozen=True, slots=True)
class FoundSchedule:
    """A schedule and what it costs."""

    violations: int
    core_intervals: float
    schedule: tuple[Allocation, ...]

    @property
    def cost(self) -> tuple[int, float]:
        """What schedules are compared by."""
        return self.violations, self.core_intervals


class Candidate:
    """A schedule that an interval was tried with."""

    cost: int
    progress: float  # Requests served, the part of a batch that is done included
    parent: int  # Position of the schedule it goes on from
    cores: int
    batch: int


CANDIDATE = dtype_of(Candidate)


class Beam(NamedTuple):
    """Working space."""

    branches: Branches  # Schedules in two halves that take turns, and one more to try things with
    beam: int  # Schedules that are followed
    candidates: NDArray[Any]  # (candidates,) those of an interval
    tried: IntArray  # (1,) how many there are
    least: IntArray  # (1,) least cost among them
    kept: IntArray  # (LEVELS, width) candidates by cost, furthest first
    kept_count: IntArray  # (LEVELS,)
    followed: NDArray[Any]  # (intervals, beam) candidates of every interval that were followed


def search(e: KnownEpisode, replicas: IntArray, width: int) -> FoundSchedule:
    """Search for cores and batch sizes with (intervals,) replicas, along ``width`` ways a cost."""
    beam = LEVELS * width
    states = np.zeros(2 * beam + 1, STATE)
    replica_states = rows(np.zeros((states.size, e.replica_slots), REPLICA))
    followed = np.zeros((e.intervals, beam), CANDIDATE)
    s = Beam(
        branches=Branches(rows(states), replica_states), beam=beam,
        candidates=rows(np.zeros(beam * e.cores_max * e.batch_max, CANDIDATE)),
        tried=np.zeros(1, np.int64), least=np.zeros(1, np.int64),
        kept=np.zeros((LEVELS, width), np.int64), kept_count=np.zeros(LEVELS, np.int64),
        followed=rows(followed),
    )  # fmt: skip
    first, count = find_schedules(e, replicas, s)
    found = states[first : first + count]
    best = n = int(np.lexsort((found["counted_core_s"], found["violations"]))[0])
    schedule = []
    for interval in reversed(range(e.intervals)):
        step = followed[interval, n]
        cores, batch, n = (int(step[name]) for name in ("cores", "batch", "parent"))
        schedule.append(Allocation(cores, batch, int(replicas[interval])))
    violations, core_s = int(found["violations"][best]), float(found["counted_core_s"][best])
    return FoundSchedule(violations, core_s / e.interval_s, tuple(reversed(schedule)))


@entry_point
def find_schedules(e: KnownEpisode, replicas: IntArray, s: Beam) -> tuple[int, int]:
    """Fill ``s.followed``; return where the schedules of the last interval are, and how many."""
    begin(e, branch(e, s.branches, 0))
    here, there, followed = 0, s.beam, 1
    for interval in range(e.intervals):
        s.tried[0], s.least[0] = 0, NEVER
        for n in range(followed):
            _try_all(e, s, here + n, interval, replicas[interval])
        followed = _choose(s, interval, replicas[interval])
        for n in range(followed):
            step = s.followed[interval, n]
            _copy(s.branches, here + step.parent, there + n)
            w = branch(e, s.branches, there + n)
            serve(e, w, interval, step.cores, step.batch, replicas[interval])
        here, there = there, here
    return here, followed


@inlined
def _copy(branches: Branches, source: int, target: int) -> None:
    branches.states[target] = branches.states[source]
    for n in range(branches.states[source].replicas):
        branches.replicas[target, n] = branches.replicas[source, n]


@inlined
def _try_all(e: KnownEpisode, s: Beam, k: int, interval: int, replicas: int) -> None:
    """Serve an interval with all allocations; a cap that no batch met makes no difference."""
    scratch, state = 2 * s.beam, s.branches.states[k]
    so_far = VIOLATION * state.violations + int(state.counted_core_s / e.interval_s)
    for cores in range(1, min(e.cores_max, _most_cores(e.nodes, replicas)) + 1):
        if so_far + e.cores_count[interval] * cores * replicas >= s.least[0] + LEVELS * replicas:
            break
        batch = e.batch_max
        while batch > 0:
            _copy(s.branches, k, scratch)
            largest = serve(e, branch(e, s.branches, scratch), interval, cores, batch, replicas)
            _note(e, s, k, interval, cores, batch)
            batch = min(batch, largest) - 1


@inlined
def _note(e: KnownEpisode, s: Beam, k: int, interval: int, cores: int, batch: int) -> None:
    """Add the schedule that was just tried to the candidates."""
    k_tried, end_s = 2 * s.beam, (interval + 1) * e.interval_s
    state, free_s = s.branches.states[k_tried], end_s
    in_force = state.cores  # fewer than were asked for while replicas drain
    violations, progress = state.violations, 0.0
    for n in range(state.replicas):
        replica = s.branches.replicas[k_tried, n]
        if replica.batch_size:
            work_s = e.work_s[replica.batch_size - 1, in_force - 1] / e.share[in_force - 1]
            left = min(1.0, (replica.finish_s - end_s) / work_s)
            done_s = end_s + left * e.shortest_s[replica.batch_size - 1]
            progress -= left * replica.batch_size
            violations += late_in_batch(e, replica, done_s)
            if state.replicas == 1:
                free_s = done_s
    for kind in range(e.classes):
        served = state.served[kind]
        progress += served
        violations += unavoidable(e, kind, served, free_s, float(state.replicas))
    candidate = s.candidates[s.tried[0]]
    cost = VIOLATION * violations + math.ceil(state.counted_core_s / e.interval_s - 1e-6)
    candidate.cost, candidate.progress, candidate.parent = cost, progress, k % s.beam
    candidate.cores, candidate.batch = cores, batch
    s.tried[0] += 1
    s.least[0] = min(s.least[0], cost)


@inlined
def _choose(s: Beam, interval: int, replicas: int) -> int:
    """Choose the candidates that are followed; return how many they are."""
    s.kept_count[:] = 0
    for n in range(s.tried[0]):
        level = (s.candidates[n].cost - s.least[0]) // replicas
        if level < LEVELS:
            _keep(s, n, level)
    followed, ahead = 0, -math.inf  # only those that are ahead of all that cost less
    for level in range(LEVELS):
        cheaper = ahead
        for k in range(s.kept_count[level]):
            candidate = s.candidates[s.kept[level, k]]
            if candidate.progress > cheaper:
                s.followed[interval, followed] = candidate
                ahead = max(ahead, candidate.progress)
                followed += 1
    return followed


@compiled
def _keep(s: Beam, n: int, level: int) -> None:
    """Add a candidate to those of its cost if it is among the furthest."""
    kept, progress, at = s.kept[level], s.candidates[n].progress, s.kept_count[level]
    while at > 0 and s.candidates[kept[at - 1]].progress <= progress:
        if s.candidates[kept[at - 1]].progress == progress:
            return
        at -= 1
    if at == kept.size:
        return
    count = min(s.kept_count[level] + 1, kept.size)
    for k in range(count - 1, at, -1):
        kept[k] = kept[k - 1]
    kept[at], s.kept_count[level] = n, count
