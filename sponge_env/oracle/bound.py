"""Both sides of the clairvoyant bound of one episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sponge_env.factory import scenario_profile
from sponge_env.interfaces import Allocation
from sponge_env.oracle.lookahead import lookahead
from sponge_env.oracle.lower import OVERFLOW, VIOLATION, least_cost, make_memory
from sponge_env.oracle.problem import IntArray, Problem, in_one_line, make_problem
from sponge_env.oracle.search import find_schedule, make_search
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.workload import as_long_as_its_traces

WIDTHS = (1, 4)
"""Widths of the search: the second is tried where the first leaves a gap."""

GOOD_GAP = 0.01
"""Gap that is not worth a wider search."""

TRADES = (2, 4)
"""Cores that a violation is taken to be worth, where the fewest violations are not known: the
one that gives the better bound is kept."""

ROOM, SPAN = 16, 1024
"""Working space of the lower side; the span grows if it has to."""


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

    @property
    def violation_gap(self) -> int:
        """Violations of the upper side beyond the lower."""
        return self.violations_upper - self.violations_lower


@dataclass(frozen=True, slots=True)
class Attained:
    """A schedule and what it costs."""

    violations: int
    core_windows: float
    schedule: tuple[Allocation, ...]

    @property
    def cost(self) -> tuple[int, float]:
        """What schedules are compared by."""
        return self.violations, self.core_windows


def bound(
    scenario: Scenario, seed: int, joint: bool = False, profile: Profile | None = None
) -> Bound:
    """Bound what any controller can reach in an episode.

    Args:
        scenario: The experiment.
        seed: Seed of arrivals and bandwidth.
        joint: Whether replicas may be added, too; else there is one.
        profile: Latency profile; the scenario's if left out.

    Raises:
        SpongeError: The scenario or profile cannot be used.
    """
    if profile is None:
        profile = scenario_profile(scenario)
    scenario = as_long_as_its_traces(scenario)
    p = make_problem(scenario, profile, seed)
    if joint:
        raise NotImplementedError
    return _vertical(p)


def _vertical(p: Problem) -> Bound:
    line = in_one_line(p)
    late, late_in_line = lookahead(p), lookahead(line)
    best: Attained | None = None
    for width in WIDTHS:
        found = search(p, late, np.ones(p.windows, np.int64), width)
        if best is None or found.cost < best.cost:
            best = found
        result = _compare(p, line, late_in_line, best)
        if result.gap <= GOOD_GAP and result.violation_gap == 0:
            break
    return result


def search(p: Problem, late: IntArray, replicas: IntArray, width: int) -> Attained:
    """Search for a schedule of cores and batch sizes.

    Args:
        p: The problem.
        late: See :func:`~sponge_env.oracle.lookahead.lookahead`.
        replicas: (windows,) to be kept.
        width: Width of the beam.
    """
    rows = np.zeros((p.windows, 2), np.int64)
    memory = make_search(p, width, int(max(p.replicas, replicas.max())))
    cost = find_schedule(p, late, replicas, memory, rows)
    violations = int(cost // VIOLATION)
    pairs = zip(rows.tolist(), replicas.tolist(), strict=True)
    schedule = tuple(Allocation(cores, batch, count) for (cores, batch), count in pairs)
    return Attained(violations, cost - violations * VIOLATION, schedule)


def _compare(p: Problem, line: Problem, late: IntArray, attained: Attained) -> Bound:
    """Put the lower side beside a schedule."""
    violations, cores = _lower(line, late, attained)
    return Bound(
        offered=int(p.counts.sum()),
        violations_lower=violations,
        violations_upper=attained.violations,
        core_seconds_lower=cores * p.interval_s,
        core_seconds_upper=attained.core_windows * p.interval_s,
        schedule=attained.schedule,
    )


def _lower(line: Problem, late: IntArray, attained: Attained) -> tuple[int, int]:
    """Return the fewest violations, and the core-windows of having no more than attained.

    Where the fewest may be fewer than attained, violations are priced: with v the least of
    ``cores + price * violations``, whoever has no more violations than attained holds at
    least ``v - price * attained`` cores, whatever the price.
    """
    violations, cores = divmod(_least(line, late, VIOLATION, attained), VIOLATION)
    if violations == attained.violations:
        return violations, cores
    priced = (_least(line, late, trade, attained) - trade * attained.violations for trade in TRADES)
    return violations, max(priced)


def _least(line: Problem, late: IntArray, violation: int, attained: Attained) -> int:
    """Return the least cost of the relaxed server."""
    at_most = violation * attained.violations + round(attained.core_windows)
    span = SPAN
    while True:
        cost = least_cost(line, late, violation, at_most, make_memory(line, ROOM, span))
        if cost != OVERFLOW:
            return int(cost)
        span *= 2
