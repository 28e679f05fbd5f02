"""Run directories, of a suite or of one evaluation, read for a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import pandas as pd

from sponge_env.errors import RunDirectoryError
from sponge_env.files import read_json
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.schema import CELL
from sponge_env.run.read import (
    load_bounds,
    load_failures,
    load_intervals,
    load_latencies,
    load_results,
)
from sponge_env.run.suite import Suite, load_suite

STANDARD = "standard"
"""Suite whose order of agents, scenarios, profiles and starts all reports keep to."""

DRAWN = (
    "time_s",
    "offered",
    "violations",
    "avoidable_violations",
    "cores",
    "batch",
    "replicas_ready",
    "delay_mean_s",
    "bandwidth_bytes_per_s",
)
"""Interval metrics that pictures show and sentences are about."""


@dataclass(frozen=True)
class Run:
    """What one run directory holds."""

    path: Path
    comparison: Comparison
    featured: Sequence[str]
    """Agents to show where there is no room for all."""
    command: str
    host: dict[str, Any]
    versions: dict[str, Any]


def load_run(path: Path) -> Run:
    """Read a run directory.

    Args:
        path: The folder that ``evaluate.py`` wrote, with or without ``--suite``.

    Raises:
        RunDirectoryError: It is none, one of another version, or holds no finished episode.
    """
    frames = _frames(path)
    if frames["episodes"].empty:
        raise RunDirectoryError(
            f"{str(path)!r} holds no finished episode; let evaluate.py finish first"
        )
    standard = load_suite(STANDARD)
    return Run(
        path=path,
        comparison=_comparison(frames, standard),
        featured=standard.featured,
        command=_command(path),
        host=read_json(path / "host.json"),
        versions=read_json(path / "versions.json"),
    )


def _frames(path: Path) -> dict[str, pd.DataFrame]:
    return {
        "episodes": load_results(path),
        "failures": load_failures(path),
        "bounds": load_bounds(path),
        "intervals": load_intervals(path, DRAWN, seed=0),
        "latencies": load_latencies(path),
    }


def _comparison(frames: dict[str, pd.DataFrame], standard: Suite) -> Comparison:
    """Put agents and cells into the order of the standard suite, further ones after them."""
    episodes = frames["episodes"]
    agents = _ordered(episodes["agent"], list(standard.agents))
    named = pd.concat([episodes[list(CELL)], frames["failures"][list(CELL)]]).drop_duplicates()
    cells = [cast(Cell, tuple(row)) for row in named.itertuples(index=False, name=None)]
    reference = standard.compared_with if standard.compared_with in agents else agents[0]
    counted = _counted(frames["intervals"], episodes)
    ordered = _ordered_cells(cells, standard)
    frames = frames | {"intervals": counted}
    return Comparison(agents=agents, cells=ordered, reference=reference, **frames)


def _ordered_cells(cells: Sequence[Cell], standard: Suite) -> list[Cell]:
    known = (
        [name for group in standard.cells for name in group.scenarios],
        [name for group in standard.cells for name in group.profiles],
        standard.starts,
    )
    there = zip(*cells, strict=True)
    ordered = product(*(_ordered(*both) for both in zip(there, known, strict=True)))
    return [cast(Cell, cell) for cell in ordered if cell in cells]


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return names without repetition: known ones in their order, then the others by name."""
    there = set(names)
    known = [name for name in dict.fromkeys(first) if name in there]
    return known + sorted(there - set(known))


def _counted(intervals: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Leave the warm-up out, which is what goes before an episode's ``duration_s``."""
    if intervals.empty:
        return intervals
    key = ["agent", *CELL]
    durations_s = episodes.groupby(key, as_index=False)["duration_s"].max()
    merged = intervals.merge(durations_s, on=key)
    end_s = merged.groupby(key)["time_s"].transform("max")
    return merged[merged["time_s"] > end_s - merged["duration_s"] + 1e-6]


def _command(path: Path) -> str:
    """Return the command that wrote a folder; of several, which resumed it, the last."""
    file = path / "command.txt"
    try:
        return file.read_text().splitlines()[-1]
    except (OSError, IndexError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
