"""The results of a suite or of one evaluation, arranged for comparing agents.

Agents are compared with the reference on the same seeds. Which of them differ from it follows
from the p values of a paired test, corrected for the number of agents in one column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.errors import RunDirectoryError
from sponge_env.metrics import CELL, ByStage, column
from sponge_env.results import statistics
from sponge_env.results.drawing import DRAWN, STANDARD, featured_of, in_order
from sponge_env.results.statistics import MIN_SEEDS, Estimate, holm, paired_p
from sponge_env.run import read
from sponge_env.run.suite import arranged, load_suite
from sponge_env.utils.files import read_json, read_text
from sponge_env.utils.installation import describe_host

Cell = tuple[str, str, str]
"""Scenario, profile, start."""


@dataclass(frozen=True)
class Comparison:
    """Results, and in which order they are shown."""

    episodes: pd.DataFrame
    """See :func:`sponge_env.run.read.load_results`, as for the other frames."""
    failures: pd.DataFrame
    agents: Sequence[str]
    cells: Sequence[Cell]
    reference: str
    """Agent that the others are compared with."""
    families: Mapping[str, str] = field(default_factory=dict)
    """By scenario, what counts once in means over all cells; each its own if left out."""
    sweeps: Mapping[str, Mapping[str, Sequence[Cell]]] = field(default_factory=dict)
    """By what is swept and its value: further cells, in the order of those above."""
    replayed: Mapping[str, str] = field(default_factory=dict)
    """By scenario, what to say where every seed has the same requests: its seeds are one sample,
    their mean."""
    bounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Empty without bounds."""
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The part that counts of every agent's first seed, one row per interval."""

    @property
    def scenarios(self) -> list[str]:
        """The scenarios, in order."""
        return list(dict.fromkeys(scenario for scenario, _, _ in self.cells))

    @property
    def starts(self) -> list[str]:
        """The starts, in order."""
        return list(dict.fromkeys(start for _, _, start in self.cells))

    @property
    def seeds(self) -> int:
        """Episodes of each agent and cell."""
        return int(self.episodes["seed"].nunique())

    def samples(self, cells: Sequence[Cell]) -> int:
        """Return how many independent samples there are of each agent on some cells."""
        return 1 if any(scenario in self.replayed for scenario, _, _ in cells) else self.seeds

    def cells_of(self, scenario: str = "", start: str = "") -> list[Cell]:
        """Return the cells of a scenario, or a start, or both."""
        return [c for c in self.cells if scenario in ("", c[0]) and start in ("", c[2])]

    def family(self, scenario: str) -> str:
        """Return what nearly equal scenarios have in common, or else the scenario."""
        return self.families.get(scenario, scenario)

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """Rows by the name of their frame, agent and cell; what bounds attain is like an agent."""
        episodes = [self.episodes, *([] if self.bounds.empty else [self._bound_episodes()])]
        frames = {"intervals": self.intervals, "episodes": pd.concat(episodes).sort_values("seed")}
        return {
            (name, *cast(tuple[str, ...], key)): rows
            for name, frame in frames.items()
            if not frame.empty
            for key, rows in frame.groupby(["agent", *CELL])
        }

    def _bound_episodes(self) -> pd.DataFrame:
        """Return what the bounds attain, where an agent has results, under the agents' metrics."""
        key = [*CELL, "seed"]
        played = self.episodes.drop_duplicates(key)[[*key, "offered", "hopeless", "duration_s"]]
        upper = {"violations_upper": "best_violations", "core_seconds_upper": "best_core_seconds"}
        best = self.bounds[self.bounds["agent"] == self.common_bound][[*key, *upper]]
        rows = self.bounds.merge(played, on=key).merge(
            best.rename(columns=upper), how="left", on=key
        )
        violations, core_seconds = rows["violations_upper"], rows["core_seconds_upper"]
        requests = rows["offered"].clip(lower=1)
        return rows[["agent", *key]].assign(
            violation_rate=violations / requests,
            avoidable_violation_rate=(violations - rows["hopeless"]) / requests,
            beyond_common_bound_rate=(violations - rows["best_violations"]) / requests,
            mean_cores=core_seconds / rows["duration_s"],
            cores_over_common_bound=core_seconds / rows["best_core_seconds"],
        )

    def intervals_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the intervals of an agent's first seed on a cell; empty if it has none."""
        return self._rows.get(("intervals", agent, *cell), pd.DataFrame())

    def has(self, agent: str, *cells: Cell) -> bool:
        """Whether an agent has results on each of some cells."""
        return all(("episodes", agent, *cell) in self._rows for cell in cells)

    def agents_on(self, *cells: Cell) -> list[str]:
        """Return the agents that have results on each of some cells."""
        return [agent for agent in self.agents if self.has(agent, *cells)]

    def values(self, agent: str, name: str, cells: Sequence[Cell]) -> FloatArray:
        """Return a metric of an agent, shape (cells, samples)."""
        rows = [self._rows["episodes", agent, *cell][name] for cell in cells]
        values = np.array(rows, dtype=np.float64)
        return values.mean(axis=1, keepdims=True) if self.samples(cells) == 1 else values

    def pooled(self, agent: str, name: str, cells: Sequence[Cell]) -> FloatArray:
        """Return a metric of an agent, (families, samples).

        It is averaged over the scenarios of a family, for profile and start each: nearly equal
        scenarios would otherwise make up most of a mean over all cells.
        """
        values = self.values(agent, name, cells)
        keys = [(self.family(scenario), *rest) for scenario, *rest in cells]
        rows = [[n for n, key in enumerate(keys) if key == one] for one in dict.fromkeys(keys)]
        return np.array([values[n].mean(axis=0) for n in rows], dtype=np.float64)

    def estimate(self, agent: str, name: str, cells: Sequence[Cell]) -> Estimate:
        """Return a metric of an agent, mean over families of cells and seeds, with interval.

        What is relative to the common bound leaves out cells without one; NaN if none is left.
        """
        if column(name).bound == "needed":
            cells = self.bounded(cells)
        if not cells:
            return Estimate(math.nan, math.nan, math.nan)
        return statistics.mean(self.pooled(agent, name, cells))

    def mean(self, agent: str, name: str, cells: Sequence[Cell]) -> float:
        """Return the same without interval."""
        return float(self.pooled(agent, name, cells).mean())

    def accuracies(self, cells: Sequence[Cell]) -> list[float]:
        """Return the mean accuracies of the answers of all agents on some cells."""
        return [self.mean(a, "accuracy", [cell]) for cell in cells for a in self.agents_on(cell)]

    def stages(self, cell: Cell) -> dict[str, list[ByStage]]:
        """Return by agent what was measured of the stages, seed by seed."""
        return {a: list(self._rows["episodes", a, *cell]["stages"]) for a in self.agents_on(cell)}

    def p_values(self, name: str, cells_of: Mapping[str, Sequence[Cell]]) -> dict[str, float]:
        """Return by agent the corrected p value of "as much of a metric as the reference".

        Agents are compared on their cells if the reference has results there, and enough seeds
        to differ; those of one column of a table are one family of tests.
        """
        both = {
            agent: [self.pooled(a, name, cells) for a in (agent, self.reference)]
            for agent, cells in cells_of.items()
            if agent != self.reference and cells and self.has(self.reference, *cells)
            if self.samples(cells) >= MIN_SEEDS
        }
        corrected = holm([paired_p(ours, theirs) for ours, theirs in both.values()])
        return dict(zip(both, corrected, strict=True))

    @cached_property
    def common_bound(self) -> str:
        """The bound that all agents can be compared with, empty if there is none."""
        return read.common_bound(self.bounds["agent"]) if not self.bounds.empty else ""

    @cached_property
    def _without_bound(self) -> set[Cell]:
        missing = self.episodes[self.episodes["cores_over_common_bound"].isna()]
        return set(missing[list(CELL)].itertuples(index=False, name=None))

    def bounded(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return those of some cells that have the bound of all agents."""
        return [c for c in cells if self.common_bound and c not in self._without_bound]

    def bounds_on(self, cell: Cell) -> list[str]:
        """Return the bounds of a cell on which an agent has results."""
        names = [] if self.bounds.empty else [*self.bounds["agent"].unique()]
        return [name for name in names if self.has(name, cell)]


@dataclass(frozen=True)
class RunFolder:
    """What one run directory holds."""

    path: Path
    comparison: Comparison
    featured: Sequence[str]
    """Agents to show where there is no room for all."""
    command: str
    host: dict[str, Any]
    versions: dict[str, Any]

    def with_reference(self, agent: str) -> RunFolder:
        """Return the run compared with an agent, if it has that one."""
        if agent not in self.comparison.agents:
            return self
        return replace(self, comparison=replace(self.comparison, reference=agent))


def load_run(path: Path) -> RunFolder:
    """Read the folder that ``evaluate.py`` wrote, with or without ``--suite``."""
    episodes = read.load_results(path)
    if episodes.empty:
        raise RunDirectoryError(
            f"{str(path)!r} holds no finished episode; let evaluate.py finish first"
        )
    standard, failures = load_suite(STANDARD), read.load_failures(path)
    arrangement = read.load_arrangement(path)
    named = pd.concat([episodes[list(CELL)], failures[list(CELL)]])
    cells = cast(set[Cell], set(named.itertuples(index=False, name=None)))
    agents = in_order(set(episodes["agent"]))
    comparison = Comparison(
        episodes=episodes,
        failures=failures,
        agents=agents,
        cells=[c for c in arrangement.cells if c in cells] or sorted(cells),
        reference=standard.compared_with if standard.compared_with in agents else agents[0],
        families=arranged(standard).families | arrangement.families,
        sweeps=arrangement.sweeps,
        replayed=arrangement.replayed,
        bounds=read.load_bounds(path),
        intervals=_counted(read.load_intervals(path, DRAWN, seed=0), episodes),
    )
    host = {**dict.fromkeys(describe_host(), "?"), **read_json(path / "host.json")}
    versions = read_json(path / "versions.json")
    return RunFolder(path, comparison, featured_of(agents), _command(path), host, versions)


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
        return read_text(file).splitlines()[-1]
    except (OSError, ValueError, IndexError) as error:
        raise RunDirectoryError(f"cannot read {str(file)!r}: {error}") from error
