"""Tables of a suite: of each cell, over all cells, of sweeps and of failures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.metrics import CELL, NAN, Column, Place, column, columns
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.export import SWEPT, means, sweep_rows
from sponge_env.results.layout import MISSING, Table, terminal
from sponge_env.results.statistics import MIN_SEEDS, SIGNIFICANCE, Estimate, mean
from sponge_env.results.tables import dropped_text

NOT_SIGNIFICANT = "n.s."
"""Marks what does not differ from the reference."""

TEST_NOTE = (
    "paired sign-flip test over the seeds, Holm's correction over the agents of a column; with "
    "n seeds no p is below 2 / 2^n times the number of those agents"
)

CELL_NOTE = (
    f"[95 % interval], from {MIN_SEEDS} seeds on; only more cores: avoidable violations that no "
    "replica of one core could save; beyond attained bound, cores over it: compared with the best "
    "schedule found; p99: of all requests; dropped (n of m): in n of m seeds more than 1 % were "
    "never answered"
)

SWEEP_NOTE = (
    "avoidable violations · mean cores (core units), mean over scenarios, profiles and seeds; all "
    "else is as in the scenarios"
)


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell, start and sweep."""
    c = comparison
    parts = [_cell_text(c, cell) for cell in c.cells]
    parts.append("; ".join(filter(None, [CELL_NOTE, mark_note(c), *c.replayed.values()])))
    for start in c.starts:
        title = f"all scenarios and profiles, {start} start"
        parts.append(terminal(means_table(c, start), title, [means_note(c)]))
    for what in c.sweeps:
        for start in c.starts:
            title = f"{what}, {start} start"
            parts.append(terminal(sweep_table(c, what, start), title, [SWEEP_NOTE]))
    return "\n\n".join(parts)


def _cell_text(comparison: Comparison, cell: Cell) -> str:
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return terminal(cell_table(comparison, cell), f"{', '.join(cell)} start", lines)


def cell_table(comparison: Comparison, cell: Cell, *more: Place) -> Table:
    """Return the agents with results on one cell, and what its bounds attain.

    It has the columns of more places if named; without bounds, none relative to one. A value is
    marked where it does not differ from the reference's.
    """
    agents, bounds = comparison.agents_on(cell), comparison.bounds_on(cell)
    headings, rows = ["agent"], {name: [name] for name in (*agents, *bounds)}
    for c in columns("cell", *more, accuracies=comparison.accuracies([cell])):
        if c.bound == "needed" and not bounds:
            continue
        headings.append(c.label)
        cells_of = {agent: [cell] for agent in agents if c.compared}
        marks = _marks(comparison.p_values(c.metric, cells_of))
        for name, row in rows.items():
            (values,) = comparison.values(name, c.metric, [cell])
            row.append(_over_seeds(c, values, marks.get(name, "")))
    return Table(headings, list(rows.values()))


def _marks(p_values: Mapping[str, float]) -> dict[str, str]:
    return {agent: NOT_SIGNIFICANT for agent, p in p_values.items() if not p < SIGNIFICANCE}


def mark_note(comparison: Comparison) -> str:
    """Return what the marks mean."""
    if len(comparison.agents) < 2 or comparison.seeds < MIN_SEEDS:
        return ""
    return f"{NOT_SIGNIFICANT}: no significant difference from {comparison.reference} ({TEST_NOTE})"


def _over_seeds(c: Column, values: FloatArray, mark: str) -> str:
    measured = values[~np.isnan(values)]
    if not measured.size:
        return MISSING
    if infinite := int(np.isinf(values).sum()):
        return dropped_text(infinite, values.size)
    middle = float(measured.mean())
    return _entry(c, mean(measured) if c.interval else Estimate(middle, NAN, NAN), mark)


def _entry(c: Column, estimate: Estimate, mark: str) -> str:
    """Write an estimate, with its interval and mark if it has them; a dash if it is NaN."""
    if math.isnan(estimate.value):
        return MISSING
    text = c.text(estimate.value)
    if not math.isnan(estimate.low):
        text += f" [{c.text(estimate.low)}, {c.text(estimate.high)}]"
    return f"{text} {mark}" if mark else text


def means_table(comparison: Comparison, start: str) -> Table:
    """Return the agents' means over all cells of one start."""
    cells = comparison.cells_of(start=start)
    found = means(comparison, cells)
    headings = ["agent", "cells"]
    rows = [[row["agent"], f"{row['cells']}/{len(cells)}"] for row in found]
    left_out = "instead" if comparison.common_bound else "needed"
    for c in columns("pooled", accuracies=comparison.accuracies(cells)):
        if c.bound == left_out:
            continue
        headings.append(c.label)
        p_values = {row["agent"]: row.get(f"{c.metric}_p") for row in found}
        known = {agent: p for agent, p in p_values.items() if p is not None}
        marks = _marks(known)
        for texts, row in zip(rows, found, strict=True):
            estimate = Estimate(*(row[f"{c.metric}{end}"] for end in ("", "_low", "_high")))
            texts.append(_entry(c, estimate, marks.get(row["agent"], "")))
    return Table(headings, rows)


def means_note(comparison: Comparison) -> str:
    """Return what one has to know to read the table over all cells."""
    parts = [f"mean over cells and seeds [95 % interval], from {MIN_SEEDS} seeds on"]
    families: dict[str, list[str]] = {}
    for scenario in comparison.scenarios:
        families.setdefault(comparison.family(scenario), []).append(scenario)
    large = [own for own in families.values() if len(own) > 1]
    parts += [f"{', '.join(own)} count as one scenario" for own in large]
    if bound := comparison.common_bound:
        some, total = len(comparison.bounded(comparison.cells)), len(comparison.cells)
        parts.append(f"bound: what {bound} attains, for every agent, on {some} of {total} cells")
    return "; ".join(parts)


def sweep_table(comparison: Comparison, what: str, start: str) -> Table:
    """Return the agents at each value of what is swept, mean over the cells of one start."""
    rows = sweep_rows(comparison)
    rows = rows[(rows["sweep"] == what) & (rows["start"] == start)].set_index(["agent", "value"])
    texts = {
        key: f"{rate * 100:z.2f} % · {column('mean_cores').text(cores)}"
        for key, rate, cores in rows[[*SWEPT]].itertuples()
    }
    values = list(comparison.sweeps[what])
    entries = [[a, *(texts.get((a, v), MISSING) for v in values)] for a in comparison.agents]
    return Table(["agent", *values], entries)


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    rows = [
        [f"{f.agent}", f"{f.scenario}, {f.profile}, {f.start}", f"{f.type}: {f.message}"]
        for f in comparison.failures.itertuples()
    ]
    return Table(["agent", "cell", "failed with"], rows)
