"""The tables of a suite as data frames, which become CSV: rates per request, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sponge_env.metrics import CELL, COLUMNS
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.utils.files import replacing

CELL_METRICS = (
    "violation_rate", "avoidable_violation_rate", "mean_cores", "cores_over_common_bound",
    "latency_p99_s", "effective_accuracy",
)  # fmt: skip

MEANS = tuple(c.metric for c in COLUMNS if "pooled" in c.places)
"""Metrics of the means, each with the ends of its 95 % interval."""

COMPARED = tuple(c.metric for c in COLUMNS if c.compared and "pooled" in c.places)
"""Metrics with a corrected p value of "as much as the reference"."""

ALL = "all"
"""Name of all cells, beside those of scenarios."""

SWEPT = ("avoidable_violation_rate", "mean_cores")


def cell_rows(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each agent and cell, and for what the common bound attains there."""
    rows: list[dict[str, Any]] = []
    for cell in comparison.cells:
        own: dict[str, Any] = dict(zip(CELL, cell, strict=True))
        bounds = [name for name in [comparison.common_bound] if comparison.has(name, cell)]
        for agent in [*comparison.agents_on(cell), *bounds]:
            seeds = comparison.values(agent, "seed", [cell]).size
            means = {name: comparison.mean(agent, name, [cell]) for name in CELL_METRICS}
            rows.append({**own, "agent": agent, "n": seeds, **means})
    return pd.DataFrame(rows, columns=[*CELL, "agent", "n", *CELL_METRICS])


def mean_rows(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each agent and start, over all cells and over those of each family."""
    scenarios = [ALL, *dict.fromkeys(map(comparison.family, comparison.scenarios))]
    rows = [
        {"scenario": scenario, "start": start, **row}
        for scenario in scenarios
        for start in comparison.starts
        for row in means(
            comparison,
            [
                cell
                for cell in comparison.cells_of(start=start)
                if scenario in (ALL, comparison.family(cell[0]))
            ],
        )
        if row["cells"]
    ]
    intervals = [f"{name}{end}" for name in MEANS for end in ("", "_low", "_high")]
    names = ["scenario", "start", "agent", "cells", "n", *intervals]
    names += ["avoidable_violation_rate_max", "cell_of_max", *(f"{name}_p" for name in COMPARED)]
    return pd.DataFrame(rows, columns=names)


def means(comparison: Comparison, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return each agent's means over those of some cells that it and the reference have."""
    cells_of = {
        agent: [c for c in cells if comparison.has(agent, c) and comparison.has(reference, c)]
        for reference in [comparison.reference]
        for agent in comparison.agents
    }
    p_values = {f"{name}_p": comparison.p_values(name, cells_of) for name in COMPARED}
    rows = []
    for agent, own in cells_of.items():
        row: dict[str, Any] = {"agent": agent, "cells": len(own), "n": comparison.samples(own)}
        for name in MEANS:
            one = comparison.estimate(agent, name, own)
            row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        if own:
            rates = comparison.values(agent, "avoidable_violation_rate", own).mean(axis=1)
            row["avoidable_violation_rate_max"] = rates.max()
            row["cell_of_max"] = ", ".join(own[int(np.argmax(rates))][:2])
        rows.append(row | {name: by_agent.get(agent) for name, by_agent in p_values.items()})
    return rows


def sweep_rows(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each sweep, value, start and agent with results there."""
    rows = [
        {
            "sweep": what, "value": value, "start": start, "agent": agent, "cells": len(cells),
            "n": comparison.seeds, **{name: comparison.mean(agent, name, cells) for name in SWEPT},
        }
        for what, by_value in comparison.sweeps.items()
        for start in comparison.starts
        for agent in comparison.agents
        for value, swept in by_value.items()
        if (cells := [cell for cell in swept if cell[2] == start]) and comparison.has(agent, *cells)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["sweep", "value", "start", "agent", "cells", "n", *SWEPT])


def csv_text(frame: pd.DataFrame) -> str:
    """Return a data frame as CSV."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_files(files: Mapping[Path, str | bytes]) -> None:
    """Write files whole; RunDirectoryError if one cannot be."""
    for path, content in files.items():
        with replacing(path) as partial:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def csv_files(comparison: Comparison) -> dict[str, str]:
    """Return the CSV files of a run by name."""
    frames = {"cells": cell_rows(comparison), "means": mean_rows(comparison)}
    if comparison.sweeps:
        frames["sweeps"] = sweep_rows(comparison)
    return {f"{name}.csv": csv_text(frame) for name, frame in frames.items()}
