"""Tables of a suite, for the terminal, a page or CSV: of each cell, the scores, and failures.

A cell is *met* where avoidable violations, mean over the seeds, are at most
:data:`~sponge_env.metrics.MET`. Cores are compared within a cell, and only where it is met; over
cells their ratios have a geometric mean. Anybody can do this score again from the published rows of
:func:`cell_rows`. In CSV rates are per request, and times in seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.metrics import CELL, MET, Place, columns
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.tables import MISSING, Columns, Table, spread_text, terminal
from sponge_env.run.suite import BOUND_AGENTS

CELL_METRICS = (
    "violation_rate", "avoidable_violation_rate", "mean_cores", "latency_p99_s",
    "effective_accuracy",
)  # fmt: skip
CELL_NOTE = (
    "mean [min, max] of the seeds; p99: of all requests; dropped (n of m): in n of m seeds more "
    "than 1 % were never answered"
)
_MOST_COLUMNS = 12  # Groups or profiles that a table compares
SCORE_NOTE = (
    f"met: cells with at most {MET * 100:g} % avoidable violations, mean over seeds; cores: "
    "geometric mean over the cells that are met of an agent's mean cores over the reference's "
    "there; worst cell: the largest of these; "
    "missed: avoidable violations, mean over all cells with a result"
)
BOUND_NOTE = "; cores over bound: over those of the best schedule found that knows the future"


def all_tables(comparison: Comparison) -> str:
    """Return a suite for the terminal: a table for each cell and start."""
    c, parts = comparison, list[str]()
    for cell in c.shown.cells:
        failed = c.failures[(c.failures[list(CELL)] == list(cell)).all(axis=1)]
        lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
        parts.append(terminal(cell_table(c, cell), f"{', '.join(cell)} start", lines))
    parts.append("; ".join([CELL_NOTE, *c.shown.replayed.values()]))
    parts += [terminal(table, title) for title, table in scores(c).items()]
    return "\n\n".join([*parts, score_note(c)])


def score_note(c: Comparison) -> str:
    """Explain the columns of the scores, and those relative to a bound if there are any."""
    return SCORE_NOTE + BOUND_NOTE * any(map(c.bounds_on, c.shown.cells))


def scores(c: Comparison) -> dict[str, Table]:
    """Return the agents' scores by title."""
    return score_tables(cell_rows(c), c.shown.reference, c.agents)


def cell_table(comparison: Comparison, cell: Cell, *more: Place) -> Table:
    """Return the agents with results on one cell, and what its bounds, if any, attain."""
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


def cell_rows(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each agent and cell, and for what the first bound attains there."""
    c, rows = comparison, []
    failed = {*c.failures[[*CELL]].itertuples(index=False, name=None)}
    for cell in c.shown.cells:
        place = (*cell, c.shown.groups.get(cell[0], ""))
        if cell in failed and not c.agents_on(cell):  # it is one that none has met
            rows.append((*place, c.shown.reference, 0, *[np.nan] * len(CELL_METRICS)))
        for agent in [*c.agents_on(cell), *c.bounds_on(cell)[:1]]:
            means = [c.values(agent, name, cell).mean() for name in CELL_METRICS]
            rows.append((*place, agent, c.values(agent, "seed", cell).size, *means))
    return pd.DataFrame(rows, columns=[*CELL, "group", "agent", "n", *CELL_METRICS])


def csv_text(frame: pd.DataFrame) -> str:
    """Return a data frame as CSV."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def csv_files(comparison: Comparison, *more: pd.DataFrame) -> dict[str, str]:
    """Return the CSV files of a run by name, with more rows of its cells."""
    cells = pd.concat([cell_rows(comparison), *more])
    scores = score_rows(cells, comparison.shown.reference)
    return {"cells.csv": csv_text(cells), "score.csv": csv_text(scores)}


def read_rows(path: Path) -> pd.DataFrame:
    """Return what :func:`csv_text` wrote of cells or scores."""
    names = [*CELL, "group"]
    return pd.read_csv(path, dtype=dict.fromkeys(names, str)).fillna(dict.fromkeys(names, ""))


def ratios(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return the agents' rows with ``met`` and, where it is true, cores relative to others'."""
    # These are ``cores_over_reference`` and ``cores_over_bound``; NaN where there is none.
    bounds = cells["agent"].isin(BOUND_AGENTS.values())
    others = {"reference": cells[cells["agent"] == reference], "bound": cells[bounds]}
    rows = cells[~bounds].copy()
    rows["met"] = rows["avoidable_violation_rate"].round(9) <= MET
    places = pd.MultiIndex.from_frame(rows[[*CELL]])
    for name, own in others.items():
        theirs = own.set_index([*CELL])["mean_cores"].reindex(places).to_numpy()
        rows[f"cores_over_{name}"] = (rows["mean_cores"] / theirs).where(rows["met"])
    return rows


def score_rows(cells: pd.DataFrame, reference: str, *by: str) -> pd.DataFrame:
    """Return the score of each agent, and value of further columns, from :func:`cell_rows`."""
    # A cell without a result is none that is met.
    keys, rows = ["start", *by], ratios(cells, reference)
    total = rows.drop_duplicates([*CELL]).groupby(keys).size().rename("cells")
    found = rows.groupby([*keys, "agent"], sort=False).agg(
        met=("met", "sum"), cores_over_reference=("cores_over_reference", _geometric_mean),
        cores_over_bound=("cores_over_bound", _geometric_mean),
        worst=("cores_over_reference", "max"), missed=("avoidable_violation_rate", "mean"),
    )  # fmt: skip
    found = found.reset_index().join(total, on=keys).assign(reference=reference)
    numbers = ["met", "cores_over_reference", "cores_over_bound", "worst", "missed"]
    return found[[*keys, "agent", "reference", "cells", *numbers]]


def _geometric_mean(values: "pd.Series[float]") -> float:
    return float(np.exp(np.log(values).mean()))


def score_table(rows: pd.DataFrame, agents: Sequence[str]) -> Table:
    """Return some agents' scores on the same cells."""
    bound: Columns[dict[Any, Any]] = []
    if rows["cores_over_bound"].notna().any():
        bound = [("cores over bound", lambda row: _number(row["cores_over_bound"]))]
    over = f"cores over {rows['reference'].iloc[0]}"
    columns: Columns[dict[Any, Any]] = [
        ("controller", lambda row: row["agent"]),
        ("met", lambda row: f"{row['met']} of {row['cells']}"),
        (over, lambda row: _number(row["cores_over_reference"])),
        ("worst cell", lambda row: _number(row["worst"])), *bound,
        ("missed [%]", lambda row: _number(row["missed"] * 100, ".3f")),
    ]  # fmt: skip
    found = {row["agent"]: row for row in rows.to_dict("records")}
    return Table.of(columns, [found[agent] for agent in agents if agent in found])


def score_grid(rows: pd.DataFrame, across: str, agents: Sequence[str]) -> Table:
    """Return ``met/cells · cores over the reference`` of some agents at each value of a column."""
    entries = {}
    for row in rows.to_dict("records"):
        shown = f"{row['met']}/{row['cells']} · {_number(row['cores_over_reference'])}"
        entries[row["agent"], row[across]] = shown
    values = [*rows[across].unique()]
    lines = [[a, *(entries.get((a, v), MISSING) for v in values)] for a in agents]
    return Table(["controller", *values], [line for line in lines if {*line[1:]} != {MISSING}])


def _number(value: float, form: str = ".2f") -> str:
    return MISSING if np.isnan(value) else f"{value:{form}}"


def score_tables(cells: pd.DataFrame, reference: str, agents: Sequence[str]) -> dict[str, Table]:
    """Return by title the scores of each start: over all cells, by group and by profile."""
    tables = {}
    for start, own in cells.groupby("start", sort=False):
        shown = f"{start} start: met · cores over {reference}"
        title = f"all scenarios and profiles, {start} start"
        tables[title] = score_table(score_rows(own, reference), agents)
        for by in ("group", "profile"):
            named = own[own[by] != ""]
            if 1 < named[by].nunique() <= _MOST_COLUMNS:
                found = score_rows(named, reference, by)
                tables[f"by {by}, {shown}"] = score_grid(found, by, agents)
    return tables
