"""What a run of the standard suite shows about this project's controllers, in sentences.

Their numbers and direction come from the data, who is compared from ``targets.toml``. A
sentence is left out where the run lacks the agents or starts that it is about. Differences that
one sentence lists are one family of tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from benchmarks.rates import (
    NO_DIFFERENCE,
    Group,
    core_ratios,
    corrected,
    named,
    rates,
    shared,
)
from sponge_env.results.comparison import Comparison
from sponge_env.results.findings import listed, percent

FIRST_S = 60.0
"""What "the first minute" is."""


def findings(comparison: Comparison, declared: list[Mapping[str, Any]]) -> list[str]:
    """Return what can be said about a run.

    Args:
        comparison: The run.
        declared: What to say something about, see ``targets.toml``.
    """
    return [text for said in declared for text in KINDS[said["kind"]](comparison, **_rest(said))]


def _rest(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != "kind"}


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


KINDS = {"violations": _violations, "first minute": _first_minute, "cores": _cores}
