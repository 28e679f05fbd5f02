"""The one score: how many cells an agent meets, and on how many cores compared with a reference.

A cell is *met* where avoidable violations, mean over the seeds, are at most
:data:`~sponge_env.metrics.MET`. Cores are compared within a cell, and only where it is met; over
cells their ratios have a geometric mean. All of it follows from the rows of
:func:`~sponge_env.results.export.cell_rows`, which are published, so that anybody can do it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.metrics import CELL, MET
from sponge_env.results.layout import MISSING, Columns, Table
from sponge_env.run.suite import BOUND_AGENTS

SCORE_NOTE = (
    f"met: cells with at most {MET * 100:g} % avoidable violations, mean over seeds; cores: "
    "geometric mean over the cells that are met of an agent's mean cores over the reference's "
    "there, and over what the clairvoyant bound attains; worst cell: the largest of the former; "
    "missed: avoidable violations, mean over all cells with a result"
)


def ratios(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return the agents' rows with ``met`` and, where it is true, their cores over those of others.

    These are ``cores_over_reference`` and ``cores_over_bound``; NaN where there is none.
    """
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
    """Return the score of each agent, and value of further columns, from :func:`cell_rows`.

    A cell without a result is none that is met.
    """
    keys = ["start", *by]
    rows = ratios(cells, reference)
    total = rows.drop_duplicates([*CELL]).groupby(keys).size().rename("cells")
    found = rows.groupby([*keys, "agent"], sort=False).agg(
        met=("met", "sum"),
        cores_over_reference=("cores_over_reference", _geometric_mean),
        cores_over_bound=("cores_over_bound", _geometric_mean),
        worst=("cores_over_reference", "max"),
        missed=("avoidable_violation_rate", "mean"),
    )
    found = found.reset_index().join(total, on=keys).assign(reference=reference)
    numbers = ["met", "cores_over_reference", "cores_over_bound", "worst", "missed"]
    return found[[*keys, "agent", "reference", "cells", *numbers]]


def _geometric_mean(values: pd.Series[float]) -> float:
    return float(np.exp(np.log(values).mean()))


def score_table(rows: pd.DataFrame, agents: Sequence[str]) -> Table:
    """Return some agents' scores on the same cells."""
    bound: Columns[dict[Any, Any]] = []
    if rows["cores_over_bound"].notna().any():
        bound = [("cores over bound", lambda row: _number(row["cores_over_bound"]))]
    columns: Columns[dict[Any, Any]] = [
        ("controller", lambda row: row["agent"]),
        ("met", lambda row: f"{row['met']} of {row['cells']}"),
        (
            f"cores over {rows['reference'].iloc[0]}",
            lambda row: _number(row["cores_over_reference"]),
        ),
        *bound,
        ("worst cell", lambda row: _number(row["worst"])),
        ("missed [%]", lambda row: f"{row['missed'] * 100:.3f}"),
    ]
    found = {row["agent"]: row for row in rows.to_dict("records")}
    return Table.of(columns, [found[agent] for agent in agents if agent in found])


def score_grid(rows: pd.DataFrame, across: str, agents: Sequence[str]) -> Table:
    """Return ``met/cells · cores over the reference`` of some agents at each value of a column."""
    entries = {
        (row["agent"], row[across]): (
            f"{row['met']}/{row['cells']} · {_number(row['cores_over_reference'])}"
        )
        for row in rows.to_dict("records")
    }
    values = [*rows[across].unique()]
    lines = [[a, *(entries.get((a, v), MISSING) for v in values)] for a in agents]
    return Table(["controller", *values], [line for line in lines if {*line[1:]} != {MISSING}])


def _number(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.2f}"


def score_tables(cells: pd.DataFrame, reference: str, agents: Sequence[str]) -> dict[str, Table]:
    """Return by title the scores of each start: over all cells, by group and by profile."""
    tables = {}
    for start, own in cells.groupby("start", sort=False):
        shown = f"{start} start: met · cores over {reference}"
        title = f"all scenarios and profiles, {start} start"
        tables[title] = score_table(score_rows(own, reference), agents)
        for by in ("group", "profile"):
            named = own[own[by] != ""]
            if named[by].nunique() > 1:
                found = score_rows(named, reference, by)
                tables[f"by {by}, {shown}"] = score_grid(found, by, agents)
    return tables
