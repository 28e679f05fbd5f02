"""Which tables there are: of one evaluation, of a cell, over all cells, of a few agents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.files import write_json
from sponge_env.results.layout import Entry, Table, terminal
from sponge_env.results.schema import (
    CELL,
    COLUMNS,
    Column,
    EpisodeMetrics,
    Place,
    column,
    columns,
    summary,
)
from sponge_env.results.statistics import (
    Estimate,
    improvement_p,
    interquartile_mean,
    mean,
    probability_of_improvement,
)

if TYPE_CHECKING:
    from sponge_env.results.comparison import BoundSides, Cell, Comparison, Span

MISSING = "-"
NOT_SIGNIFICANT = "n.s."

TEST_NOTE = (
    "paired sign-flip test over the seeds, Holm's correction over the agents of a column; with "
    "n seeds no p is below 2 / 2^n times the number of those agents"
)

CELL_NOTE = (
    f"beyond bound, cores over bound: of the agent's own kind of scaling; {NOT_SIGNIFICANT}: no "
    f"significant difference ({TEST_NOTE}); p99: of all requests, dropped (n of m): in n of m "
    "seeds more than 1 % were never answered; bounds: what is proven .. what is attained"
)

COUNTED = {"avoidable_violation_rate": "violations", "core_seconds": "cores"}
"""Metrics of which it is said how likely an agent has fewer, and what people call them."""

AVOIDABLE, CORES = column("avoidable_violation_rate"), column("mean_cores")
OVER_BOUND = column("cores_over_common_bound")


def comparison_table(episodes: Sequence[EpisodeMetrics]) -> str:
    """Compare agents: a row for each, in order of appearance, with means over its seeds.

    Args:
        episodes: Summaries of all agents and seeds.

    Returns:
        Aligned lines without a trailing newline; a dash where nothing was measured, a
        star after an agent of which an episode was interrupted.
    """
    agents = dict.fromkeys(episode.agent for episode in episodes)
    groups = [[e for e in episodes if e.agent == agent] for agent in agents]
    shown = columns("evaluation")
    rows = [[_label(group), *(_mean_of(group, c) for c in shown)] for group in groups]
    table = Table.of(["agent", *(c.label for c in shown)], rows)
    return terminal(table, notes=[_caption(groups)])


def _label(group: Sequence[EpisodeMetrics]) -> str:
    return group[0].agent + "*" * any(episode.partial for episode in group)


def _mean_of(group: Sequence[EpisodeMetrics], shown: Column) -> str:
    values = [float(getattr(episode, shown.metric)) for episode in group]
    measured = [value for value in values if not math.isnan(value)]
    return shown.text(fmean(measured)) if measured else MISSING


def _caption(groups: Sequence[Sequence[EpisodeMetrics]]) -> str:
    """Say what was compared, over how many seeds, and which direction is good."""
    episodes = [episode for group in groups for episode in group]
    fewest, most = min(map(len, groups)), max(map(len, groups))
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    parts = [
        "/".join(dict.fromkeys(f"{e.scenario} ({e.backend}, {e.start})" for e in episodes)),
        f"mean of {seeds} seeds" if most > 1 else "1 seed",
        f"{max(e.duration_s for e in episodes):g} s each",
        "less is better in every column",
    ]
    if any(episode.partial for episode in episodes):
        parts.append("* interrupted: what was measured until then")
    return "; ".join(parts)


def write_summaries(path: Path, episodes: Sequence[EpisodeMetrics]) -> None:
    """Write a JSON list with one object per agent and seed, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    write_json(path, [summary(episode) for episode in episodes])


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell and one for each start."""
    parts = [cell_text(comparison, cell) for cell in comparison.cells]
    parts.append(CELL_NOTE)
    parts += [pooled_text(comparison, start) for start in comparison.starts]
    return "\n\n".join(parts)


def cell_text(comparison: Comparison, cell: Cell) -> str:
    """Return the table of one cell, with a line for each agent that failed."""
    scenario, profile, start = cell
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    table = cell_table(comparison, cell, "cell")
    return terminal(table, f"{scenario}, {profile}, {start} start", lines)


def cell_table(comparison: Comparison, cell: Cell, place: Place = "page") -> Table:
    """Return the agents on one cell, and its bounds.

    Agents that failed are not in it, nor is what is relative to a bound where there is none.
    What is compared with the reference is marked on a page where it does not differ; on the
    terminal the difference stands beside it.
    """
    sides = comparison.bound_sides(cell)
    shown = [c for c in columns(place) if sides or c.bound != "needed"]
    headings = ["agent"]
    for c in shown:
        headings.append(c.label)
        if c.compared and place == "cell":
            unit = "% points" if c.unit == "%" else c.unit or c.heading
            headings.append(f"against {comparison.reference} [{unit}]")
    different = {c.metric: comparison.different_on(c.metric, cell) for c in shown if c.compared}
    rows = []
    for agent in comparison.there(cell):
        row = [Entry(agent)]
        for c in shown:
            row += _entries(comparison, agent, cell, c, place, different.get(c.metric, set()))
        rows.append(row)
    rows += [_bound_row(bound, shown, place) for bound in sides]
    return Table(headings, rows)


def _entries(
    comparison: Comparison, agent: str, cell: Cell, c: Column, place: Place, different: set[str]
) -> list[Entry]:
    """Write a metric of an agent, and how it compares with the reference's."""
    values = comparison.values(agent, c.metric, [cell])[0]
    text = _values_text(c, values, place in c.interval)
    if not c.compared:
        return [Entry(text)]
    reference = comparison.reference
    compared = agent != reference and comparison.has(reference, cell)
    muted = compared and agent not in different
    if place == "page":
        return [Entry(_marked(text, muted), muted)]
    difference = MISSING
    if compared:
        theirs = comparison.values(reference, c.metric, [cell])[0]
        difference = _marked(c.text((values - theirs).mean(), sign="+"), muted)
    return [Entry(text), Entry(difference, muted)]


def _values_text(c: Column, values: FloatArray, interval: bool) -> str:
    """Write a mean over seeds; of latencies that are infinite, in how many seeds."""
    measured = values[~np.isnan(values)]
    if not measured.size:
        return MISSING
    if infinite := int(np.isinf(values).sum()):
        return f"dropped ({infinite} of {values.size})"
    if interval and measured.size == values.size:
        return _estimate_text(c, mean(values))
    return c.text(float(measured.mean()))


def _estimate_text(c: Column, estimate: Estimate) -> str:
    text = c.text(estimate.value)
    if math.isnan(estimate.low):
        return text
    return f"{text} [{c.text(estimate.low)}, {c.text(estimate.high)}]"


def _marked(text: str, not_significant: bool) -> str:
    return f"{text} {NOT_SIGNIFICANT}" if not_significant else text


def _bound_row(bound: BoundSides, shown: Sequence[Column], place: Place) -> list[Entry]:
    """Write what is proven of a bound and what is attained, of what it has."""
    texts = [bound.name]
    for c in shown:
        span: Span | None = getattr(bound, c.metric, None)
        texts.append(MISSING if span is None else _span_text(c, span))
        texts += [MISSING] * (c.compared and place == "cell")
    return [Entry(text) for text in texts]


def _span_text(c: Column, span: Span) -> str:
    """Write the two sides of a bound, or one number where they look alike."""
    low, high = map(c.text, span)
    return low if low == high else f"{low} .. {high}"


def pooled_text(comparison: Comparison, start: str) -> str:
    """Return the table over all cells of one start, for the terminal."""
    title = f"all scenarios and profiles, {start} start"
    return terminal(pooled_table(comparison, start), title, [pooled_note(comparison)])


def pooled_table(comparison: Comparison, start: str) -> Table:
    """Return the agents over all cells of one start."""
    left_out = "instead" if comparison.common_bound else "needed"
    shown = [(c, how) for c in COLUMNS if c.bound != left_out for how in c.pooled]
    cells_of = {agent: comparison.shared_cells(agent, start) for agent in comparison.agents}
    different = {name: comparison.different(name, cells_of, improvement_p) for name in COUNTED}
    total = len(comparison.cells_of(start=start))
    rows = []
    for agent, cells in cells_of.items():
        row = [Entry(agent), Entry(f"{len(cells)}/{total}")]
        row += [Entry(_pooled(comparison, agent, cells, c, how)) for c, how in shown]
        row += [_fewer(comparison, agent, cells, name, different[name]) for name in COUNTED]
        rows.append(row)
    headings = [f"{c.label}, {how}" for c, how in shown]
    headings += [f"fewer {what} than {comparison.reference}" for what in COUNTED.values()]
    return Table(["agent", "cells", *headings], rows)


def _pooled(comparison: Comparison, agent: str, cells: Sequence[Cell], c: Column, how: str) -> str:
    """Write a metric over cells; of cells without a bound nothing relative to one."""
    cells = comparison.bounded(cells) if c.bound == "needed" else cells
    if not cells:
        return MISSING
    estimate = interquartile_mean if how == "middle half" else mean
    return _estimate_text(c, estimate(comparison.values(agent, c.metric, cells)))


def _fewer(
    comparison: Comparison, agent: str, cells: Sequence[Cell], name: str, different: set[str]
) -> Entry:
    """Say how likely an agent has less than the reference."""
    if agent == comparison.reference or not cells:
        return Entry(MISSING)
    both = (comparison.values(a, name, cells) for a in (agent, comparison.reference))
    muted = agent not in different
    text = _estimate_text(Column(name, "", "", 2), probability_of_improvement(*both))
    return Entry(_marked(text, muted), muted)


def pooled_note(comparison: Comparison) -> str:
    """Return what one has to know to read the table over all cells."""
    parts = [
        "middle half: interquartile mean over cells and seeds",
        "fewer ... than: probability on a random cell and seed",
        "[95 % interval]",
        f"{NOT_SIGNIFICANT}: not significant ({TEST_NOTE})",
    ]
    if comparison.common_bound:
        there, total = len(comparison.bounded(comparison.cells)), len(comparison.cells)
        parts.append(
            f"bound: {comparison.common_bound} for every agent, on {there} of {total} cells"
        )
    return "; ".join(parts)


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    rows = [
        [str(f.agent), f"{f.scenario}, {f.profile}, {f.start}", f"{f.type}: {f.message}"]
        for f in comparison.failures.itertuples()
    ]
    return Table.of(["agent", "cell", "failed with"], rows)


def overview_table(comparison: Comparison, start: str, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents on every cell of one start, without intervals.

    Whatever their kind of scaling, all are compared with the same bound. The agent that meets
    the SLO with the fewest cores stands out, and one that is not among those shown has the last
    column before the bound's.
    """
    bound, rows = comparison.common_bound, []
    for cell in comparison.cells_of(start=start):
        best = comparison.cheapest(cell)
        row = [Entry(f"{cell[0]}, {cell[1]}")]
        row += [Entry(_short(comparison, a, cell), strong=a == best) for a in agents]
        row.append(Entry(f"{best}: {_short(comparison, best, cell)}" if best else "none"))
        if bound:
            sides = [s for s in comparison.bound_sides(cell) if s.name == bound]
            attained = [(s.avoidable_violation_rate[1], s.mean_cores[1]) for s in sides]
            row.append(Entry(_rate_and_cores(*attained[0]) if attained else MISSING))
        rows.append(row)
    return Table(["", *agents, "cheapest of all", *([bound] if bound else [])], rows)


def _short(comparison: Comparison, agent: str, cell: Cell) -> str:
    """Write violations and cores of an agent in one place."""
    if not comparison.has(agent, cell):
        return "failed"
    means = (comparison.mean(agent, c.metric, cell) for c in (AVOIDABLE, CORES))
    over = f" · {_over_bound(comparison, agent, [cell])}" if comparison.common_bound else ""
    return _rate_and_cores(*means) + over


def _rate_and_cores(rate: float, cores: float) -> str:
    return f"{rate * 100:z.2f} % · {CORES.text(cores)}"


def _over_bound(comparison: Comparison, agent: str, cells: Sequence[Cell]) -> str:
    """Write an agent's cores relative to the bound of all agents, on cells that have it."""
    bounded = comparison.bounded(cells)
    if not bounded:
        return MISSING
    return OVER_BOUND.text(float(comparison.values(agent, OVER_BOUND.metric, bounded).mean()))


def summary_table(comparison: Comparison, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents, mean over all cells of each start."""
    cores = "cores over the bound" if comparison.common_bound else CORES.heading
    measures = ("cells", "avoidable violations", cores)
    headings = [f"{what}, {start} start" for start in comparison.starts for what in measures]
    rows = [
        [f"`{a}`", *(text for start in comparison.starts for text in _means(comparison, a, start))]
        for a in agents
    ]
    return Table.of(["controller", *headings], rows)


def _means(comparison: Comparison, agent: str, start: str) -> list[str]:
    """Return on how many cells an agent has results, and mean violations and cores there."""
    cells = comparison.shared_cells(agent, start)
    there = f"{len(cells)}/{len(comparison.cells_of(start=start))}"
    if not cells:
        return [there, MISSING, MISSING]
    violations, cores = (
        c.text(float(comparison.values(agent, c.metric, cells).mean())) for c in (AVOIDABLE, CORES)
    )
    if comparison.common_bound:
        cores = _over_bound(comparison, agent, cells)
    return [there, f"{violations} {AVOIDABLE.unit}", cores]
