"""Tables of a suite: of each cell, over all cells, of sweeps and of failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sponge_env.metrics import CELL, Column, Place, column, columns, pooled_columns
from sponge_env.results.comparison import Cell, Comparison, Span
from sponge_env.results.export import means
from sponge_env.results.layout import MISSING, Columns, Entry, Table, terminal
from sponge_env.results.statistics import MIN_SEEDS, SIGNIFICANCE, Estimate, mean, min_seeds
from sponge_env.results.tables import dropped_text

NOT_SIGNIFICANT, TOO_FEW = "n.s.", "?"
"""Marks of what does not differ from the reference, and of what so few seeds cannot tell."""

TEST_NOTE = (
    "paired sign-flip test over the seeds, Holm's correction over the agents of a column; with "
    "n seeds no p is below 2 / 2^n times the number of those agents"
)

CELL_NOTE = (
    f"[95 % interval], from {MIN_SEEDS} seeds on; only more cores: avoidable violations that no "
    "replica of one core could save; beyond attained bound, cores over it: compared with the best "
    "schedule found of the agent's own kind of scaling; cores over the relaxation: compared with "
    "what no schedule with as many violations can go below; p99: of all requests; dropped (n of "
    "m): in n of m seeds more than 1 % were never answered; bounds: proven .. attained"
)

SWEEP_NOTE = (
    "avoidable violations · mean cores (core units), mean over scenarios, profiles and seeds; all "
    "else is as in the scenarios"
)

SWEPT = column("avoidable_violation_rate"), column("mean_cores")


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell, start and sweep."""
    c, notes = comparison, mark_note(comparison)
    parts = [_cell_text(c, cell) for cell in c.cells]
    parts.append("; ".join(filter(None, [CELL_NOTE, notes])))
    parts += [
        terminal(
            means_table(c, start),
            f"all scenarios and profiles, {start} start",
            [means_note(c)],
        )
        for start in c.starts
    ]
    parts += [
        terminal(sweep_table(c, what, start), f"{what}, {start} start", sweep_notes(c, what))
        for what in c.sweeps
        for start in c.starts
    ]
    return "\n\n".join(parts)


def _cell_text(comparison: Comparison, cell: Cell) -> str:
    """Return the table of one cell, with a line for each agent that failed."""
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return terminal(cell_table(comparison, cell), f"{', '.join(cell)} start", lines)


def cell_table(comparison: Comparison, cell: Cell, *more: Place) -> Table:
    """Return the agents with results on one cell, and its bounds; columns of more places if named.

    Without bounds or a relaxation, nothing relative to one. A value is marked where it does not
    differ from the reference's.
    """
    agents, sides = comparison.agents_on(cell), comparison.bound_sides(cell)
    shown: list[tuple[str, Callable[[str], Entry | str]]] = [("agent", Entry)]
    for c in columns("cell", *more, accuracies=comparison.accuracies([cell])):
        if (c.bound == "needed" and not sides) or (
            c.bound == "relaxed" and not comparison.relaxed(cell)
        ):
            continue
        cells_of = {agent: [cell] for agent in agents if c.compared}
        marks = _marks(comparison, comparison.p_values(c.metric, cells_of))
        spans = {bound: _span_text(c, own.get(c.metric)) for bound, own in sides.items()}
        shown.append((c.label, partial(_value, comparison, cell, c, marks, spans)))
    return Table.of(shown, [*agents, *sides])


def _marks(comparison: Comparison, p_values: Mapping[str, float]) -> dict[str, str]:
    """Return the marks of agents that do not differ from the reference."""
    mark = NOT_SIGNIFICANT if comparison.seeds >= min_seeds(len(p_values)) else TOO_FEW
    return {agent: mark for agent, p in p_values.items() if not p < SIGNIFICANCE}


def mark_note(comparison: Comparison) -> str:
    """Return what the marks mean, those of a run with few seeds too."""
    tests = len(comparison.agents) - 1
    if not tests:
        return ""
    note = f"{NOT_SIGNIFICANT}: no significant difference from {comparison.reference} ({TEST_NOTE})"
    if comparison.seeds >= min_seeds(tests):
        return note
    return f"{note}; {TOO_FEW}: too few seeds to tell; it takes {min_seeds(tests)}"


def _value(
    comparison: Comparison,
    cell: Cell,
    c: Column,
    marks: Mapping[str, str],
    spans: Mapping[str, str],
    agent: str,
) -> Entry:
    """Write a mean over seeds, or a bound's span; of infinite latencies, in how many seeds."""
    if agent in spans:
        return Entry(spans[agent])
    values = comparison.values(agent, c.metric, [cell])[0]
    measured = values[~np.isnan(values)]
    if not measured.size:
        return Entry(MISSING)
    if infinite := int(np.isinf(values).sum()):
        return Entry(dropped_text(infinite, values.size))
    text = _estimate_text(c, mean(measured)) if c.interval else c.text(float(measured.mean()))
    return _marked(text, marks.get(agent, ""))


def _estimate_text(c: Column, estimate: Estimate) -> str:
    text = c.text(estimate.value)
    if math.isnan(estimate.low):
        return text
    return f"{text} [{c.text(estimate.low)}, {c.text(estimate.high)}]"


def _marked(text: str, mark: str) -> Entry:
    return Entry(f"{text} {mark}", muted=True) if mark else Entry(text)


def _span_text(c: Column, span: Span | None) -> str:
    """Write the two sides of a bound, or one number where they look alike."""
    if span is None:
        return MISSING
    low, high = map(c.text, span)
    return low if low == high else f"{low} .. {high}"


def means_table(comparison: Comparison, start: str) -> Table:
    """Return the agents' means over all cells of one start."""
    cells = comparison.cells_of(start=start)
    rows = {row["agent"]: row for row in means(comparison, cells)}
    shown: list[tuple[str, Callable[[str], Entry | str]]] = [
        ("agent", Entry),
        ("cells", lambda agent: f"{rows[agent]['cells']}/{len(cells)}"),
    ]
    left_out = "instead" if comparison.common_bound else "needed"
    for c in pooled_columns(comparison.accuracies(cells)):
        if c.bound != left_out:
            p_values = {agent: row.get(f"{c.metric}_p") for agent, row in rows.items()}
            known = {agent: p for agent, p in p_values.items() if p is not None}
            shown.append((c.label, partial(_mean, rows, c, _marks(comparison, known))))
    return Table.of(shown, rows)


def _mean(
    rows: Mapping[str, Mapping[str, float]], c: Column, marks: Mapping[str, str], agent: str
) -> Entry:
    """Write a mean with its interval; a dash where nothing was measured."""
    value, low, high = (rows[agent][f"{c.metric}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return Entry(MISSING)
    return _marked(_estimate_text(c, Estimate(value, low, high)), marks.get(agent, ""))


def means_note(comparison: Comparison) -> str:
    """Return what one has to know to read the table over all cells."""
    parts = [
        f"mean over cells and seeds [95 % interval], from {MIN_SEEDS} seeds on",
        *family_notes(comparison),
    ]
    if bound := comparison.common_bound:
        some, total = len(comparison.bounded(comparison.cells)), len(comparison.cells)
        parts.append(f"bound: what {bound} attains, for every agent, on {some} of {total} cells")
    return "; ".join(parts)


def family_notes(comparison: Comparison) -> list[str]:
    """Return which scenarios count as one in means over all cells."""
    families: dict[str, list[str]] = {}
    for scenario in comparison.scenarios:
        families.setdefault(comparison.family(scenario), []).append(scenario)
    return [f"{', '.join(own)} count as one scenario" for own in families.values() if len(own) > 1]


def sweep_notes(comparison: Comparison, what: str) -> list[str]:
    """Return what has to be known of a table of a sweep."""
    return [*filter(None, [comparison.about.get(what, "")]), SWEEP_NOTE]


def sweep_table(comparison: Comparison, what: str, start: str) -> Table:
    """Return the agents at each value of what is swept, mean over the cells of one start."""
    at_values = [
        (value, partial(_swept, comparison, [cell for cell in cells if cell[2] == start]))
        for value, cells in comparison.sweeps[what].items()
    ]
    return Table.of([("agent", str), *at_values], comparison.agents)


def _swept(comparison: Comparison, cells: Sequence[Cell], agent: str) -> str:
    """Write an agent's means over cells; a dash where it lacks one, or there are none."""
    if not (cells and comparison.has(agent, *cells)):
        return MISSING
    rate, cores = (comparison.mean(agent, c.metric, cells) for c in SWEPT)
    return f"{rate * 100:z.2f} % · {SWEPT[1].text(cores)}"


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    shown: Columns[Any] = [
        ("agent", lambda f: f.agent),
        ("cell", lambda f: f"{f.scenario}, {f.profile}, {f.start}"),
        ("failed with", lambda f: f"{f.type}: {f.message}"),
    ]
    return Table.of(shown, comparison.failures.itertuples())
