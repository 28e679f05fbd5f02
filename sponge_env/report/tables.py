"""Tables of a report, before they become HTML or Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sponge_env.interfaces import FloatArray
from sponge_env.metrics import EpisodeMetrics, axis_label
from sponge_env.statistics import mean, paired_difference
from sponge_env.suite.results import AgainstBound
from sponge_env.suite.tables import NOT_SIGNIFICANT, Cell, Comparison, aggregate_rows

DAGGER = "†"
"""Stands after a value that is not significantly different from the reference's."""

MISSING = "-"

FEW_VIOLATIONS = 0.001
"""Avoidable violations per request with which an agent counts as meeting the SLO."""


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
    Column(EpisodeMetrics, "latency_p99_s", 0, 1000, "ms", compared=True),
    Column(EpisodeMetrics, "infeasible_decisions", 0, interval=False),
    Column(EpisodeMetrics, "decision_p50_s", 3, 1000, "ms", interval=False),
    Column(EpisodeMetrics, "decision_p99_s", 3, 1000, "ms", interval=False),
)


def cell_table(comparison: Comparison, cell: Cell) -> Table:
    """Return the agents on one cell, with 95 % intervals; those that failed are not in it."""
    columns = [c for c in COLUMNS if comparison.bounded or c.schema is not AgainstBound]
    agents = [agent for agent in comparison.agents if comparison.has(agent, cell)]
    return Table(
        ["agent", *(column.heading for column in columns)],
        [[Entry(a), *(_entry(comparison, a, cell, c) for c in columns)] for a in agents],
    )


def _entry(comparison: Comparison, agent: str, cell: Cell, column: Column) -> Entry:
    values = comparison.values(agent, column.metric, [cell])[0] * column.scale
    if np.isnan(values).all():
        return Entry(MISSING)
    text = f"{np.nanmean(values):.{column.digits}f}"
    if column.interval and not np.isnan(values).any():
        text += _interval(values, column.digits)
    muted = column.compared and not _differs(comparison, agent, cell, column.metric)
    return Entry(text + DAGGER * muted, muted)


def _interval(values: FloatArray, digits: int) -> str:
    found = mean(values)
    if math.isnan(found.low):
        return ""
    return f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _differs(comparison: Comparison, agent: str, cell: Cell, metric: str) -> bool:
    """Whether an agent is shown to differ from the reference; the reference itself is as it is."""
    reference = comparison.reference
    if agent == reference or not comparison.has(reference, cell):
        return True
    ours, theirs = (comparison.values(a, metric, [cell])[0] for a in (agent, reference))
    return paired_difference(ours, theirs).excludes(0)


def aggregate_table(comparison: Comparison, start: str) -> Table:
    """Return the agents over all cells of one start."""
    above, below, *rows = aggregate_rows(comparison, start)
    return Table(
        [f"{first} {second}".strip() for first, second in zip(above, below, strict=True)],
        [[Entry(text, text.endswith(NOT_SIGNIFICANT)) for text in row] for row in rows],
    )


def overview_table(comparison: Comparison, start: str, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents on every cell of one start, without intervals.

    The agent that meets the SLO with the fewest cores stands out, and one that is not among
    those shown has the last column.
    """
    cells = [cell for cell in comparison.cells if cell[2] == start]
    rows = []
    for cell in cells:
        best = cheapest(comparison, cell)
        row = [Entry(f"{cell[0]}, {cell[1]}")]
        row += [_short(comparison, agent, cell, strong=agent == best) for agent in agents]
        last = _short(comparison, best, cell).text if best else ""
        rows.append([*row, Entry(f"{best}: {last}" if best else "none")])
    return Table(["", *agents, "cheapest of all"], rows)


def _short(comparison: Comparison, agent: str, cell: Cell, strong: bool = False) -> Entry:
    """Write violations and cores of an agent in one place."""
    if not comparison.has(agent, cell):
        return Entry("failed")
    violations = comparison.values(agent, violations_metric(comparison), [cell]).mean()
    cores = comparison.values(agent, cores_metric(comparison), [cell]).mean()
    return Entry(f"{violations * 100:.2f} % · {cores:.2f}", strong=strong)


def summary_table(comparison: Comparison, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents, mean over all cells of each start."""
    starts = list(dict.fromkeys(start for _, _, start in comparison.cells))
    violations = "violations beyond the bound" if comparison.bounded else "avoidable violations"
    cores = "cores over the bound" if comparison.bounded else "mean cores"
    headings = [f"{what}, {start} start" for start in starts for what in (violations, cores)]
    rows = []
    for agent in agents:
        row = [Entry(f"`{agent}`")]
        for start in starts:
            row += _means(comparison, agent, comparison.shared_cells(agent, start))
        rows.append(row)
    return Table(["controller", *headings], rows)


def _means(comparison: Comparison, agent: str, cells: Sequence[Cell]) -> list[Entry]:
    """Return mean violations and cores over some cells."""
    if not cells:
        return [Entry(MISSING), Entry(MISSING)]
    violations = comparison.values(agent, violations_metric(comparison), cells).mean()
    cores = comparison.values(agent, cores_metric(comparison), cells).mean()
    return [Entry(f"{violations * 100:.3f} %"), Entry(f"{cores:.2f}")]


def cheapest(comparison: Comparison, cell: Cell) -> str:
    """Return the agent with the fewest cores among those that meet the SLO; empty if none."""

    def cores(agent: str) -> float:
        return float(comparison.values(agent, "core_seconds", [cell]).mean())

    def violations(agent: str) -> float:
        return float(comparison.values(agent, violations_metric(comparison), [cell]).mean())

    there = [agent for agent in comparison.agents if comparison.has(agent, cell)]
    return min((a for a in there if violations(a) <= FEW_VIOLATIONS), key=cores, default="")


def violations_metric(comparison: Comparison) -> str:
    """Return the rate of violations that count: those beyond the bound's, if there is one."""
    return "beyond_bound_rate" if comparison.bounded else "avoidable_violation_rate"


def cores_metric(comparison: Comparison) -> str:
    """Return the measure of cores: relative to the bound, if there is one."""
    return "cores_over_bound" if comparison.bounded else "mean_cores"


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
