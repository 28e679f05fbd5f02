"""A suite's results as tables for the terminal.

Agents are compared with the reference on the same seeds. A difference whose 95 % interval
holds 0 (a probability whose interval holds one half) is called not significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd

from sponge_env.statistics import (
    FloatArray,
    Interval,
    interquartile_mean,
    mean,
    paired_difference,
    probability_of_improvement,
)
from sponge_env.suite.results import CELL
from sponge_env.tables import aligned

NOT_SIGNIFICANT = "n.s."

AGGREGATE_NOTE = (
    "middle half: interquartile mean over cells and seeds; fewer ... than: probability on a random "
    "cell and seed; [95 % interval]; n.s.: not significant"
)

Cell = tuple[str, str, str]
"""Scenario, profile, start."""


@dataclass(frozen=True)
class Comparison:
    """A suite's results, and in which order they are shown."""

    episodes: pd.DataFrame
    """See :func:`sponge_env.suite.results.load_results`."""
    failures: pd.DataFrame
    """See :func:`sponge_env.suite.results.load_failures`."""
    agents: Sequence[str]
    cells: Sequence[Cell]
    reference: str
    """Agent that the others are compared with."""

    @cached_property
    def _by_cell(self) -> dict[tuple[str, ...], pd.DataFrame]:
        groups = self.episodes.sort_values("seed").groupby(["agent", *CELL])
        return {cast(tuple[str, ...], key): frame for key, frame in groups}

    @cached_property
    def bounded(self) -> bool:
        """Whether every episode has a bound."""
        return not self.episodes["cores_over_bound"].isna().any()

    def has(self, agent: str, cell: Cell) -> bool:
        """Whether an agent has results on a cell."""
        return (agent, *cell) in self._by_cell

    def values(self, agent: str, name: str, cells: Sequence[Cell]) -> FloatArray:
        """Return a metric of an agent, shape (cells, seeds)."""
        rows = [self._by_cell[agent, *cell][name].to_numpy(np.float64) for cell in cells]
        return np.array(rows)

    def shared_cells(self, agent: str, start: str) -> list[Cell]:
        """Return the cells of a start on which both the agent and the reference have results."""
        both = (agent, self.reference)
        return [c for c in self.cells if c[2] == start and all(self.has(a, c) for a in both)]


def all_tables(comparison: Comparison) -> str:
    """Return a table for each cell and one for each start, aggregates last."""
    starts = dict.fromkeys(start for _, _, start in comparison.cells)
    parts = [cell_table(comparison, cell) for cell in comparison.cells]
    parts += [aggregate_table(comparison, start) for start in starts]
    return "\n\n".join(parts)


def cell_table(comparison: Comparison, cell: Cell) -> str:
    """Return the table of one cell, with a line for each agent that failed."""
    against = f"against {comparison.reference}"
    rows = [
        ["", "violated", "avoidable", "beyond", against, "cores", against, "over bound", "p99"],
        ["agent", "%", "%", "bound %", "% points", "mean, 95 %", "cores", "ratio", "ms"],
        *(_cell_row(comparison, a, cell) for a in comparison.agents if comparison.has(a, cell)),
    ]
    scenario, profile, start = cell
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return _titled(f"{scenario}, {profile}, {start} start", rows, lines)


def _cell_row(comparison: Comparison, agent: str, cell: Cell) -> list[str]:
    def values(name: str, of: str = agent) -> FloatArray:
        seeds: FloatArray = comparison.values(of, name, [cell])[0]
        return seeds

    def against(name: str, scale: float, digits: int) -> str:
        if agent == comparison.reference or not comparison.has(comparison.reference, cell):
            return "-"
        difference = paired_difference(values(name), values(name, comparison.reference))
        return _signed(difference, scale, digits)

    return [
        agent,
        _number(values("violation_rate"), 100, 3),
        _number(values("avoidable_violation_rate"), 100, 3),
        _number(values("beyond_bound_rate"), 100, 3),
        against("violation_rate", 100, 3),
        _with_interval(mean(values("mean_cores")), 1, 2),
        against("mean_cores", 1, 2),
        _number(values("cores_over_bound"), 1, 3),
        _number(values("latency_p99_s"), 1000, 0),
    ]


def aggregate_table(comparison: Comparison, start: str) -> str:
    """Return the table over all cells of one start."""
    rows = aggregate_rows(comparison, start)
    return _titled(f"all scenarios and profiles, {start} start", rows, [AGGREGATE_NOTE])


def aggregate_rows(comparison: Comparison, start: str) -> list[list[str]]:
    """Return two rows of headings and one per agent, over all cells of one start."""
    violations, cores = "avoidable", "cores"
    if comparison.bounded:
        violations, cores = "beyond bound", "cores over bound"
    fewer = [f"fewer {what} than" for what in ("violations", "cores")]
    return [
        ["", "", f"{violations} %", f"{violations} %", cores, *fewer],
        ["agent", "cells", "middle half", "mean", "middle half", *2 * [comparison.reference]],
        *(_aggregate_row(comparison, agent, start) for agent in comparison.agents),
    ]


def _aggregate_row(comparison: Comparison, agent: str, start: str) -> list[str]:
    cells = comparison.shared_cells(agent, start)
    total = sum(cell[2] == start for cell in comparison.cells)
    row = [agent, f"{len(cells)}/{total}"]
    if not cells:
        return [*row, "-", "-", "-", "-", "-"]
    violations = "beyond_bound_rate" if comparison.bounded else "avoidable_violation_rate"
    cores = "cores_over_bound" if comparison.bounded else "mean_cores"
    row += [
        _with_interval(interquartile_mean(comparison.values(agent, violations, cells)), 100, 3),
        _with_interval(mean(comparison.values(agent, violations, cells)), 100, 3),
        _with_interval(interquartile_mean(comparison.values(agent, cores, cells)), 1, 2),
    ]
    if agent == comparison.reference:
        return [*row, "-", "-"]
    for name in ("avoidable_violation_rate", "core_seconds"):
        ours = comparison.values(agent, name, cells)
        theirs = comparison.values(comparison.reference, name, cells)
        row.append(_probability(probability_of_improvement(ours, theirs)))
    return row


def _titled(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = aligned(rows)
    rule = "-" * max(map(len, lines))
    return "\n".join([title, rule, *lines[:2], rule, *lines[2:], *notes])


def _number(values: FloatArray, scale: float, digits: int) -> str:
    measured = values[~np.isnan(values)]
    return f"{measured.mean() * scale:.{digits}f}" if measured.size else "-"


def _with_interval(interval: Interval, scale: float, digits: int) -> str:
    text = f"{interval.value * scale:.{digits}f}"
    if math.isnan(interval.low):
        return text
    return f"{text} [{interval.low * scale:.{digits}f}, {interval.high * scale:.{digits}f}]"


def _signed(difference: Interval, scale: float, digits: int) -> str:
    if not difference.excludes(0):
        return NOT_SIGNIFICANT
    return f"{difference.value * scale:+.{digits}f}"


def _probability(probability: Interval) -> str:
    text = _with_interval(probability, 1, 2)
    return text if probability.excludes(0.5) else f"{text} {NOT_SIGNIFICANT}"
