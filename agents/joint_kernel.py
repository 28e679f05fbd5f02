"""The compiled part of ``sponge-joint``: one queue, several replicas, two intervals of choice.

A *plan* is a pair of cores, one for the interval at hand and one for those after it, and a
batch size for all. :func:`cheapest_plan` follows every queued and every forecast request
through the queue under each plan that could still win, as the serving core would do it:
earliest deadline first, to whichever replica is free first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.exact_kernel import compiled, entry_point
from sponge_env.interfaces import FloatArray

IntArray = NDArray[np.int64]


class Plant(NamedTuple):
    """What stays the same for an episode."""

    service_s: FloatArray
    """(cores_max, batch_max) seconds to plan a batch with; row ``c - 1``, column ``b - 1``."""
    batches: IntArray
    """Batch sizes that plans may use, ascending."""
    later_cores: IntArray
    """Cores that plans may use later, ascending."""
    fastest_s: float
    """Requests with less slack are hopeless: they take time but are not missed."""
    interval_s: float
    """Time between two decisions."""
    later: float
    """Weight of a core in the second part of a plan, against 1 in the first."""
    miss_cost: float
    """Cores held for one interval that a missed deadline is worth."""
    clear_by_s: float
    """Time by which the last request should be done: what comes later waits behind it."""


class Moment(NamedTuple):
    """What one decision looks at; times are seconds from now."""

    slacks_s: FloatArray
    """(queued,) times until the deadlines of the waiting requests, ascending."""
    arrivals_s: FloatArray
    """(arrivals, 2) when each forecast request arrives and when it is due, by arrival; those
    that wait are taken in this order, too."""
    replicas: FloatArray
    """(held, 2) when each replica is free, under the cores in force, and the size of its
    batch; 0 for one that is idle or starts cold, which cores do not speed up."""
    cores: int
    """Cores in force."""
    rate_rps: float
    """Requests that are expected per second after the forecast ones."""


class Plan(NamedTuple):
    """Cores for the interval at hand and for those after it."""

    now: int
    later: int
    batch: int


class Scratch(NamedTuple):
    """Memory for one simulation, so that none is taken for each."""

    free_s: FloatArray
    """(held,)"""
    due_s: FloatArray
    """(batch_max,)"""


class Best(NamedTuple):
    """The best plan so far, by what matters of it."""

    cores: int
    """Now."""
    batch: int
    misses: int
    cost: float


Answer = tuple[int, int, int]
"""Cores, batch and misses of the best plan."""

_MUCH = 1e12
"""More than any plan costs."""


@entry_point
def cheapest_plan(plant: Plant, moment: Moment) -> Answer:
    """Return the first part of the plan with the least ``cores + miss_cost * misses``.

    Plans that keep their cores come first: one of them is nearly as good as the best, so
    that few of the others need a look.
    """
    held = len(moment.replicas)
    scratch = Scratch(np.empty(held), np.empty(plant.service_s.shape[1]))
    best = Best(1, 1, 0, _MUCH)
    for cores in range(1, len(plant.service_s) + 1):
        best = _better(plant, moment, scratch, cores, cores, best)
    for now in range(1, len(plant.service_s) + 1):
        for later in plant.later_cores:
            if later != now:
                best = _better(plant, moment, scratch, now, later, best)
    return best.cores, best.batch, best.misses


@compiled
def _better(
    plant: Plant, moment: Moment, scratch: Scratch, now: int, later: int, best: Best
) -> Best:
    """Return the best plan so far after a look at those with certain cores."""
    cores_cost = len(scratch.free_s) * (now + plant.later * later)
    for batch in plant.batches:
        if cores_cost >= best.cost:
            break
        limit = int((best.cost - cores_cost) / plant.miss_cost)
        misses = _misses(plant, moment, Plan(now, later, batch), scratch, limit)
        cost = cores_cost + plant.miss_cost * misses
        if cost < best.cost:
            best = Best(now, batch, misses, cost)
    return best


@compiled
def _misses(plant: Plant, moment: Moment, plan: Plan, scratch: Scratch, limit: int) -> int:
    """Count the deadlines that a plan misses; above ``limit`` some may be left out.

    A queue that outlasts the plan makes the next requests late, too: as many as arrive
    while it does.
    """
    _start(plant, moment, plan, scratch.free_s)
    waiting, coming, misses, done_s = 0, 0, 0, 0.0
    queued, expected = len(moment.slacks_s), len(moment.arrivals_s)
    while (waiting < queued or coming < expected) and misses <= limit:
        replica = np.argmin(scratch.free_s)
        begin_s = scratch.free_s[replica]
        if waiting == queued:
            begin_s = max(begin_s, moment.arrivals_s[coming, 0])
        size = 0
        while size < plan.batch:
            here = waiting < queued
            there = coming < expected and moment.arrivals_s[coming, 0] <= begin_s
            if not (here or there):
                break
            if here and not (there and moment.arrivals_s[coming, 1] < moment.slacks_s[waiting]):
                due_s = moment.slacks_s[waiting]
                # The hopeless are served, too, but cannot be missed.
                scratch.due_s[size] = due_s if due_s >= plant.fastest_s else np.inf
                waiting += 1
            else:
                scratch.due_s[size] = moment.arrivals_s[coming, 1]
                coming += 1
            size += 1
        end_s = _end_s(plant, plan, begin_s, size)
        scratch.free_s[replica] = end_s
        done_s = max(done_s, end_s)
        for k in range(size):
            misses += end_s > scratch.due_s[k]
    return misses + int(max(0.0, done_s - plant.clear_by_s) * moment.rate_rps)


@compiled
def _start(plant: Plant, moment: Moment, plan: Plan, free_s: FloatArray) -> None:
    """Set when each replica is free: batches in flight go on with the plan's cores."""
    for k in range(len(free_s)):
        free_s[k] = moment.replicas[k, 0]
        size = int(moment.replicas[k, 1])
        if size:
            service_s = plant.service_s[:, size - 1]
            end_s = free_s[k] * service_s[plan.now - 1] / service_s[moment.cores - 1]
            free_s[k] = _switched_s(plant, plan, end_s, size)


@compiled
def _end_s(plant: Plant, plan: Plan, begin_s: float, size: int) -> float:
    """Return when a batch ends."""
    if begin_s >= plant.interval_s:
        later_s: float = begin_s + plant.service_s[plan.later - 1, size - 1]
        return later_s
    return _switched_s(plant, plan, begin_s + plant.service_s[plan.now - 1, size - 1], size)


@compiled
def _switched_s(plant: Plant, plan: Plan, end_s: float, size: int) -> float:
    """Let what is left of a batch at the next decision go on with the later cores."""
    left_s = end_s - plant.interval_s
    if left_s <= 0 or plan.later == plan.now:
        return end_s
    service_s = plant.service_s[:, size - 1]
    switched_s: float = (
        plant.interval_s + left_s * service_s[plan.later - 1] / service_s[plan.now - 1]
    )
    return switched_s


def warm_up() -> None:
    """Compile the kernel, or load it from disk, so that no decision waits for it."""
    one = np.ones(1, np.int64)
    plant = Plant(np.ones((1, 1)), one, one, 1.0, 1.0, 1.0, 1.0, 1.0)
    cheapest_plan(plant, Moment(np.empty(0), np.empty((0, 2)), np.zeros((1, 2)), 1, 0.0))
