"""Both sides of the clairvoyant bound of one episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation
from sponge_env.oracle.attained import Attained, search
from sponge_env.oracle.joint import joint_core_intervals, joint_schedule, joint_violations
from sponge_env.oracle.lookahead import lookahead
from sponge_env.oracle.lower import OVERFLOW, VIOLATION, least_cost
from sponge_env.oracle.memory import make_memory
from sponge_env.oracle.problem import Problem, in_one_line, make_problem
from sponge_env.profile import Profile
from sponge_env.scenario import Scenario
from sponge_env.spec import scenario_profile
from sponge_env.workload import as_long_as_its_traces

NARROW, WIDE = 1, 6
"""Widths of the search: the second is tried where the first leaves a gap."""

GOOD_GAP = 0.01
"""Gap in cores that is not worth a wider search."""

TRADE = 2
"""Cores that a violation is taken to be worth, where the fewest violations are not known. Any
number gives a bound; smaller ones a better one, after more work."""

ROOM, SPAN, SPAN_MAX = 16, 1024, 16384
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


def bound(
    scenario: Scenario, seed: int, joint: bool = False, profile: Profile | None = None
) -> Bound:
    """Bound what any controller can reach in an episode.

    Args:
        scenario: The experiment.
        seed: Seed of arrivals and bandwidth.
        joint: Whether replicas may be added, too; else there is one. The lower side of joint
            scaling is weaker: it knows no single request.
        profile: Latency profile; the scenario's if left out.

    Raises:
        SpongeError: The scenario or profile cannot be used.
    """
    if profile is None:
        profile = scenario_profile(scenario)
    scenario = as_long_as_its_traces(scenario)
    p = make_problem(scenario, profile, seed)
    if joint:
        found = joint_schedule(p)
        cores = joint_core_intervals(p, found.violations)
        return _between(p, joint_violations(p), cores, found)
    return _vertical(p)


def _vertical(p: Problem) -> Bound:
    line = in_one_line(p)
    late, late_in_line = lookahead(p), lookahead(line)
    one = np.ones(p.intervals, np.int64)
    best = search(p, late, one, NARROW)
    least = divmod(_least(line, late_in_line, VIOLATION, best), VIOLATION)
    # Under a quota the gap is the lower side's.
    if not p.quota and best.core_intervals > least[1] * (1 + GOOD_GAP):
        best = min(best, search(p, late, one, WIDE), key=lambda found: found.cost)
    cores = float(least[1])
    if least[0] < best.violations:
        # Who has no more violations than these, holds at least what the priced ones leave.
        priced = _least(line, late_in_line, TRADE, best)
        cores = float(priced - TRADE * best.violations)
    # Requests as water know less of each other, but more of the CPU that an interval grants.
    alone = joint_core_intervals(p._replace(replicas_max=1), best.violations)
    return _between(p, least[0], max(cores, alone), best)


def _between(p: Problem, violations: int, core_intervals: float, found: Attained) -> Bound:
    """Put the lower side beside a schedule."""
    return Bound(
        offered=int(p.counts.sum()),
        violations_lower=violations,
        violations_upper=found.violations,
        core_seconds_lower=core_intervals * p.interval_s,
        core_seconds_upper=found.core_intervals * p.interval_s,
        schedule=found.schedule,
    )


def _least(line: Problem, late: IntArray, violation: int, attained: Attained) -> int:
    """Return the least cost of the relaxed server."""
    at_most = violation * attained.violations + round(attained.core_intervals)
    span = SPAN
    while span <= SPAN_MAX:
        cost = least_cost(line, late, violation, at_most, make_memory(line, ROOM, span))
        if cost != OVERFLOW:
            return int(cost)
        span *= 2
    raise ConfigError(
        f"the oracle has no room for more than {SPAN_MAX} requests that wait at once; lower the "
        "load, or drop what has expired (serving.drop)"
    )
