"""Tables of a suite: of each cell, the scores, and failures."""

from __future__ import annotations

from sponge_env.metrics import CELL, Place, columns
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.export import cell_rows
from sponge_env.results.layout import Table, terminal
from sponge_env.results.score import SCORE_NOTE, score_tables
from sponge_env.results.tables import spread_text

CELL_NOTE = (
    "mean [min, max] of the seeds; cores over bound: over those of the best schedule found that "
    "knows the future; p99: of all requests; dropped (n of m): in n of m seeds more than 1 % were "
    "never answered"
)


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell and start."""
    c = comparison
    parts = [_cell_text(c, cell) for cell in c.cells]
    parts.append("; ".join([CELL_NOTE, *c.replayed.values()]))
    parts += [terminal(table, title) for title, table in scores(c).items()]
    return "\n\n".join([*parts, SCORE_NOTE])


def scores(comparison: Comparison) -> dict[str, Table]:
    """Return the agents' scores by title."""
    return score_tables(cell_rows(comparison), comparison.reference, comparison.agents)


def _cell_text(comparison: Comparison, cell: Cell) -> str:
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return terminal(cell_table(comparison, cell), f"{', '.join(cell)} start", lines)


def cell_table(comparison: Comparison, cell: Cell, *more: Place) -> Table:
    """Return the agents with results on one cell, and what its bounds attain.

    It has the columns of more places if named; without bounds, none relative to one.
    """
    bounds = comparison.bounds_on(cell)
    names = [*comparison.agents_on(cell), *bounds]
    shown = columns("cell", *more, accuracies=comparison.accuracies(cell))
    rows = [
        [name, *(spread_text(c, comparison.values(name, c.metric, cell)) for c in shown)]
        for name in names
    ]
    headings = ["agent", *(c.label for c in shown)]
    if bounds:
        headings.append("cores over bound")
        cores = {name: comparison.values(name, "mean_cores", cell).mean() for name in names}
        rows = [[*row, f"{cores[row[0]] / cores[bounds[0]]:.2f}"] for row in rows]
    return Table(headings, rows)


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    rows = [
        [f"{f.agent}", f"{f.scenario}, {f.profile}, {f.start}", f"{f.type}: {f.message}"]
        for f in comparison.failures.itertuples()
    ]
    return Table(["agent", "cell", "failed with"], rows)
