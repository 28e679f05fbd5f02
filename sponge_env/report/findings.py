"""What a run shows, in sentences whose numbers and direction come from its data.

A sentence is left out where the run lacks the agents, starts or bounds that it is about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from sponge_env.report.source import Source
from sponge_env.report.tables import FEW_VIOLATIONS, cheapest, violations_metric
from sponge_env.statistics import paired_difference
from sponge_env.suite.tables import Cell, Comparison

SPONGE = "sponge-ip"
"""The program per request."""
PUBLISHED = "sponge-paper"
"""The program as published."""
HORIZONTAL = "fa2"

NO_DIFFERENCE = "no significant difference"

FIRST_S = 60.0
"""What "the first minute" is."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Two agents' violations on the same cells."""

    ours: float
    """Avoidable violations per request offered, mean over cells and seeds."""
    theirs: float
    significant: bool
    """Whether they are shown to differ."""

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
        both = f"{percent(self.theirs, 3)} against {percent(self.ours, 3)}"
        return f"{self.ratio:.3g} times: {both}" if 0 < self.ratio < math.inf else both


def findings(source: Source) -> list[str]:
    """Return what can be said about a run."""
    return [sentence for part in PARTS for sentence in part(source)]


def shared(comparison: Comparison, cells: Sequence[Cell], *agents: str) -> list[Cell]:
    """Return the cells on which all the agents have results."""
    return [cell for cell in cells if all(comparison.has(agent, cell) for agent in agents)]


def rates(comparison: Comparison, cells: Sequence[Cell], ours: str, theirs: str) -> Rates | None:
    """Compare violations of two agents; None if they share no cell."""
    cells = shared(comparison, cells, ours, theirs)
    if not cells:
        return None
    metric = violations_metric(comparison)
    a, b = (comparison.values(agent, metric, cells) for agent in (ours, theirs))
    return Rates(float(a.mean()), float(b.mean()), paired_difference(a, b).excludes(0))


def core_ratio(comparison: Comparison, cells: Sequence[Cell], ours: str, theirs: str) -> float:
    """Return ours relative to theirs, mean over cells of the ratio of mean core-seconds."""
    a, b = (comparison.values(x, "core_seconds", cells).mean(axis=1) for x in (ours, theirs))
    return float((a / b).mean())


def _first_minute(source: Source) -> Iterator[str]:
    """Say when the horizontal scaler violates after a cold start."""
    windows = source.windows
    if windows.empty:
        return
    cold = windows[(windows["agent"] == HORIZONTAL) & (windows["start"] == "cold")]
    if cold.empty or cold["time_s"].max() < 2 * FIRST_S:
        return  # nearly all of the episode is its first minute
    shares = {name: _share_in_first_minute(run) for name, run in cold.groupby("scenario")}
    there = [name for name in source.scenarios if not math.isnan(shares.get(name, math.nan))]
    early = [f"{name} ({percent(shares[name])})" for name in there if shares[name] > 0.5]
    late = [f"{name} ({percent(shares[name])})" for name in there if shares[name] <= 0.5]
    what = f"{HORIZONTAL}'s violations after a cold start (first seed)"
    if early:
        yield f"Most of {what} fall into the first minute in {listed(early)}."
    if late:
        yield f"Most of {what} come after the first minute in {listed(late)}."


def _share_in_first_minute(windows: pd.DataFrame) -> float:
    total = float(windows["violations"].sum())
    early = float(windows.loc[windows["time_s"] <= FIRST_S, "violations"].sum())
    return early / total if total else math.nan


def _horizontal(source: Source) -> Iterator[str]:
    """Say where the horizontal scaler has more violations than vertical scaling, and where not."""
    for start in source.starts:
        groups: dict[str, list[str]] = {"more": [], "fewer": [], NO_DIFFERENCE: []}
        for scenario in source.scenarios:
            found = rates(source.comparison, source.cells(scenario, start), SPONGE, HORIZONTAL)
            if found:
                groups[found.verdict].append(f"{scenario} ({found})")
        parts = [f"{verdict} in {listed(where)}" for verdict, where in groups.items() if where]
        if parts:
            yield (
                f"Avoidable violations of {HORIZONTAL} against {SPONGE}, {start} start: "
                f"{'; '.join(parts)}."
            )


def _published(source: Source) -> Iterator[str]:
    """Say what the program per request costs against the published one."""
    comparison = source.comparison
    for start in source.starts:
        cells = shared(comparison, source.cells(start=start), SPONGE, PUBLISHED)
        found = rates(comparison, cells, SPONGE, PUBLISHED)
        if found:
            ratio = core_ratio(comparison, cells, SPONGE, PUBLISHED)
            yield (
                f"With a {start} start, {SPONGE} holds {percent(abs(1 - ratio))} "
                f"{'fewer' if ratio < 1 else 'more'} cores than {PUBLISHED}; the latter's "
                f"avoidable violations: {found.verdict} ({found})."
            )


def _cheapest(source: Source) -> Iterator[str]:
    """Say who meets the SLO with the fewest cores, and where nobody does."""
    for start in source.starts:
        cells = source.cells(start=start)
        counts = Counter(cheapest(source.comparison, cell) for cell in cells)
        nobody = counts.pop("", 0)
        parts = [f"{agent} in {count}" for agent, count in counts.most_common()]
        if nobody:
            parts.append(f"none in {nobody}")
        few = percent(FEW_VIOLATIONS, 1)
        yield (
            f"With a {start} start, the cheapest agent with at most {few} avoidable violations "
            f"is, of {len(cells)} cell{'s' * (len(cells) > 1)}, {listed(parts)}."
        )


def _bounds(source: Source) -> Iterator[str]:
    """Say how exact the bounds are."""
    for name, gaps in bound_gaps(source).items():
        widest, median = percent(gaps.max(), 1), percent(gaps.median(), 1)
        yield (
            f"Between what is proven of the bound {name} and what is attained lie at most "
            f"{widest} of the core-seconds, {median} in the median cell."
        )


def bound_gaps(source: Source) -> dict[str, pd.Series[float]]:
    """Return by bound each cell's gap between its two sides, relative to the lower one."""
    if source.bounds.empty:
        return {}
    keys = ["agent", "scenario", "profile", "start"]
    sides = source.bounds.groupby(keys)[["core_seconds_lower", "core_seconds_upper"]].sum()
    gaps = sides["core_seconds_upper"] / sides["core_seconds_lower"] - 1.0
    return {str(name): gap for name, gap in gaps.groupby(level="agent")}


def listed(parts: Sequence[str]) -> str:
    """Join as in a sentence."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def percent(share: float, digits: int = 0) -> str:
    """Write a share in per cent."""
    return f"{share * 100:.{digits}f} %"


PARTS = (_horizontal, _first_minute, _published, _cheapest, _bounds)
"""In the order of the report."""
