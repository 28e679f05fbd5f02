"""Run directories, of a suite or of one evaluation, as the frames that a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import pandas as pd

from sponge_env.errors import RunDirectoryError
from sponge_env.files import read_json
from sponge_env.run.read import (
    CELL,
    load_bounds,
    load_failures,
    load_intervals,
    load_latencies,
    load_results,
)
from sponge_env.run.suite import Suite, load_suite
from sponge_env.suite.comparison import Cell, Comparison

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
    "queued",
    "latency_p99_s",
    "delay_mean_s",
    "bandwidth_bytes_per_s",
)
"""Interval metrics that reports show."""


@dataclass(frozen=True)
class Source:
    """What one run directory holds."""

    path: Path
    comparison: Comparison
    intervals: pd.DataFrame
    """The part that counts of every agent's first seed, one row per interval."""
    latencies: pd.DataFrame
    """See :func:`sponge_env.run.read.load_latencies`."""
    command: str
    host: dict[str, Any]
    versions: dict[str, Any]

    @property
    def starts(self) -> list[str]:
        """The starts that there are, in order."""
        return list(dict.fromkeys(start for _, _, start in self.comparison.cells))

    @property
    def scenarios(self) -> list[str]:
        """The scenarios that there are, in order."""
        return list(dict.fromkeys(scenario for scenario, _, _ in self.comparison.cells))

    @property
    def profiles(self) -> list[str]:
        """The profiles that there are, in order."""
        return list(dict.fromkeys(profile for _, profile, _ in self.comparison.cells))

    @property
    def seeds(self) -> int:
        """Episodes of each agent and cell."""
        return int(self.comparison.episodes["seed"].nunique())

    def intervals_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the intervals of an agent's first seed on a cell; empty if it has none."""
        return self._intervals_by_cell.get((agent, *cell), pd.DataFrame())

    def latencies_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the quantiles of an agent's latencies on a cell; empty if it has none."""
        return self._latencies_by_cell.get((agent, *cell), pd.DataFrame())

    @cached_property
    def _intervals_by_cell(self) -> dict[tuple[str, ...], pd.DataFrame]:
        return _by_cell(self.intervals)

    @cached_property
    def _latencies_by_cell(self) -> dict[tuple[str, ...], pd.DataFrame]:
        return _by_cell(self.latencies)

    def cells(self, scenario: str = "", start: str = "") -> list[Cell]:
        """Return the cells of a scenario, or a start, or both."""
        return [
            cell
            for cell in self.comparison.cells
            if scenario in ("", cell[0]) and start in ("", cell[2])
        ]


def load_source(path: Path) -> Source:
    """Read a run directory.

    Args:
        path: The folder that ``evaluate.py`` wrote, with or without ``--suite``.

    Raises:
        RunDirectoryError: It is none, one of another version, or holds no finished episode.
    """
    episodes = load_results(path)
    if episodes.empty:
        raise RunDirectoryError(
            f"{str(path)!r} holds no finished episode; let evaluate.py finish first"
        )
    return Source(
        path=path,
        comparison=_comparison(episodes, load_failures(path), load_bounds(path)),
        intervals=_counted(load_intervals(path, DRAWN, seed=0), episodes),
        latencies=load_latencies(path),
        command=_command(path),
        host=read_json(path / "host.json"),
        versions=read_json(path / "versions.json"),
    )


def _comparison(episodes: pd.DataFrame, failures: pd.DataFrame, bounds: pd.DataFrame) -> Comparison:
    """Put agents and cells into the order of the standard suite, further ones after them."""
    standard = load_suite(STANDARD)
    agents = _ordered(episodes["agent"], list(standard.agents))
    named = pd.concat([episodes[list(CELL)], failures[list(CELL)]]).drop_duplicates()
    cells = [cast(Cell, tuple(row)) for row in named.itertuples(index=False, name=None)]
    return Comparison(
        episodes=episodes,
        failures=failures,
        agents=agents,
        cells=_ordered_cells(cells, standard),
        reference=standard.compared_with if standard.compared_with in agents else agents[0],
        bounds=bounds,
    )


def _ordered_cells(cells: Sequence[Cell], standard: Suite) -> list[Cell]:
    scenarios = _ordered(
        (cell[0] for cell in cells), [name for g in standard.cells for name in g.scenarios]
    )
    profiles = _ordered(
        (cell[1] for cell in cells), [name for g in standard.cells for name in g.profiles]
    )
    starts = _ordered((cell[2] for cell in cells), standard.starts)
    return [c for c in product(scenarios, profiles, starts) if c in cells]


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


def _by_cell(frame: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """Return the rows of every agent and cell."""
    if frame.empty:
        return {}
    groups = frame.groupby(["agent", *CELL])
    return {cast(tuple[str, ...], key): rows for key, rows in groups}


def _command(path: Path) -> str:
    """Return the command that wrote a folder; of several, which resumed it, the last."""
    file = path / "command.txt"
    try:
        return file.read_text().splitlines()[-1]
    except (OSError, IndexError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
