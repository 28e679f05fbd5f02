"""Tables of a report, before they become HTML or Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sponge_env.interfaces import FloatArray
from sponge_env.metrics import EpisodeMetrics, axis_label
from sponge_env.run.read import AgainstBound, AllRequests
from sponge_env.statistics import mean
from sponge_env.suite.comparison import BoundSides, Cell, Comparison
from sponge_env.suite.tables import NOT_SIGNIFICANT, aggregate_rows, latency_text, span_text

DAGGER = "†"
"""Stands after a value that is not shown to differ from the reference's."""

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in one place of a table."""

    text: str
    muted: bool = False
    """Whether it is not significant, and shown so."""
    strong: bool = False
    """Whether it is the best of its row."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first column names things, the others hold numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Entry]]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric, and how people read it."""

    schema: type[Any]
    metric: str
    digits: int
    scale: float = 1.0
    """From the metric's unit to ``unit``."""
    unit: str | None = None
    """Unit that is shown, if not the metric's own."""
    interval: bool = True
    """Whether the 95 % interval stands beside the mean."""
    compared: bool = False
    """Whether it is said where an agent does not differ from the reference."""

    @property
    def heading(self) -> str:
        """The schema's label."""
        return axis_label(self.schema, self.metric, self.unit)


COLUMNS = (
    Column(EpisodeMetrics, "violation_rate", 3, 100, "%", interval=False),
    Column(EpisodeMetrics, "avoidable_violation_rate", 3, 100, "%", compared=True),
    Column(AgainstBound, "beyond_bound_rate", 3, 100, "%"),
    Column(EpisodeMetrics, "mean_cores", 2, compared=True),
    Column(AgainstBound, "cores_over_bound", 2),
    Column(AllRequests, "latency_p99_of_all_s", 0, 1000, "ms"),
    Column(EpisodeMetrics, "infeasible_decisions", 0, interval=False),
    Column(EpisodeMetrics, "decision_p50_s", 3, 1000, "ms", interval=False),
    Column(EpisodeMetrics, "decision_p99_s", 3, 1000, "ms", interval=False),
)


def cell_table(comparison: Comparison, cell: Cell) -> Table:
    """Return the agents on one cell, with 95 % intervals, and its bounds.

    Agents that failed are not in it, nor is what is relative to a bound where there is none.
    """
    agents = [agent for agent in comparison.agents if comparison.has(agent, cell)]
    sides = comparison.bound_sides(cell)
    columns = [c for c in COLUMNS if sides or c.schema is not AgainstBound]
    different = {c.metric: comparison.different_on(c.metric, cell) for c in columns if c.compared}
    rows = []
    for agent in agents:
        compared = comparison.has(comparison.reference, cell) and agent != comparison.reference
        alike = {name for name, shown in different.items() if compared and agent not in shown}
        values = {c.metric: comparison.values(agent, c.metric, [cell])[0] for c in columns}
        entries = [_entry(c, values[c.metric], muted=c.metric in alike) for c in columns]
        rows.append([Entry(agent), *entries])
    rows += [[Entry(bound.name), *(_side(bound, c) for c in columns)] for bound in sides]
    return Table(["agent", *(column.heading for column in columns)], rows)


def _entry(column: Column, values: FloatArray, muted: bool) -> Entry:
    if np.isnan(values).all():
        return Entry(MISSING)
    text = latency_text(values)
    if not text:
        scaled = values * column.scale
        text = f"{np.nanmean(scaled):z.{column.digits}f}"
        if column.interval and not np.isnan(scaled).any():
            text += _interval(scaled, column.digits)
    return Entry(text + DAGGER * muted, muted)


def _side(bound: BoundSides, column: Column) -> Entry:
    """Write what is proven of a bound and what is attained, of what it has."""
    span = getattr(bound, column.metric, None)
    return Entry(MISSING if span is None else span_text(span, column.scale, column.digits))


def _interval(values: FloatArray, digits: int) -> str:
    found = mean(values)
    if math.isnan(found.low):
        return ""
    return f" [{found.low:z.{digits}f}, {found.high:z.{digits}f}]"


def aggregate_table(comparison: Comparison, start: str) -> Table:
    """Return the agents over all cells of one start."""
    above, below, *rows = aggregate_rows(comparison, start)
    return Table(
        [f"{first} {second}".strip() for first, second in zip(above, below, strict=True)],
        [[Entry(text, text.endswith(NOT_SIGNIFICANT)) for text in row] for row in rows],
    )


def failure_table(comparison: Comparison) -> Table:
    """Return every agent and cell without a result, and why."""
    return Table(
        ["agent", "cell", "failed with"],
        [
            [
                Entry(str(f.agent)),
                Entry(f"{f.scenario}, {f.profile}, {f.start}"),
                Entry(f"{f.type}: {f.message}"),
            ]
            for f in comparison.failures.itertuples()
        ],
    )


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    align = [":--", *["--:"] * (len(table.headings) - 1)]
    lines = [table.headings, align, *([_marked(e) for e in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _marked(entry: Entry) -> str:
    text = entry.text.replace("|", "\\|")
    return f"**{text}**" if entry.strong else text
