"""The results of a suite or of one evaluation, arranged for comparing agents.

Agents are compared with the reference on the same seeds. Which of them differ from it is told
by the p values of a paired test, corrected for the number of agents that stand in one column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd

from sponge_env.arrays import FloatArray
from sponge_env.results.schema import CELL
from sponge_env.results.statistics import SIGNIFICANCE, holm, paired_p
from sponge_env.run.read import common_bound

Cell = tuple[str, str, str]
"""Scenario, profile, start."""

Span = tuple[float, float]
"""What is proven of a bound, and what is attained; mean over the seeds."""

FEW_VIOLATIONS = 0.001
"""Avoidable violations per request with which an agent counts as meeting the SLO."""


@dataclass(frozen=True, slots=True)
class BoundSides:
    """The two sides of a bound on one cell, named as the metrics of agents."""

    name: str
    violation_rate: Span
    avoidable_violation_rate: Span
    mean_cores: Span


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
    bounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Empty without bounds."""
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The part that counts of every agent's first seed, one row per interval."""
    latencies: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def scenarios(self) -> list[str]:
        """The scenarios that there are, in order."""
        return list(dict.fromkeys(scenario for scenario, _, _ in self.cells))

    @property
    def profiles(self) -> list[str]:
        """The profiles that there are, in order."""
        return list(dict.fromkeys(profile for _, profile, _ in self.cells))

    @property
    def starts(self) -> list[str]:
        """The starts that there are, in order."""
        return list(dict.fromkeys(start for _, _, start in self.cells))

    @property
    def seeds(self) -> int:
        """Episodes of each agent and cell."""
        return int(self.episodes["seed"].nunique())

    def cells_of(self, scenario: str = "", start: str = "") -> list[Cell]:
        """Return the cells of a scenario, or a start, or both."""
        return [c for c in self.cells if scenario in ("", c[0]) and start in ("", c[2])]

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """Rows by the name of their frame, agent and cell."""
        frames = {
            "episodes": self.episodes.sort_values("seed"),
            "intervals": self.intervals,
            "latencies": self.latencies,
        }
        return {
            (name, *cast(tuple[str, ...], key)): rows
            for name, frame in frames.items()
            if not frame.empty
            for key, rows in frame.groupby(["agent", *CELL])
        }

    def intervals_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the intervals of an agent's first seed on a cell; empty if it has none."""
        return self._rows.get(("intervals", agent, *cell), pd.DataFrame())

    def latencies_of(self, agent: str, cell: Cell) -> pd.DataFrame:
        """Return the quantiles of an agent's latencies on a cell; empty if it has none."""
        return self._rows.get(("latencies", agent, *cell), pd.DataFrame())

    def has(self, agent: str, cell: Cell) -> bool:
        """Whether an agent has results on a cell."""
        return ("episodes", agent, *cell) in self._rows

    def there(self, cell: Cell) -> list[str]:
        """Return the agents that have results on a cell."""
        return [agent for agent in self.agents if self.has(agent, cell)]

    def values(self, agent: str, name: str, cells: Sequence[Cell]) -> FloatArray:
        """Return a metric of an agent, shape (cells, seeds)."""
        rows = [self._rows["episodes", agent, *cell][name] for cell in cells]
        return np.array(rows, dtype=np.float64)

    def mean(self, agent: str, name: str, cell: Cell) -> float:
        """Return a metric of an agent on a cell, mean over the seeds."""
        return float(self.values(agent, name, [cell]).mean())

    def own_bound(self, agent: str, cell: Cell) -> str:
        """Return the name of the bound of an agent's kind of scaling; empty if unknown."""
        return str(self._rows["episodes", agent, *cell]["bound"].iloc[0])

    def shared_cells(self, agent: str, start: str) -> list[Cell]:
        """Return the cells of a start on which both the agent and the reference have results."""
        both = (agent, self.reference)
        return [c for c in self.cells_of(start=start) if all(self.has(a, c) for a in both)]

    def cheapest(self, cell: Cell) -> str:
        """Return the agent with the fewest cores among those that meet the SLO; empty if none."""

        def violations(agent: str) -> float:
            return self.mean(agent, "avoidable_violation_rate", cell)

        good = [a for a in self.there(cell) if violations(a) <= FEW_VIOLATIONS]
        return min(good, key=lambda a: self.mean(a, "core_seconds", cell), default="")

    def different(
        self,
        name: str,
        cells_of: Mapping[str, Sequence[Cell]],
        test: Callable[[FloatArray, FloatArray], float] = paired_p,
    ) -> set[str]:
        """Return the agents that are shown to differ from the reference.

        Args:
            name: The metric.
            cells_of: By agent, cells on which it and the reference have results; all agents
                of one column of a table, which are one family of tests.
            test: Gives the p value of two agents' values.
        """
        others = [a for a, cells in cells_of.items() if a != self.reference and cells]
        pairs = [
            [self.values(a, name, cells_of[agent]) for a in (agent, self.reference)]
            for agent in others
        ]
        corrected = holm([test(ours, theirs) for ours, theirs in pairs])
        return {agent for agent, p in zip(others, corrected, strict=True) if p < SIGNIFICANCE}

    def different_on(self, name: str, cell: Cell) -> set[str]:
        """Return the agents that are shown to differ from the reference on one cell."""
        if not self.has(self.reference, cell):
            return set()
        return self.different(name, {agent: [cell] for agent in self.there(cell)})

    @cached_property
    def common_bound(self) -> str:
        """The bound that all agents can be compared with, empty if there is none."""
        return common_bound(self.bounds["agent"]) if not self.bounds.empty else ""

    @cached_property
    def _bounded(self) -> set[Cell]:
        missing = self.episodes["cores_over_common_bound"].isna()
        without = set(self.episodes[missing][list(CELL)].itertuples(index=False, name=None))
        return {cell for cell in self.cells if cell not in without} if self.common_bound else set()

    def bounded(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return those of some cells that have the bound of all agents."""
        return [cell for cell in cells if cell in self._bounded]

    @cached_property
    def bound_episodes(self) -> pd.DataFrame:
        """The bounds beside what was offered, a row for each bound, cell and seed.

        What was offered is NaN where no agent has results.
        """
        if self.bounds.empty:
            return self.bounds
        key = [*CELL, "seed"]
        offered = self.episodes.drop_duplicates(key)
        return self.bounds.merge(
            offered[[*key, "offered", "hopeless", "duration_s"]], on=key, how="left"
        )

    def bound_sides(self, cell: Cell) -> list[BoundSides]:
        """Return the bounds of a cell; none if nobody has results there."""
        if self.bounds.empty:
            return []
        here = (self.bound_episodes[list(CELL)] == list(cell)).all(axis=1)
        rows = self.bound_episodes[here].dropna(subset="offered")
        return [_sides(str(name), of_one) for name, of_one in rows.groupby("agent", sort=False)]

    def bound_gaps(self) -> dict[str, pd.DataFrame]:
        """Return by bound the gaps between its two sides, a row for each cell.

        Returns:
            ``cores``: core-seconds, relative to what is proven; ``violations``: per request.
        """
        if self.bounds.empty:
            return {}
        sums = self.bound_episodes.groupby(["agent", *CELL]).sum(numeric_only=True)
        open_violations = sums["violations_upper"] - sums["violations_lower"]
        gaps = pd.DataFrame(
            {
                "cores": sums["core_seconds_upper"] / sums["core_seconds_lower"] - 1.0,
                "violations": open_violations / sums["offered"].clip(lower=1),
            }
        )
        return {str(name): gap.droplevel("agent") for name, gap in gaps.groupby(level="agent")}


def _sides(name: str, bound: pd.DataFrame) -> BoundSides:
    """Summarise a bound's seeds on one cell."""

    def span(of: Callable[[str], pd.Series[float]]) -> Span:
        return float(of("lower").mean()), float(of("upper").mean())

    offered = bound["offered"].clip(lower=1)
    return BoundSides(
        name=name,
        violation_rate=span(lambda side: bound[f"violations_{side}"] / offered),
        avoidable_violation_rate=span(
            lambda side: (bound[f"violations_{side}"] - bound["hopeless"]) / offered
        ),
        mean_cores=span(lambda side: bound[f"core_seconds_{side}"] / bound["duration_s"]),
    )
