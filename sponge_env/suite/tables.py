"""A suite's results as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sponge_env.run.read import CELL
from sponge_env.statistics import (
    Estimate,
    FloatArray,
    improvement_p,
    interquartile_mean,
    mean,
    probability_of_improvement,
)
from sponge_env.suite.comparison import BoundSides, Cell, Comparison, Span
from sponge_env.tables import aligned

NOT_SIGNIFICANT = "n.s."

TEST_NOTE = (
    "paired sign-flip test over the seeds, Holm's correction over the agents of a column; with "
    "n seeds no p is below 2 / 2^n times the number of those agents"
)

CELL_NOTE = (
    f"beyond bound, over bound: of the agent's own kind of scaling; {NOT_SIGNIFICANT}: no "
    f"significant difference ({TEST_NOTE}); p99: of all requests, dropped (n of m): in n of m "
    "seeds more than 1 % were never answered; bounds: what is proven .. what is attained"
)


def all_tables(comparison: Comparison) -> str:
    """Return a table for each cell and one for each start, aggregates last."""
    starts = dict.fromkeys(start for _, _, start in comparison.cells)
    parts = [cell_table(comparison, cell) for cell in comparison.cells]
    parts += [CELL_NOTE]
    parts += [aggregate_table(comparison, start) for start in starts]
    return "\n\n".join(parts)


def cell_table(comparison: Comparison, cell: Cell) -> str:
    """Return the table of one cell, with a line for each agent that failed."""
    against = f"against {comparison.reference}"
    there = [agent for agent in comparison.agents if comparison.has(agent, cell)]
    different = {
        name: comparison.different_on(name, cell) for name in ("violation_rate", "mean_cores")
    }
    rows = [
        ["", "violated", "avoidable", "beyond", against, "cores", against, "over", "p99"],
        ["agent", "%", "%", "bound %", "% points", "mean, 95 %", "cores", "bound", "ms"],
        *(_cell_row(comparison, agent, cell, different) for agent in there),
        *(_bound_row(sides) for sides in comparison.bound_sides(cell)),
    ]
    scenario, profile, start = cell
    failures = comparison.failures
    failed = failures[(failures[list(CELL)] == list(cell)).all(axis=1)]
    lines = [f"{f.agent}: failed with {f.type}: {f.message}" for f in failed.itertuples()]
    return _titled(f"{scenario}, {profile}, {start} start", rows, lines)


def _cell_row(
    comparison: Comparison, agent: str, cell: Cell, different: Mapping[str, set[str]]
) -> list[str]:
    def values(name: str, of: str = agent) -> FloatArray:
        seeds: FloatArray = comparison.values(of, name, [cell])[0]
        return seeds

    def against(name: str, scale: float, digits: int) -> str:
        if agent == comparison.reference or not comparison.has(comparison.reference, cell):
            return "-"
        difference = (values(name) - values(name, comparison.reference)).mean() * scale
        return _marked(f"{difference:+z.{digits}f}", agent in different[name])

    return [
        agent,
        _number(values("violation_rate"), 100, 3),
        _number(values("avoidable_violation_rate"), 100, 3),
        _number(values("beyond_bound_rate"), 100, 3),
        against("violation_rate", 100, 3),
        _with_interval(mean(values("mean_cores")), 1, 2),
        against("mean_cores", 1, 2),
        _number(values("cores_over_bound"), 1, 3),
        latency_text(values("latency_p99_of_all_s"))
        or _number(values("latency_p99_of_all_s"), 1000, 0),
    ]


def _bound_row(sides: BoundSides) -> list[str]:
    rates = (sides.violation_rate, sides.avoidable_violation_rate)
    return [
        sides.name,
        *(span_text(rate, 100, 3) for rate in rates),
        "-",
        "-",
        span_text(sides.mean_cores, 1, 2),
        *3 * ["-"],
    ]


def span_text(span: Span, scale: float, digits: int) -> str:
    """Write the two sides of a bound, or one number where they look alike."""
    low, high = (f"{side * scale:z.{digits}f}" for side in span)
    return low if low == high else f"{low} .. {high}"


def latency_text(values_s: FloatArray) -> str:
    """Say in how many seeds a latency is infinite; empty if in none."""
    infinite = int(np.isinf(values_s).sum())
    return f"dropped ({infinite} of {values_s.size})" if infinite else ""


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A column of the table over all cells."""

    above: str
    below: str
    metric: str
    digits: int
    scale: float = 1.0
    middle: bool = False
    """Whether it is the interquartile mean, over cells and seeds."""

    def text(self, comparison: Comparison, agent: str, cells: Sequence[Cell]) -> str:
        """Write it for an agent; of cells without a bound nothing relative to one."""
        cells = comparison.bounded(cells) if "bound" in self.metric else cells
        if not cells:
            return "-"
        estimate = interquartile_mean if self.middle else mean
        interval = estimate(comparison.values(agent, self.metric, cells))
        return _with_interval(interval, self.scale, self.digits)


_AVOIDABLE = (
    _Quantity("avoidable %", "middle half", "avoidable_violation_rate", 3, 100, middle=True),
    _Quantity("avoidable %", "mean", "avoidable_violation_rate", 3, 100),
)
_CORES = (_Quantity("cores", "middle half", "mean_cores", 2, middle=True),)
_BOUNDED = (
    _Quantity("beyond bound %", "mean", "beyond_common_bound_rate", 3, 100),
    _Quantity("cores over bound", "middle half", "cores_over_common_bound", 2, middle=True),
)


def aggregate_table(comparison: Comparison, start: str) -> str:
    """Return the table over all cells of one start."""
    rows = aggregate_rows(comparison, start)
    title = f"all scenarios and profiles, {start} start"
    return _titled(title, rows, [aggregate_note(comparison)])


def aggregate_note(comparison: Comparison) -> str:
    """Return what one has to know to read the table over all cells."""
    parts = [
        "middle half: interquartile mean over cells and seeds",
        "fewer ... than: probability on a random cell and seed",
        "[95 % interval]",
        f"{NOT_SIGNIFICANT}: not significant ({TEST_NOTE})",
    ]
    if comparison.common_bound:
        there, total = len(comparison.bounded(comparison.cells)), len(comparison.cells)
        parts.append(
            f"bound: {comparison.common_bound} for every agent, on {there} of {total} cells"
        )
    return "; ".join(parts)


def aggregate_rows(comparison: Comparison, start: str) -> list[list[str]]:
    """Return two rows of headings and one per agent, over all cells of one start."""
    quantities = _AVOIDABLE + (_BOUNDED if comparison.common_bound else _CORES)
    cells_of = {agent: comparison.shared_cells(agent, start) for agent in comparison.agents}
    different = {name: comparison.different(name, cells_of, improvement_p) for name in _COUNTED}
    return [
        ["", "", *(q.above for q in quantities), *(f"fewer {w} than" for w in _COUNTED.values())],
        ["agent", "cells", *(q.below for q in quantities), *2 * [comparison.reference]],
        *(
            [
                agent,
                f"{len(cells)}/{sum(cell[2] == start for cell in comparison.cells)}",
                *(quantity.text(comparison, agent, cells) for quantity in quantities),
                *(_fewer(comparison, agent, cells, name, different[name]) for name in _COUNTED),
            ]
            for agent, cells in cells_of.items()
        ),
    ]


_COUNTED = {"avoidable_violation_rate": "violations", "core_seconds": "cores"}
"""Metrics in which agents are compared, and what people call them."""


def _fewer(
    comparison: Comparison, agent: str, cells: Sequence[Cell], name: str, different: set[str]
) -> str:
    """Say how likely an agent has less than the reference."""
    if agent == comparison.reference or not cells:
        return "-"
    both = (comparison.values(a, name, cells) for a in (agent, comparison.reference))
    text = _with_interval(probability_of_improvement(*both), 1, 2)
    return _marked(text, agent in different)


def _titled(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = aligned(rows)
    rule = "-" * max(map(len, lines))
    return "\n".join([title, rule, *lines[:2], rule, *lines[2:], *notes])


def _number(values: FloatArray, scale: float, digits: int) -> str:
    measured = values[~np.isnan(values)]
    return f"{measured.mean() * scale:z.{digits}f}" if measured.size else "-"


def _with_interval(interval: Estimate, scale: float, digits: int) -> str:
    text = f"{interval.value * scale:z.{digits}f}"
    if math.isnan(interval.low):
        return text
    return f"{text} [{interval.low * scale:z.{digits}f}, {interval.high * scale:z.{digits}f}]"


def _marked(text: str, significant: bool) -> str:
    return text if significant else f"{text} {NOT_SIGNIFICANT}"
