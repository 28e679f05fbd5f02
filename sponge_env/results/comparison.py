"""The results of a suite or of one evaluation, arranged for comparing agents."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import CELL, ByStage
from sponge_env.results.drawing import DRAWN, STANDARD, in_order
from sponge_env.run import read
from sponge_env.run.suite import BOUND_AGENTS, Arrangement, load_suite
from sponge_env.utils.files import read_json, read_text
from sponge_env.utils.installation import describe_host

Cell = tuple[str, str, str]  # Scenario, profile, start


@dataclass(frozen=True)
class Comparison:
    """Results, and in which order they are shown."""

    episodes: pd.DataFrame  # See :mod:`sponge_env.run.read`, for the others too; with bounds
    failures: pd.DataFrame
    agents: Sequence[str]
    shown: Arrangement  # Cells and reference; seeds of a ``replayed`` cell are one sample
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The part that counts of every agent's first seed, one row per interval."""

    @property
    def scenarios(self) -> list[str]:
        """The scenarios, in order."""
        return list(dict.fromkeys(scenario for scenario, _, _ in self.shown.cells))

    @property
    def seeds(self) -> int:
        """Episodes of each agent and cell."""
        return int(self.episodes["seed"].nunique())

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """Rows by the name of their frame, agent and cell."""
        frames = {"intervals": self.intervals, "episodes": self.episodes.sort_values("seed")}
        return {
            (name, *cast(tuple[str, ...], key)): rows
            for name, frame in frames.items()
            if not frame.empty
            for key, rows in frame.groupby(["agent", *CELL])
        }

    def intervals_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the intervals of an agent's first seed on a cell; empty if it has none."""
        return self._rows.get(("intervals", agent, *cell), pd.DataFrame())

    def agents_on(self, cell: Cell) -> list[str]:
        """Return the agents that have results on a cell."""
        return [agent for agent in self.agents if ("episodes", agent, *cell) in self._rows]

    def values(self, agent: str, name: str, cell: Cell) -> FloatArray:
        """Return a metric of an agent, shape (samples,): its seeds, if their requests differ."""
        values = self._rows["episodes", agent, *cell][name].to_numpy(np.float64)
        return values.mean(keepdims=True) if cell[0] in self.shown.replayed else values

    def accuracies(self, cell: Cell) -> list[float]:
        """Return the mean accuracies of the answers of all agents on a cell."""
        return [float(self.values(a, "accuracy", cell).mean()) for a in self.agents_on(cell)]

    def stages(self, cell: Cell) -> dict[str, list[ByStage]]:
        """Return by agent what was measured of the stages, seed by seed."""
        return {a: list(self._rows["episodes", a, *cell]["stages"]) for a in self.agents_on(cell)}

    def bounds_on(self, cell: Cell) -> list[str]:
        """Return the bounds that have results on a cell."""
        # First comes the one that agents of all kinds can be held against, the joint one if there:
        # what scales vertically only could also have been scaled by it.
        names = (BOUND_AGENTS["joint"], BOUND_AGENTS["vertical"])
        return [name for name in names if ("episodes", name, *cell) in self._rows]


@dataclass(frozen=True)
class RunFolder:
    """What one run directory holds."""

    path: Path
    comparison: Comparison
    command: str
    host: dict[str, Any]
    versions: dict[str, Any]


def load_run(path: Path, reference: str = "") -> RunFolder:
    """Read the folder that ``evaluate.py`` wrote, with or without ``--suite``."""
    # Its agents are compared with the ``reference`` if there; else as its suite says.
    episodes = read.load_results(path)
    agents = in_order(set(episodes["agent"]) - set(BOUND_AGENTS.values()))
    if not agents:
        raise RunDirectoryError(
            f"{str(path)!r} holds no finished episode of an agent; let evaluate.py finish first"
        )
    arrangement, failures = read.load_arrangement(path), read.load_failures(path)
    named = pd.concat([episodes[list(CELL)], failures[list(CELL)]])
    cells = cast(set[Cell], set(named.itertuples(index=False, name=None)))
    first = int(episodes["seed"].min())
    asked = (reference, arrangement.reference, load_suite(STANDARD).compared_with, agents[0])
    own = tuple(c for c in arrangement.cells if c in cells) or tuple(sorted(cells))
    found = next(agent for agent in asked if agent in agents)
    shown = replace(arrangement, cells=own, reference=found)
    intervals = _counted(read.load_intervals(path, DRAWN, seed=first), episodes)
    comparison = Comparison(episodes, failures, agents, shown, intervals)
    host = {**dict.fromkeys(describe_host(), "?"), **read_json(path / "host.json")}
    return RunFolder(path, comparison, _command(path), host, read_json(path / "versions.json"))


def _counted(intervals: pd.DataFrame, episodes: pd.DataFrame) -> pd.DataFrame:
    """Leave the warm-up out, which is what goes before an episode's ``duration_s``."""
    if intervals.empty:
        return intervals
    key = ["agent", *CELL]
    merged = intervals.merge(episodes.groupby(key, as_index=False)["duration_s"].max(), on=key)
    end_s = merged.groupby(key)["time_s"].transform("max")
    return merged[merged["time_s"] > end_s - merged["duration_s"] + 1e-6]


def _command(path: Path) -> str:
    """Return the command that wrote a folder; of several, which resumed it, the last."""
    file = path / "command.txt"
    try:
        return read_text(file).splitlines()[-1]
    except (OSError, ValueError, IndexError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
