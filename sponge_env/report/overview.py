"""Tables of a few agents side by side: on every cell, and over all.

Whatever their kind of scaling, all of them have avoidable violations and are held against the
same bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from sponge_env.report.rates import AVOIDABLE
from sponge_env.report.tables import MISSING, Entry, Table
from sponge_env.suite.comparison import Cell, Comparison

FEW_VIOLATIONS = 0.001
"""Avoidable violations per request with which an agent counts as meeting the SLO."""


def overview_table(comparison: Comparison, start: str, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents on every cell of one start, without intervals.

    The agent that meets the SLO with the fewest cores stands out, and one that is not among
    those shown has the last column before the bound's.
    """
    cells = [cell for cell in comparison.cells if cell[2] == start]
    common = comparison.common_bound
    rows = []
    for cell in cells:
        best = cheapest(comparison, cell)
        row = [Entry(f"{cell[0]}, {cell[1]}")]
        row += [_short(comparison, agent, cell, strong=agent == best) for agent in agents]
        last = _short(comparison, best, cell).text if best else ""
        row.append(Entry(f"{best}: {last}" if best else "none"))
        row += [Entry(_short_bound(comparison, cell))] if common else []
        rows.append(row)
    return Table(["", *agents, "cheapest of all", *([common] if common else [])], rows)


def _short(comparison: Comparison, agent: str, cell: Cell, strong: bool = False) -> Entry:
    """Write violations and cores of an agent in one place."""
    if not comparison.has(agent, cell):
        return Entry("failed")
    violations = _percent(comparison, agent, [cell], digits=2)
    cores = comparison.values(agent, "mean_cores", [cell]).mean()
    text = f"{violations} · {cores:.2f}"
    if comparison.common_bound:
        text += f" · {_over_bound(comparison, agent, [cell])}"
    return Entry(text, strong=strong)


def _short_bound(comparison: Comparison, cell: Cell) -> str:
    """Write what the bound of all agents attains in one place."""
    for sides in comparison.bound_sides(cell):
        if sides.name == comparison.common_bound:
            attained = sides.avoidable_violation_rate[1] * 100
            return f"{attained:z.2f} % · {sides.mean_cores[1]:.2f}"
    return MISSING


def summary_table(comparison: Comparison, agents: Sequence[str]) -> Table:
    """Return violations and cores of some agents, mean over all cells of each start."""
    starts = list(dict.fromkeys(start for _, _, start in comparison.cells))
    cores = "cores over the bound" if comparison.common_bound else "mean cores"
    measures = ("cells", "avoidable violations", cores)
    headings = [f"{what}, {start} start" for start in starts for what in measures]
    rows = []
    for agent in agents:
        row = [Entry(f"`{agent}`")]
        for start in starts:
            row += _means(comparison, agent, start)
        rows.append(row)
    return Table(["controller", *headings], rows)


def _means(comparison: Comparison, agent: str, start: str) -> list[Entry]:
    """Return on how many cells an agent has results, and mean violations and cores there."""
    cells = comparison.shared_cells(agent, start)
    total = sum(cell[2] == start for cell in comparison.cells)
    texts = [MISSING, MISSING]
    if cells:
        cores = f"{comparison.values(agent, 'mean_cores', cells).mean():.2f}"
        if comparison.common_bound:
            cores = _over_bound(comparison, agent, cells)
        texts = [_percent(comparison, agent, cells, digits=3), cores]
    return [Entry(text) for text in (f"{len(cells)}/{total}", *texts)]


def _percent(comparison: Comparison, agent: str, cells: Sequence[Cell], digits: int) -> str:
    """Write an agent's avoidable violations on some cells."""
    return f"{comparison.values(agent, AVOIDABLE, cells).mean() * 100:.{digits}f} %"


def _over_bound(comparison: Comparison, agent: str, cells: Sequence[Cell]) -> str:
    """Write an agent's cores relative to the bound of all agents, on cells that have it."""
    bounded = comparison.bounded(cells)
    if not bounded:
        return MISSING
    return f"{comparison.values(agent, 'cores_over_common_bound', bounded).mean():.2f}"


def cheapest(comparison: Comparison, cell: Cell) -> str:
    """Return the agent with the fewest cores among those that meet the SLO; empty if none."""

    def cores(agent: str) -> float:
        return float(comparison.values(agent, "core_seconds", [cell]).mean())

    def violations(agent: str) -> float:
        return float(comparison.values(agent, AVOIDABLE, [cell]).mean())

    there = [agent for agent in comparison.agents if comparison.has(agent, cell)]
    return min((a for a in there if violations(a) <= FEW_VIOLATIONS), key=cores, default="")
