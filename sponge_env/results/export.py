"""The results of a suite as data frames, which become CSV: rates per request, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from sponge_env.metrics import CELL
from sponge_env.results.comparison import Comparison
from sponge_env.results.score import score_rows
from sponge_env.utils.files import replacing

CELL_METRICS = (
    "violation_rate", "avoidable_violation_rate", "mean_cores", "latency_p99_s",
    "effective_accuracy",
)  # fmt: skip


def cell_rows(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each agent and cell, and for what the first bound attains there."""
    c, rows = comparison, []
    for cell in c.cells:
        place = (*cell, c.groups.get(cell[0], ""))
        for agent in [*c.agents_on(cell), *c.bounds_on(cell)[:1]]:
            means = [c.values(agent, name, cell).mean() for name in CELL_METRICS]
            rows.append((*place, agent, c.values(agent, "seed", cell).size, *means))
    return pd.DataFrame(rows, columns=[*CELL, "group", "agent", "n", *CELL_METRICS])


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
    cells = cell_rows(comparison)
    scores = score_rows(cells, comparison.reference)
    return {"cells.csv": csv_text(cells), "score.csv": csv_text(scores)}


def read_rows(path: Path) -> pd.DataFrame:
    """Return what :func:`csv_text` wrote of cells or scores."""
    names = [*CELL, "group"]
    rows = pd.read_csv(path, dtype=dict.fromkeys(names, str))
    return rows.fillna(dict.fromkeys(names, ""))
