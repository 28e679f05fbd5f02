"""Both sides of the clairvoyant bound of one episode, under both kinds of scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.oracle.beam import FoundSchedule, search
from sponge_env.oracle.episode import KnownEpisode, in_one_line, known_episode
from sponge_env.oracle.fluid import (
    Fluid,
    cheapest_replicas,
    fluid,
    in_whole_intervals,
    least_fluid_cost,
)
from sponge_env.oracle.relaxed_server import OVERFLOW, VIOLATION, least_cost, relaxed_memory
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile

# Widths of the search: a wide one where a narrow one leaves a gap, or for the best plan.
NARROW, WIDE, WIDE_JOINT = 1, 6, 8
GOOD_GAP = 0.01  # in cores, for which no wider search is made
# What a violation costs in cores where the fewest violations are not known. Any number gives a
# bound; smaller ones a better one, after more work.
VIOLATION_COST = 2
VIOLATION_COSTS = (1.0, 4.0, 16.0)  # of the fluid; the one that gives the best bound is kept
PLAN_VIOLATION_COST = 1000.0  # when replicas are planned
MARGINS = (1.0, 0.94, 0.88)  # of the replicas' throughput that plans count on; the best is kept
ALTERNATIVES, SPAN, SPAN_MAX = 16, 1024, 16384  # working space; the span grows if it has to


@dataclass(frozen=True, slots=True)
class Bound:
    """What can be had by knowing all arrivals and delays in advance.

    Service takes exactly its usual time. The fewest violations come first, then the fewest
    core-seconds; both count from where the scenario counts.
    """

    offered: int
    """Requests that count."""
    violations_lower: int
    """No schedule has fewer."""
    violations_upper: int
    """Violations of :attr:`schedule`."""
    core_seconds_lower: float
    """No schedule with at most ``violations_upper`` violations holds fewer."""
    core_seconds_upper: float
    """Core unit-seconds of :attr:`schedule`."""
    schedule: tuple[Allocation, ...]
    """One allocation for each interval."""

    @property
    def gap(self) -> float:
        """Core-seconds of the upper side beyond the lower, relative to the lower."""
        return self.core_seconds_upper / max(1e-9, self.core_seconds_lower) - 1.0


def bound(
    scenario: Scenario, seed: int, joint: bool = False, profile: Profile | None = None
) -> Bound:
    """Bound what any controller can reach in an episode, with the scenario's profile or another.

    With ``joint``, replicas may be added; else there is one. The lower side of joint scaling is
    weaker: it knows no single request.

    Raises:
        SpongeError: The scenario or profile cannot be used.
    """
    if scenario.stages:
        raise ConfigError(f"scenario {scenario.name!r} lists stages, which only have a relaxation")
    e = known_episode(scenario, [profile or scenario_profile(scenario)], seed)
    violations, core_intervals, found = _joint(e) if joint else _vertical(e)
    return Bound(
        offered=int(e.counts.sum()),
        violations_lower=int(violations),
        violations_upper=found.violations,
        core_seconds_lower=float(core_intervals) * e.interval_s,
        core_seconds_upper=found.core_intervals * e.interval_s,
        schedule=found.schedule,
    )


def _vertical(e: KnownEpisode) -> tuple[int, float, FoundSchedule]:
    """Return the fewest violations, the fewest core-intervals and the best schedule found."""
    line = in_one_line(e)
    one = np.ones(e.intervals, np.int64)
    best = search(e, one, NARROW)
    least = divmod(_least(line, VIOLATION, best), VIOLATION)
    # Under a quota the gap is the lower side's.
    if not e.quota and best.core_intervals > least[1] * (1 + GOOD_GAP):
        best = min(best, search(e, one, WIDE), key=lambda found: found.cost)
    cores = float(least[1])
    if least[0] < best.violations:
        # Who has no more violations than these holds at least the cost less theirs.
        total = _least(line, VIOLATION_COST, best)
        cores = float(total - VIOLATION_COST * best.violations)
    # Requests as water know less of each other, but more of the CPU that an interval grants.
    alone = _fluid_core_intervals(e._replace(replicas_max=1), best.violations)
    return least[0], max(cores, alone), best


def _least(line: KnownEpisode, violation: int, found: FoundSchedule) -> int:
    """Return the least cost of the relaxed server."""
    at_most = violation * found.violations + round(found.core_intervals)
    span = SPAN
    while span <= SPAN_MAX:
        memory = relaxed_memory(line, ALTERNATIVES, span)
        cost = least_cost(line, violation, at_most, memory)
        if cost != OVERFLOW:
            return int(cost)
        span *= 2
    raise ConfigError(
        f"the oracle has no room for more than {SPAN_MAX} requests that wait at once; lower the "
        "load, or drop what has expired (serving.drop)"
    )


def _joint(e: KnownEpisode) -> tuple[int, float, FoundSchedule]:
    """Return the same where replicas may be added."""
    found = _joint_schedule(e)
    if not e.quota and not _excludes_one(e, found):
        one = np.ones(e.intervals, np.int64)
        found = min(found, search(e, one, WIDE), key=lambda schedule: schedule.cost)
    # What not even all replicas that fit on the machine could avoid, with no queue.
    late = int(in_one_line(e, _speedup(e)).late[0])
    violations = max(late, int(e.counts.sum()) - fluid(e).answerable)
    return violations, _fluid_core_intervals(e, found.violations), found


def _excludes_one(e: KnownEpisode, found: FoundSchedule) -> bool:
    """Return whether no schedule of one replica can be better than this one."""
    late = int(in_one_line(e).late[0])
    alone = _fluid_core_intervals(e._replace(replicas_max=1), found.violations)
    return late > found.violations or (late == found.violations and alone >= found.core_intervals)


def _joint_schedule(e: KnownEpisode) -> FoundSchedule:
    """Search for cores and batches under several plans of replicas; the best is kept."""
    plans = [np.ones(e.intervals, np.int64)]
    if not e.quota:  # replicas that share one CPU serve no more than one that has it all
        fine = fluid(e)
        plans += [
            _plan(e, f, margin) for f in (fine, in_whole_intervals(fine)) for margin in MARGINS
        ]
        plans = list({plan.tobytes(): plan for plan in plans}.values())
    found = [(search(e, plan, NARROW), plan) for plan in plans]
    best, plan = min(found, key=lambda pair: pair[0].cost)
    if e.quota:
        return best  # a wider search takes long and finds next to nothing
    # Where those that start take cores from those that serve, they had better come one by one.
    others = [plan] if plan.max() > 1 else plans
    shared = [each for each in others if each.max() * e.cores_max > e.total_cores]
    slow = [_one_by_one(each, _cold_intervals(e)) for each in shared]
    found = [(best, plan), *((search(e, each, NARROW), each) for each in slow)]
    best, plan = min(found, key=lambda pair: pair[0].cost)
    return min(best, search(e, plan, WIDE_JOINT), key=lambda schedule: schedule.cost)


def _plan(e: KnownEpisode, f: Fluid, margin: float) -> IntArray:
    """Return the (intervals,) replicas to ask for, early enough to be ready when needed."""
    ahead = _cold_intervals(e)
    cost = np.full(e.intervals, round(e.cold_start_s / e.interval_s))
    f = f._replace(served=f.served * margin, start=cost, ready_from=ahead)
    # No plan is made for the moments between.
    f = f._replace(violation=PLAN_VIOLATION_COST, mixed=f.mixed[:, :, :0])
    least_fluid_cost(f)
    later = np.concatenate([cheapest_replicas(f), np.zeros(ahead, np.int64)])
    asked: IntArray = np.lib.stride_tricks.sliding_window_view(later, ahead + 1).max(axis=1)
    return asked


def _one_by_one(plan: IntArray, ahead: int) -> IntArray:
    """Return a plan in which a replica is asked for when the one before is ready."""
    asked = [1] * ahead
    for wanted in plan.tolist():
        ready = min(asked[len(asked) - ahead :], default=wanted)
        asked.append(min(wanted, ready + 1))
    return np.array(asked[ahead:])


def _cold_intervals(e: KnownEpisode) -> int:
    """Return how many intervals before it is needed a replica has to be asked for."""
    return math.ceil(e.cold_start_s * e.loading_contention / e.interval_s - 1e-9)


def _fluid_core_intervals(e: KnownEpisode, violations_upper: int) -> float:
    """Return how many core-intervals it takes to have no more than so many violations.

    See ``docs/oracle.md`` for why a cost of violations gives a bound.
    """
    f = fluid(e)
    others = violations_upper - (int(e.counts.sum()) - f.answerable)
    # Where there must be none, the largest cost says most.
    costs = VIOLATION_COSTS if others > 0 else VIOLATION_COSTS[-1:]
    return max(least_fluid_cost(f._replace(violation=cost)) - cost * others for cost in costs)


def _speedup(e: KnownEpisode) -> float:
    """Return how many times the best throughput of a replica all together can have."""
    if e.quota:  # each can be ahead of its share
        return float(e.replicas_max)
    replicas = np.arange(1, e.replicas_max + 1)
    cores = np.minimum(e.cores_max, e.total_cores // replicas)
    sizes = np.arange(1, e.batch_max + 1)[:, None]
    rates_rps = np.maximum.accumulate((sizes / e.padded_s).max(axis=0))
    return float((replicas * (rates_rps[cores - 1] / e.rate_rps)).max())
