"""A suite's results, arranged for comparing agents.

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

from sponge_env.run.read import CELL, common_bound
from sponge_env.statistics import SIGNIFICANCE, FloatArray, holm, paired_p

Cell = tuple[str, str, str]
"""Scenario, profile, start."""

Span = tuple[float, float]
"""What is proven of a bound, and what is attained; mean over the seeds."""


@dataclass(frozen=True, slots=True)
class BoundSides:
    """The two sides of a bound on one cell, named as the metrics of agents."""

    name: str
    violation_rate: Span
    avoidable_violation_rate: Span
    mean_cores: Span


@dataclass(frozen=True)
class Comparison:
    """A suite's results, and in which order they are shown."""

    episodes: pd.DataFrame
    """See :func:`sponge_env.run.read.load_results`."""
    failures: pd.DataFrame
    """See :func:`sponge_env.run.read.load_failures`."""
    agents: Sequence[str]
    cells: Sequence[Cell]
    reference: str
    """Agent that the others are compared with."""
    bounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    """See :func:`sponge_env.run.read.load_bounds`; empty without bounds."""

    @cached_property
    def _by_cell(self) -> dict[tuple[str, ...], pd.DataFrame]:
        groups = self.episodes.sort_values("seed").groupby(["agent", *CELL])
        return {cast(tuple[str, ...], key): frame for key, frame in groups}

    @cached_property
    def common_bound(self) -> str:
        """The bound that all agents can be held against, empty if there is none."""
        return common_bound(self.bounds["agent"]) if not self.bounds.empty else ""

    @cached_property
    def _bounded(self) -> set[Cell]:
        missing = self.episodes["cores_over_common_bound"].isna()
        without = set(self.episodes[missing][list(CELL)].itertuples(index=False, name=None))
        return {cell for cell in self.cells if cell not in without} if self.common_bound else set()

    def bounded(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return those of some cells that have the bound of all agents."""
        return [cell for cell in cells if cell in self._bounded]

    def has(self, agent: str, cell: Cell) -> bool:
        """Whether an agent has results on a cell."""
        return (agent, *cell) in self._by_cell

    def values(self, agent: str, name: str, cells: Sequence[Cell]) -> FloatArray:
        """Return a metric of an agent, shape (cells, seeds)."""
        rows = [self._by_cell[agent, *cell][name].to_numpy(np.float64) for cell in cells]
        return np.array(rows)

    def own_bound(self, agent: str, cell: Cell) -> str:
        """Return the name of the bound of an agent's kind of scaling; empty if unknown."""
        return str(self._by_cell[agent, *cell]["bound"].iloc[0])

    def shared_cells(self, agent: str, start: str) -> list[Cell]:
        """Return the cells of a start on which both the agent and the reference have results."""
        both = (agent, self.reference)
        return [c for c in self.cells if c[2] == start and all(self.has(a, c) for a in both)]

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
        return self.different(name, {a: [cell] for a in self.agents if self.has(a, cell)})

    def bound_sides(self, cell: Cell) -> list[BoundSides]:
        """Return the bounds of a cell; none if nobody has results there."""
        if self.bounds.empty:
            return []
        bounds, episodes = (
            frame[(frame[list(CELL)] == list(cell)).all(axis=1)]
            for frame in (self.bounds, self.episodes)
        )
        offered = episodes.drop_duplicates("seed")[["seed", "offered", "hopeless", "duration_s"]]
        joined = bounds.merge(offered, on="seed")
        return [_sides(str(name), rows) for name, rows in joined.groupby("agent", sort=False)]


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
