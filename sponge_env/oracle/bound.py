"""Both sides of the clairvoyant bound of one episode, under both kinds of scaling."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.oracle.beam import FoundSchedule, search
from sponge_env.oracle.episode import KnownEpisode, count_late, known_episode
from sponge_env.oracle.fluid import Fluid, cheapest_replicas, fluid, least_cost
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile

# Widths of the search; under a quota a wide one takes long and finds next to nothing.
NARROW, WIDE, WIDE_JOINT = 1, 6, 8
VIOLATION_COSTS = (1.0, 4.0, 16.0)  # of the fluid; the one that gives the best bound is kept
FEW_COSTS = (0.1, 0.3, 1.0)  # the same where some may be missed: a core may serve many requests
PLAN_VIOLATION_COST = 1000.0  # when replicas are planned
MARGINS = (1.0, 0.94, 0.88)  # of the replicas' throughput that plans count on; the best is kept


@dataclass(frozen=True, slots=True)
class Bound:
    """What can be had by knowing all arrivals and delays, when service takes its usual time."""

    # The fewest violations come first, then the fewest core-seconds; both as the scenario counts.

    offered: int  # Requests that count
    violations_lower: int  # No schedule has fewer
    violations_upper: int  # Violations of :attr:`schedule`
    core_seconds_lower: float  # No schedule with at most ``violations_upper`` violations has fewer
    core_seconds_upper: float  # Core unit-seconds of :attr:`schedule`
    schedule: tuple[Allocation, ...]  # One allocation for each interval


def bound(scenario: Scenario, seed: int, joint: bool = False) -> Bound:
    """Bound what any controller can reach in an episode; a SpongeError where there is no bound."""
    # With ``joint``, replicas may be added; else there is one. The lower side knows no one request.
    if scenario.stages:
        raise ConfigError(f"scenario {scenario.name!r} lists stages, which have no bound")
    e = known_episode(scenario, scenario_profile(scenario), seed)
    count_late(e, 1.0)
    if not joint:
        e = e._replace(replicas_max=1)
    found = _joint_schedule(e) if joint else _vertical_schedule(e)
    violations, core_intervals = _lower(e, found.violations)
    return Bound(
        offered=int(e.counts.sum()), violations_lower=violations, violations_upper=found.violations,
        core_seconds_lower=core_intervals * e.interval_s,
        core_seconds_upper=found.core_intervals * e.interval_s, schedule=found.schedule,
    )  # fmt: skip


def least_cores(scenario: Scenario, seeds: Iterable[int], missed: float) -> float:
    """Return the mean cores below which no schedule misses at most a share of all requests."""
    profile, counted, least = scenario_profile(scenario), 0, np.zeros(len(FEW_COSTS))
    for e in (known_episode(scenario, profile, seed) for seed in seeds):
        f = fluid(e)
        allowed = missed * e.counts.sum()  # What nothing can answer is no part of the fluid
        least += [least_cost(f._replace(violation=cost)) - cost * allowed for cost in FEW_COSTS]
        counted += int(e.cores_count.sum())
    return float(least.max()) / max(1, counted)


def _lower(e: KnownEpisode, violations_upper: int) -> tuple[int, float]:
    """Return the fewest violations, and the core-intervals of those with no more than so many."""
    # See ``docs/oracle.md`` for why a cost of violations gives a bound.
    f, offered = fluid(e), int(e.counts.sum())
    # What not even all replicas that fit on the machine could avoid, with no queue.
    late = int(count_late(e._replace(late=np.zeros_like(e.late)), _speedup(e)))
    others = violations_upper - (offered - f.answerable)
    # Where there must be none, the largest cost says most.
    costs = VIOLATION_COSTS if others > 0 else VIOLATION_COSTS[-1:]
    cores = max(least_cost(f._replace(violation=cost)) - cost * others for cost in costs)
    return max(late, offered - f.answerable), float(cores)


def _vertical_schedule(e: KnownEpisode) -> FoundSchedule:
    """Search for cores and batches of one replica."""
    one = np.ones(e.intervals, np.int64)
    # The wider one looks at other schedules, too, and may miss the narrow one's.
    widths = (NARROW,) if e.quota else (NARROW, WIDE)
    return min((search(e, one, width) for width in widths), key=lambda found: found.cost)


def _joint_schedule(e: KnownEpisode) -> FoundSchedule:
    """Search for cores and batches under several plans of replicas; the best is kept."""
    # Replicas that share one CPU serve no more than one that has it all.
    plans = [np.full(e.intervals, n + 1) for n in range(1 if e.quota else e.replicas_max)]
    plans += [_plan(e, fluid(e), part) for part in MARGINS if not e.quota]
    best, plan = min([(search(e, each, NARROW), each) for each in plans], key=lambda p: p[0].cost)
    if e.quota:
        return best
    wide = search(e, plan, WIDE_JOINT), _vertical_schedule(e._replace(replicas_max=1))
    return min(best, *wide, key=lambda schedule: schedule.cost)


def _plan(e: KnownEpisode, f: Fluid, margin: float) -> IntArray:
    """Return the (intervals,) replicas to ask for, early enough to be ready when needed."""
    ahead, cost = _cold_intervals(e), np.full(e.intervals, round(e.cold_start_s / e.interval_s))
    f = f._replace(served=f.served * margin, start=cost, ready_from=ahead)
    # No plan is made for the moments between.
    f = f._replace(violation=PLAN_VIOLATION_COST, mixed=f.mixed[:, :, :0])
    least_cost(f)
    later = np.concatenate([cheapest_replicas(f), np.zeros(ahead, np.int64)])
    asked: IntArray = np.lib.stride_tricks.sliding_window_view(later, ahead + 1).max(axis=1)
    return asked


def _cold_intervals(e: KnownEpisode) -> int:
    """Return how many intervals before it is needed a replica has to be asked for."""
    return math.ceil(e.cold_start_s * e.loading_contention / e.interval_s - 1e-9)


def _speedup(e: KnownEpisode) -> float:
    """Return how many times the best throughput of a replica all together can have."""
    if e.quota:  # each can be ahead of its share
        return float(e.replicas_max)
    replicas = np.arange(1, e.replicas_max + 1)
    cores = np.minimum(e.cores_max, e.total_cores // replicas)
    sizes = np.arange(1, e.batch_max + 1)[:, None]
    rates_rps = np.maximum.accumulate((sizes / e.padded_s).max(axis=0))
    return float((replicas * (rates_rps[cores - 1] / e.rate_rps)).max())
