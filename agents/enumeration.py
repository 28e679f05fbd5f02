"""The program of a single stage and variant, solved by enumeration in compiled code.

It tries pairs of cores and batch size in the order of the objective, leaves out those that cannot
win and stops counting when a pair has lost. It is the fast path of :mod:`.stages`, whose answers
are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec

from .lateness import begin_cores, count_hopeless, count_late, option_of, write_arrivals
from .program import StageState, StageTables

_MANY = 2**62
"""More tasks than there can be."""

Answer = tuple[int, int, int]
"""Cores, batch and late tasks."""


class PairOrder(NamedTuple):
    """Which pairs are tried, and how."""

    orderly: bool
    """Whether no task is done later with more cores."""
    by_recovery: IntArray
    """(<= pairs,) flat indices of those that can make the fewest late, best throughput first."""


def pair_order(spec: SystemSpec) -> PairOrder:
    """Return the order for a system of one stage and variant."""
    cores_max, batch_max = spec.first.cores_max, spec.first.batch_max
    latency_s = spec.first.latency.table_s(batch_max, cores_max).T
    # A fit may have it otherwise; then more cores may make a task late.
    orderly = np.all(np.diff(latency_s, axis=0) <= 0) and np.all(np.diff(latency_s, axis=1) >= 0)
    throughput = np.arange(1, batch_max + 1) / latency_s
    # Of equal ones the fewest cores, then the smallest batch.
    by_recovery = np.argsort(-throughput, axis=None, kind="stable")
    ranks = by_recovery.argsort().reshape(throughput.shape)
    # In an orderly system all the cores are enough: no pair makes fewer late, and it comes behind
    # them by throughput unless that is the same.
    if orderly and np.all(ranks[-1] <= ranks):
        by_recovery = by_recovery[by_recovery >= (cores_max - 1) * batch_max]
    return PairOrder(bool(orderly), by_recovery)


@entry_point
def solve_pairs(tables: StageTables, state: StageState, order: PairOrder) -> Answer:
    """Return the cheapest pair that makes nothing late, or the fastest of those with fewest."""
    write_arrivals(state)
    sizes, hopeless = tables.service_s.shape[2], count_hopeless(tables, state)
    best, fewest, row = order.by_recovery[0], _MANY, order.by_recovery[0] // sizes
    on = begin_cores(tables, state, 0, row + 1)
    for pair in order.by_recovery:
        if pair // sizes != row:
            row = pair // sizes
            on = begin_cores(tables, state, 0, row + 1)
        option = option_of(state, on, pair % sizes + 1)
        late = count_late(tables, state, option, hopeless, 0, fewest - 1)
        if late < fewest:
            best, fewest = pair, late
        # Where one pair makes nothing late, cost decides among all that do.
        if late == 0:
            return _cheapest(tables, state, order.orderly, hopeless)
    return best // sizes + 1, best % sizes + 1, fewest


@compiled
def _cheapest(tables: StageTables, state: StageState, orderly: bool, hopeless: int) -> Answer:
    """Return the cheapest pair that makes nothing late, where there is one."""
    low, high = 1, tables.service_s.shape[1]
    # Where no task is done later with more cores, the fewest are found by bisection.
    while low < high:
        cores = (low + high) // 2 if orderly else low
        if _smallest_batch(tables, state, cores, hopeless):
            high = cores
        else:
            low = cores + 1
    return low, _smallest_batch(tables, state, low, hopeless), 0


@compiled
def _smallest_batch(tables: StageTables, state: StageState, cores: int, hopeless: int) -> int:
    """Return the smallest batch that makes nothing late, 0 if none does."""
    on = begin_cores(tables, state, 0, cores)
    for batch in range(1, tables.service_s.shape[2] + 1):
        option = option_of(state, on, batch)
        if count_late(tables, state, option, hopeless, 0, 0) == 0:
            return batch
    return 0
