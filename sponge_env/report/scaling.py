"""The targets of look-ahead, joint scaling and learning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from sponge_env.config import ControlName
from sponge_env.report.agents import JOINT, LEARNED, Group
from sponge_env.report.judging import (
    Target,
    Times,
    Verdict,
    all_of,
    at_most,
    horizontal_groups,
    times,
)
from sponge_env.report.overview import FEW_VIOLATIONS
from sponge_env.report.rates import AVOIDABLE, core_ratios, named, percent, picked, shared, values
from sponge_env.report.source import Source
from sponge_env.run.bounds import BOUND_AGENTS
from sponge_env.statistics import SIGNIFICANCE, paired_p
from sponge_env.suite.comparison import Cell, Comparison

LIMITS: Mapping[ControlName, float] = {"vertical": 1.10, "joint": 1.15}
"""Most cores of the best controller, relative to the bound of its kind of scaling."""

PAPER, PAPER_PROFILE = "paper", "yolov5s"
PAPER_CORES = 1.10
"""Most cores of joint scaling there, relative to the horizontal scaler's."""

FAST = ("flash-crowd", "deep-fade", "bursty")
"""Scenarios that change faster than a replica starts."""
FAST_TIMES = 15.0
FAST_CORES = 1.15

LEARNED_WORSE = 1.05


def scaling_targets(source: Source) -> Iterator[Target]:
    """Return the targets that the run says something about."""
    for part in (_distances, _joint_on_paper, _joint_on_fast, _learned):
        yield from part(source)


def _distances(source: Source) -> Iterator[Target]:
    """The best controller of each kind of scaling beside its bound, scenario by scenario."""
    comparison = source.comparison
    for kind, limit in LIMITS.items():
        name = BOUND_AGENTS[kind]
        if comparison.bounds.empty or name not in set(comparison.bounds["agent"]):
            continue
        for start, scenario in product(source.starts, source.scenarios):
            cells = source.cells(scenario, start)
            nearest = [_nearest(comparison, cell, name) for cell in cells]
            if cells:
                yield Target(
                    f"best {kind} controller over {name}, {scenario}, {start} start: cores",
                    f"at most {limit:.2f}, with at most {percent(FEW_VIOLATIONS, 1)} violations "
                    "beyond the bound's",
                    ", ".join(f"{c[1]} {n}" for c, n in zip(cells, nearest, strict=True)),
                    all_of(*(n.judged(limit) for n in nearest)),
                )


@dataclass(frozen=True, slots=True)
class _Nearest:
    """The controller with the fewest cores over a bound among those with few violations."""

    agent: str
    """Empty if none has so few."""
    ratio: float
    known: bool = True
    """Whether the cell has the bound, and somebody who is held against it."""

    def __str__(self) -> str:
        """Say the ratio, and whose it is."""
        if not self.known:
            return "without a bound"
        return f"{self.ratio:.2f} ({self.agent})" if self.agent else "none"

    def judged(self, limit: float) -> Verdict:
        """Judge whether it is near enough."""
        if not self.known:
            return "not decidable"
        return at_most(self.ratio, limit) if self.agent else "missed"


def _nearest(comparison: Comparison, cell: Cell, bound: str) -> _Nearest:
    def seeds_mean(agent: str, name: str) -> float:
        return float(comparison.values(agent, name, [cell]).mean())

    there = [a for a in comparison.agents if comparison.has(a, cell)]
    held = {
        agent: seeds_mean(agent, "cores_over_bound")
        for agent in there
        if comparison.own_bound(agent, cell) == bound
    }
    known = {agent: ratio for agent, ratio in held.items() if not math.isnan(ratio)}
    few = {a: r for a, r in known.items() if seeds_mean(a, "beyond_bound_rate") <= FEW_VIOLATIONS}
    best = min(few, key=few.__getitem__, default="")
    return _Nearest(best, few.get(best, math.inf), bool(known))


def _joint_on_paper(source: Source) -> Iterator[Target]:
    """Joint scaling against the horizontal scaler where load is steady, worst payload."""
    comparison = source.comparison
    for start in source.starts:
        for group in horizontal_groups(comparison):
            cells = [c for c in source.cells(start=start) if _is_paper(c)]
            cells = shared(comparison, cells, JOINT, group)
            if not cells:
                continue
            cores = core_ratios(comparison, cells, JOINT, group).max()
            violations = values(comparison, JOINT, AVOIDABLE, cells).mean(axis=1).max()
            yield Target(
                f"{JOINT[0]} / {named(comparison, group)}, {PAPER} with {PAPER_PROFILE}, {start} "
                f"start: cores, and its avoidable violations",
                f"at most {PAPER_CORES:.2f}, and at most {percent(FEW_VIOLATIONS, 1)}",
                f"at most {cores:.2f}, and at most {percent(violations, 3)} (worst payload each)",
                all_of(at_most(cores, PAPER_CORES), at_most(violations, FEW_VIOLATIONS)),
            )


def _is_paper(cell: Cell) -> bool:
    return cell[0].startswith(PAPER) and cell[1] == PAPER_PROFILE


def _joint_on_fast(source: Source) -> Iterator[Target]:
    """Joint scaling against the horizontal scaler where load or budgets move fast."""
    comparison = source.comparison
    rows = [
        (scenario, start, group)
        for scenario in FAST
        for start in source.starts
        for group in horizontal_groups(comparison)
    ]
    pairs = [(JOINT, group, source.cells(scenario, start)) for scenario, start, group in rows]
    compared = times(comparison, pairs, FAST_TIMES)
    for (scenario, start, group), found in zip(rows, compared, strict=True):
        if found:
            yield _fast(comparison, f"{scenario}, {start} start", group, found)


def _fast(comparison: Comparison, where: str, group: Group, found: Times) -> Target:
    cores = core_ratios(comparison, found.cells, JOINT, group)
    return Target(
        f"{named(comparison, group)} / {JOINT[0]}, {where}: avoidable violations, and the "
        "latter's cores over the former's",
        f"at least {FAST_TIMES:g} times, and at most {FAST_CORES:.2f} in every cell",
        f"{found.text}; cores {cores.mean():.2f}, at most {cores.max():.2f}",
        all_of(found.at_least(FAST_TIMES), at_most(cores.max(), FAST_CORES)),
    )


@dataclass(frozen=True, slots=True)
class _Learned:
    """The best policy beside the best rule or program, on one cell."""

    ratio: float
    """Cores relative to the rule's."""
    p: float
    """That they differ so much by chance, for this cell alone."""


def _learned(source: Source) -> Iterator[Target]:
    """The best policy against the best rule or program, cell by cell."""
    comparison = source.comparison
    rules = tuple(agent for agent in comparison.agents if agent not in LEARNED)
    for start in source.starts:
        cells = shared(comparison, source.cells(start=start), LEARNED, rules)
        if cells:
            yield _learned_target(start, [_against_rules(comparison, c, rules) for c in cells])


def _learned_target(start: str, found: Sequence[_Learned | None]) -> Target:
    there = [one for one in found if one]
    fewer = [one for one in there if one.ratio < 1.0]
    shown = sum(one.p < SIGNIFICANCE for one in fewer)
    worse = sum(one.ratio > LEARNED_WORSE for one in there)
    missing, more = len(found) - len(there), percent(LEARNED_WORSE - 1)
    enough = 2 * len(fewer) >= len(found) and not worse and not missing
    return Target(
        f"best learned controller against the best rule or program, {start} start: cores at no "
        "more avoidable violations",
        f"fewer in at least half of the cells, over {more} more in none",
        f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g} each for "
        f"itself, uncorrected), over {more} more in {worse}, all policies with more violations "
        f"in {missing}",
        "missed" if not enough else "met" if 2 * shown >= len(found) else "not decidable",
    )


def _against_rules(comparison: Comparison, cell: Cell, rules: Group) -> _Learned | None:
    """Compare the cheapest policy that violates no more than the best rule; None without one.

    The best rule is the cheapest with few violations or, where none has few, the one with the
    fewest.
    """

    def cores(agent: str) -> float:
        return float(comparison.values(agent, "core_seconds", [cell]).mean())

    def violations(agent: str) -> float:
        return float(comparison.values(agent, AVOIDABLE, [cell]).mean())

    few = [a for a in rules if comparison.has(a, cell) and violations(a) <= FEW_VIOLATIONS]
    rule = min(few, key=cores) if few else picked(comparison, cell, rules)
    able = [a for a in LEARNED if comparison.has(a, cell) and violations(a) <= violations(rule)]
    if not able:
        return None
    policy = min(able, key=cores)
    ours, theirs = (comparison.values(a, "core_seconds", [cell]) for a in (policy, rule))
    return _Learned(cores(policy) / cores(rule), paired_p(ours, theirs))
