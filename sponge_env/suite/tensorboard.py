"""A suite in TensorBoard: one run per agent, one number per metric and cell."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from sponge_env.run.read import CELL
from sponge_env.tensorboard_sink import write_summary

COMPARED = (
    "violation_rate",
    "avoidable_violation_rate",
    "beyond_bound_rate",
    "mean_cores",
    "cores_over_bound",
    "latency_p99_s",
)
"""Means over the seeds that are shown, grouped by metric and start."""


def write_runs(folder: Path, episodes: pd.DataFrame) -> None:
    """Write all runs anew.

    Args:
        folder: Where; what is there goes.
        episodes: See :func:`sponge_env.run.read.load_results`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    means = episodes.groupby(["agent", *CELL], as_index=False)[list(COMPARED)].mean()
    for agent, table in means.groupby("agent"):
        values = {
            f"{row['start']} {name}/{row['scenario']} {row['profile']}": float(row[name])
            for row in table.to_dict("records")
            for name in COMPARED
        }
        write_summary(folder / str(agent), values)
