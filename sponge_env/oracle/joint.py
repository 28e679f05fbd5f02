"""The sides of joint scaling, in which replicas may be added as well as cores."""

from __future__ import annotations

import math

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.oracle.attained import Attained, search
from sponge_env.oracle.fluid import Fluid, fluid, least_fluid_cost, make_table
from sponge_env.oracle.lookahead import lookahead
from sponge_env.oracle.problem import Problem, in_one_line

MARGINS = (1.0, 0.94, 0.88)
"""Parts of the replicas' throughput that plans count on; the best plan is kept."""

TRADES = (1.0, 4.0, 16.0)
"""Cores that a violation is taken to be worth; the one that gives the best bound is kept."""

DEAR = 1000.0
"""Cores that a violation is worth in a plan."""

NARROW, WIDE = 1, 4
"""Widths of the search: for every plan, and for the best of them."""


def joint_schedule(p: Problem) -> Attained:
    """Search for a schedule of replicas, cores and batch sizes.

    The replicas are planned as if requests were water; cores and batches are found by the
    search, in the serving core's own semantics.
    """
    late = lookahead(p)
    plans = [np.ones(p.intervals, np.int64)]
    if not p.quota:  # replicas that share one CPU serve no more than one that has it all
        plans += [_plan(p, margin) for margin in MARGINS]
        # Where those that start take cores from those that serve, they had better come one by one.
        shared = [plan for plan in plans if plan.max() * p.cores_max > p.total_cores]
        plans += [_one_by_one(plan, _ahead(p)) for plan in shared]
        plans = list({plan.tobytes(): plan for plan in plans}.values())
    found = [(search(p, late, plan, NARROW), plan) for plan in plans]
    best, plan = min(found, key=lambda pair: pair[0].cost)
    if p.quota:
        return best  # a wider search takes long and finds next to nothing
    return min(best, search(p, late, plan, WIDE), key=lambda schedule: schedule.cost)


def _plan(p: Problem, margin: float) -> IntArray:
    """Return the (intervals,) replicas to ask for, early enough to be ready when needed."""
    ahead, f = _ahead(p), _fluid(p)
    cost = np.full(p.intervals, round(p.cold_start_s / p.interval_s))
    f = f._replace(served=f.served * margin, start=cost, ready_from=ahead)
    f = f._replace(mixed=f.mixed[:, :, :0])  # no plan is made for the moments between
    ready = np.zeros(p.intervals, np.int64)
    least_fluid_cost(f, DEAR, make_table(p.intervals, p.replicas_max), ready)
    later = np.concatenate([ready, np.zeros(ahead, np.int64)])
    asked: IntArray = np.lib.stride_tricks.sliding_window_view(later, ahead + 1).max(axis=1)
    return asked


def _ahead(p: Problem) -> int:
    """Return how many intervals before it is needed a replica has to be asked for."""
    return math.ceil(p.cold_start_s * p.loading_contention / p.interval_s - 1e-9)


def _one_by_one(plan: IntArray, ahead: int) -> IntArray:
    """Return a plan in which a replica is asked for when the one before is ready."""
    asked = [1] * ahead
    for wanted in plan.tolist():
        ready = min(asked[len(asked) - ahead :], default=wanted)
        asked.append(min(wanted, ready + 1))
    return np.array(asked[ahead:])


def _fluid(p: Problem) -> Fluid:
    return fluid(p, min(p.replicas_max, int(p.settings["initial"]["replicas"][0])))


def joint_violations(p: Problem) -> int:
    """Return how many violations all replicas together could not avoid."""
    late = lookahead(in_one_line(p), _speedup(p))
    return max(int(late[0]), int(p.counts.sum()) - _fluid(p).counted)


def _speedup(p: Problem) -> float:
    """Return how many times the best throughput of a replica all together can have."""
    if p.quota:  # each can be ahead of its share
        return float(p.replicas_max)
    replicas = np.arange(1, p.replicas_max + 1)
    cores = np.minimum(p.cores_max, p.total_cores // replicas)
    sizes = np.arange(1, p.batch_max + 1)[:, None]
    rates_rps = np.maximum.accumulate((sizes / p.padded_s).max(axis=0))
    return float((replicas * (rates_rps[cores - 1] / p.rate_rps)).max())


def joint_core_intervals(p: Problem, violations_upper: int) -> float:
    """Return how many core-intervals it takes to have no more than so many violations.

    See ``docs/oracle.md`` for why a price on violations gives a bound.
    """
    f = _fluid(p)
    others = violations_upper - (int(p.counts.sum()) - f.counted)
    table, path = make_table(p.intervals, p.replicas_max), np.zeros(p.intervals, np.int64)
    return max(least_fluid_cost(f, trade, table, path) - trade * others for trade in TRADES)
