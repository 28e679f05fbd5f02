"""What a run shows, in sentences whose numbers and direction come from its data.

A sentence is left out where the run lacks the agents, starts or bounds that it is about.
Differences that one sentence lists are one family of tests, see :mod:`sponge_env.statistics`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pandas as pd

from sponge_env.report.agents import FA2, HORIZONTAL, PUBLISHED, SPONGE
from sponge_env.report.overview import FEW_VIOLATIONS, cheapest
from sponge_env.report.rates import (
    NO_DIFFERENCE,
    core_ratios,
    corrected,
    listed,
    named,
    percent,
    rates,
    shared,
)
from sponge_env.report.source import Source

FIRST_S = 60.0
"""What "the first minute" is."""


def findings(source: Source) -> list[str]:
    """Return what can be said about a run."""
    return [sentence for part in PARTS for sentence in part(source)]


def _horizontal(source: Source) -> Iterator[str]:
    """Say where the horizontal scaler has more violations than vertical scaling, and where not."""
    for start in source.starts:
        sentence = _against_horizontal(source, start)
        if sentence:
            yield sentence


def _against_horizontal(source: Source, start: str) -> str:
    """Say the same of one start; empty if no scenario has both."""
    comparison = source.comparison
    by_scenario = {
        scenario: rates(comparison, source.cells(scenario, start), SPONGE, HORIZONTAL)
        for scenario in source.scenarios
    }
    there = {scenario: found for scenario, found in by_scenario.items() if found}
    groups: dict[str, list[str]] = {"more": [], "fewer": [], NO_DIFFERENCE: []}
    for scenario, found in zip(there, corrected(list(there.values())), strict=True):
        groups[found.verdict].append(f"{scenario} ({found})")
    parts = [f"{verdict} in {listed(where)}" for verdict, where in groups.items() if where]
    if not parts:
        return ""
    return (
        f"Avoidable violations of {named(comparison, HORIZONTAL)} against {SPONGE[0]}, "
        f"{start} start: {'; '.join(parts)}."
    )


def _first_minute(source: Source) -> Iterator[str]:
    """Say when the horizontal scaler violates after a cold start."""
    intervals, agent = source.intervals, FA2[0]
    if intervals.empty:
        return
    cold = intervals[(intervals["agent"] == agent) & (intervals["start"] == "cold")]
    if cold.empty or cold["time_s"].max() < 2 * FIRST_S:
        return  # nearly all of the episode is its first minute
    shares = {name: _share_in_first_minute(run) for name, run in cold.groupby("scenario")}
    there = [name for name in source.scenarios if not math.isnan(shares.get(name, math.nan))]
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


def _published(source: Source) -> Iterator[str]:
    """Say what the program per request costs against the published one."""
    comparison = source.comparison
    for start in source.starts:
        cells = shared(comparison, source.cells(start=start), SPONGE, PUBLISHED)
        found = rates(comparison, cells, SPONGE, PUBLISHED)
        if found:
            ratio = float(core_ratios(comparison, cells, SPONGE, PUBLISHED).mean())
            yield (
                f"With a {start} start, {SPONGE[0]} holds {percent(abs(1 - ratio))} "
                f"{'fewer' if ratio < 1 else 'more'} cores than {PUBLISHED[0]}; the latter's "
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
        widest, median = percent(gaps["cores"].max(), 1), percent(gaps["cores"].median(), 1)
        open_cells = gaps["violations"] > 0
        sentence = (
            f"Between what is proven of the bound {name} and what is attained lie at most "
            f"{widest} of the core-seconds, {median} in the median cell"
        )
        if open_cells.any():
            most = percent(gaps["violations"].max(), 3)
            sentence += (
                f"; its violations are more than the fewest that are proven in "
                f"{open_cells.sum()} of {len(gaps)} cells, by at most {most} of the requests"
            )
        yield f"{sentence}."


def bound_gaps(source: Source) -> dict[str, pd.DataFrame]:
    """Return by bound the gaps between its two sides, a row for each cell.

    Returns:
        ``cores``: core-seconds, relative to what is proven; ``violations``: per request.
    """
    bounds = source.comparison.bounds
    if bounds.empty:
        return {}
    cell = ["scenario", "profile", "start"]
    offered = source.comparison.episodes.drop_duplicates([*cell, "seed"])
    joined = bounds.merge(offered[[*cell, "seed", "offered"]], on=[*cell, "seed"], how="left")
    sums = joined.groupby(["agent", *cell]).sum(numeric_only=True)
    gaps = pd.DataFrame(
        {
            "cores": sums["core_seconds_upper"] / sums["core_seconds_lower"] - 1.0,
            "violations": (sums["violations_upper"] - sums["violations_lower"])
            / sums["offered"].clip(lower=1),
        }
    )
    return {str(name): gap.droplevel("agent") for name, gap in gaps.groupby(level="agent")}


PARTS = (_horizontal, _first_minute, _published, _cheapest, _bounds)
"""In the order of the report."""
