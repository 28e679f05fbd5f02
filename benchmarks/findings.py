"""What a run of the standard suite shows about this project's controllers, in sentences.

Numbers and direction come from the data, who is compared from ``targets.toml``. A sentence is
left out where the run lacks the agents or starts that it is about. Differences that one
sentence lists are one family of tests.

The measure is the same for both sides: avoidable violations (those of requests that were not
hopeless on arrival) and core-seconds. What is relative to a bound would be relative to another
one for another kind of scaling. Either side may be a group of agents. In each cell that one of
it counts which has the fewest avoidable violations there, and of several the fewest
core-seconds.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.layout import listed, percent
from sponge_env.results.statistics import SIGNIFICANCE, holm, paired_p

FILE = Path(__file__).with_name("targets.toml")

Group = Sequence[str]

AVOIDABLE = "avoidable_violation_rate"

NO_DIFFERENCE = "no significant difference"

FIRST_S = 60.0
"""What "the first minute" is."""


def declared(what: Literal["finding", "target"]) -> list[tuple[str, dict[str, Any]]]:
    """Return what ``targets.toml`` declares of one sort: kinds, and their arguments."""
    entries: list[dict[str, Any]] = tomllib.loads(FILE.read_text())[what]
    return [(entry.pop("kind"), entry) for entry in entries]


@dataclass(frozen=True, slots=True)
class Rates:
    """Avoidable violations of two controllers on the same cells."""

    ours: float
    """Per request offered, mean over cells and seeds."""
    theirs: float
    p: float
    """That they differ so much by chance."""

    @property
    def significant(self) -> bool:
        """Whether they are shown to differ."""
        return self.p < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        """What theirs are, beside ours."""
        if not self.significant:
            return NO_DIFFERENCE
        return "more" if self.theirs > self.ours else "fewer"

    @property
    def ratio(self) -> float:
        """How many times as many they have; infinite if we have none, NaN if nobody has."""
        if self.ours:
            return self.theirs / self.ours
        return math.inf if self.theirs else math.nan

    def __str__(self) -> str:
        """Say the ratio, and both rates."""
        if math.isnan(self.ratio):
            return "0 against 0: nothing to divide"
        both = f"{percent(self.theirs, 3)} against {percent(self.ours, 3)}"
        return f"{self.ratio:.3g} times: {both}" if 0 < self.ratio < math.inf else both


def select(
    comparison: Comparison, scenarios: str = "*", profiles: str = "*", start: str = ""
) -> list[Cell]:
    """Return the cells whose scenario and profile match patterns."""
    return [
        cell
        for cell in comparison.cells_of(start=start)
        if fnmatchcase(cell[0], scenarios) and fnmatchcase(cell[1], profiles)
    ]


def picked(comparison: Comparison, cell: Cell, group: Group) -> str:
    """Return the agent of a group that counts on a cell; empty if none has results there."""
    there = [agent for agent in group if comparison.has(agent, cell)]
    order = (AVOIDABLE, "core_seconds")
    return min(there, key=lambda a: [comparison.mean(a, n, cell) for n in order], default="")


def shared(comparison: Comparison, cells: Sequence[Cell], *groups: Group) -> list[Cell]:
    """Return the cells on which all groups have results."""
    return [c for c in cells if all(picked(comparison, c, group) for group in groups)]


def values(comparison: Comparison, group: Group, name: str, cells: Sequence[Cell]) -> FloatArray:
    """Return a metric of a group, shape (cells, seeds)."""
    agents = [picked(comparison, cell, group) for cell in cells]
    parts = [comparison.values(a, name, [cell]) for a, cell in zip(agents, cells, strict=True)]
    return np.concatenate(parts)


def rates(
    comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group
) -> Rates | None:
    """Compare avoidable violations; None if the two share no cell."""
    cells = shared(comparison, cells, ours, theirs)
    if not cells:
        return None
    a, b = (values(comparison, group, AVOIDABLE, cells) for group in (ours, theirs))
    return Rates(float(a.mean()), float(b.mean()), paired_p(a, b))


def corrected(found: Sequence[Rates]) -> list[Rates]:
    """Return comparisons that are read together, with p values by Holm's method."""
    adjusted = holm([r.p for r in found])
    return [replace(r, p=p) for r, p in zip(found, adjusted, strict=True)]


def core_ratios(
    comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group
) -> FloatArray:
    """Return our core-seconds relative to theirs, means over the seeds; shape (cells,)."""
    a, b = (values(comparison, g, "core_seconds", cells).mean(axis=1) for g in (ours, theirs))
    return np.asarray(a / b)


def named(comparison: Comparison, group: Group) -> str:
    """Return what to call a group: only those of it that the run has."""
    there = [agent for agent in group if agent in comparison.agents]
    return there[0] if len(there) == 1 else f"the better of {listed(there)}"


def picks(comparison: Comparison, cells: Sequence[Cell], group: Group) -> str:
    """Say which agent of a group counted in how many cells; empty if there was no choice."""
    if sum(agent in comparison.agents for agent in group) < 2:
        return ""
    counts = Counter(picked(comparison, cell, group) for cell in cells)
    return listed([f"{agent} in {count}" for agent, count in counts.most_common()])


def findings(comparison: Comparison) -> list[str]:
    """Return what can be said about a run of the findings of ``targets.toml``."""
    said = [KINDS[kind](comparison, **rest) for kind, rest in declared("finding")]
    return [text for texts in said for text in texts]


def _violations(comparison: Comparison, ours: Group, theirs: Group) -> Iterator[str]:
    """Say in which scenarios they have more avoidable violations than we, and where not."""
    for start in comparison.starts:
        by_scenario = {
            scenario: rates(comparison, comparison.cells_of(scenario, start), ours, theirs)
            for scenario in comparison.scenarios
        }
        there = {scenario: found for scenario, found in by_scenario.items() if found}
        groups: dict[str, list[str]] = {"more": [], "fewer": [], NO_DIFFERENCE: []}
        for scenario, found in zip(there, corrected(list(there.values())), strict=True):
            groups[found.verdict].append(f"{scenario} ({found})")
        parts = [f"{verdict} in {listed(where)}" for verdict, where in groups.items() if where]
        if parts:
            yield (
                f"Avoidable violations of {named(comparison, theirs)} against {ours[0]}, "
                f"{start} start: {'; '.join(parts)}."
            )


def _first_minute(comparison: Comparison, agent: str) -> Iterator[str]:
    """Say whether an agent violates right after a cold start."""
    intervals = comparison.intervals
    if intervals.empty:
        return
    cold = intervals[(intervals["agent"] == agent) & (intervals["start"] == "cold")]
    if cold.empty or cold["time_s"].max() < 2 * FIRST_S:
        return  # nearly all of the episode is its first minute
    shares = {name: _share_in_first_minute(run) for name, run in cold.groupby("scenario")}
    there = [n for n in comparison.scenarios if not math.isnan(shares.get(n, math.nan))]
    early = [f"{name} ({percent(shares[name])})" for name in there if shares[name] > 0.5]
    late = [f"{name} ({percent(shares[name])})" for name in there if shares[name] <= 0.5]
    what = f"{agent}'s avoidable violations after a cold start (first seed)"
    if early:
        yield f"Most of {what} fall into the first minute in {listed(early)}."
    if late:
        yield f"Most of {what} come after the first minute in {listed(late)}."


def _share_in_first_minute(intervals: pd.DataFrame) -> float:
    violations = intervals["avoidable_violations"]
    total = float(violations.sum())
    return float(violations[intervals["time_s"] <= FIRST_S].sum()) / total if total else math.nan


def _cores(comparison: Comparison, ours: Group, theirs: Group) -> Iterator[str]:
    """Say how many cores we hold against them."""
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), ours, theirs)
        found = rates(comparison, cells, ours, theirs)
        if found:
            ratio = float(core_ratios(comparison, cells, ours, theirs).mean())
            yield (
                f"With a {start} start, {ours[0]} holds {percent(abs(1 - ratio))} "
                f"{'fewer' if ratio < 1 else 'more'} cores than {theirs[0]}; the latter's "
                f"avoidable violations: {found.verdict} ({found})."
            )


KINDS: Mapping[str, Callable[..., Iterator[str]]] = {
    "violations": _violations,
    "first minute": _first_minute,
    "cores": _cores,
}
