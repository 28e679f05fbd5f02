"""What has to be said below the README's table.

There is a function for each kind of sentence in ``targets.toml``, and one for a second table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from agents.learned import SHIPPED
from agents.policy import load_policy
from sponge_env.results.comparison import Comparison
from sponge_env.results.layout import Table, code, listed, markdown, percent
from sponge_env.results.page import Section
from sponge_env.results.tables import mean_rate_and_cores
from sponge_env.run.suite import cells, load_suite

FIRST_S = 60.0
"""What "the first minute" is."""


def first_minute(comparison: Comparison, agent: str) -> dict[str, float]:
    """Return by scenario which share of an agent's avoidable violations comes that early.

    That is after a cold start, of its first seed; under "" of all scenarios together. Without
    violations there is no share, and none is told of episodes that are hardly longer.
    """
    intervals = comparison.intervals
    if intervals.empty:
        return {}
    cold = intervals[(intervals["agent"] == agent) & (intervals["start"] == "cold")]
    if cold.empty or cold["time_s"].max() < 2 * FIRST_S:
        return {}
    first = cold["avoidable_violations"].where(cold["time_s"] <= FIRST_S, 0)
    sums = cold.assign(first=first).groupby("scenario")[["first", "avoidable_violations"]].sum()
    sums.loc[""] = sums.sum()
    shares = (sums["first"] / sums["avoidable_violations"]).dropna()
    there = [name for name in (*comparison.scenarios, "") if name in shares]
    return {name: float(shares[name]) for name in there}


def _cold_start(section: Section, agents: Sequence[str], why: str) -> Iterator[str]:
    """Say how much of what agents violate after a cold start is of its first minute."""
    comparison = section.comparison
    shares = {agent: first_minute(comparison, agent).get("") for agent in agents}
    parts = [f"{percent(share)} of {code(agent)}'s" for agent, share in shares.items() if share]
    if not parts:
        return
    there = comparison.scenarios
    shipped = (c.simulation.cold_start_s for c in cells(load_suite("standard")) if c.name in there)
    starts_s = listed([f"{start_s:g} s" for start_s in sorted({*filter(None, shipped)})])
    episodes = comparison.episodes[comparison.episodes["start"] == "cold"]
    lasts_s = listed([f"{s:g} s" for s in sorted(episodes["duration_s"].unique())])
    yield (
        f"Episodes last {lasts_s}{f', a replica takes {starts_s} to start' * bool(starts_s)}: of "
        f"the avoidable violations after a cold start (first seed of each cell), {listed(parts)} "
        f"fall into the first minute. {why.strip()}"
    )


def resize_delays(
    section: Section, sweep: str, points: Mapping[str, str], agents: Sequence[str]
) -> str:
    """Return Markdown: agents at points of a sweep, which are named as said; "" without these."""
    comparison = section.sensitivity
    by_point = comparison.sweeps.get(sweep, {})
    if not all(point in by_point for point in points):
        return ""

    columns = [
        (
            f"{said}, {start}",
            partial(mean_rate_and_cores, comparison, [c for c in by_point[point] if c[2] == start]),
        )
        for start in comparison.starts
        for point, said in points.items()
    ]
    where = f"{listed(comparison.scenarios)} with {listed(comparison.profiles)}"
    return (
        f"Avoidable violations · mean cores by how long a resize takes, after a "
        f"{' and a '.join(comparison.starts)} start ({where}):\n\n"
        + markdown(Table.of([("controller", code), *columns], agents))
    )


def _trained(section: Section, agents: Sequence[str]) -> Iterator[str]:
    """Say which of the scenarios shipped policies have seen, by what their files say."""
    comparison = section.comparison
    there = [agent for agent in agents if agent in comparison.agents]
    files = [SHIPPED / f"{a}-{p}.safetensors" for a in there for p in comparison.profiles]
    trained = [load_policy(file).info for file in files if file.exists()]
    seen = {name for info in trained for name in info.scenarios}
    if not seen:
        return
    medians: dict[str, set[int]] = {}
    for info in trained:
        if info.median_of > 1:
            medians.setdefault(code(info.agent), set()).add(info.median_of)
    counts = {agent: " or ".join(map(str, sorted(found))) for agent, found in medians.items()}
    said = listed([f"{agent}: the median of {count} trainings" for agent, count in counts.items()])
    chosen = f" ({said}, by their own scores)" * bool(medians)
    held_out = [name for name in comparison.scenarios if name not in seen]
    only = f"; only {listed(held_out)} {'is' if len(held_out) == 1 else 'are'} held out"
    total = len(comparison.scenarios)
    yield (
        f"The policies of {listed([code(agent) for agent in there])} were trained on "
        f"{total - len(held_out)} of the {total} scenarios that they are measured on here (on "
        f"other seeds{only * bool(held_out)}). Of each model one policy is measured{chosen}: p "
        "values and intervals hold no variance of training."
    )


SUMMARY: Mapping[str, Callable[..., Iterator[str]]] = {
    "cold start": _cold_start,
    "trained": _trained,
}
