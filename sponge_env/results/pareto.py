"""Violations against cores: who is better in one without being worse in the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.schema import CELL, AgainstBound, EpisodeMetrics, axis_label
from sponge_env.results.statistics import Estimate, mean
from sponge_env.results.style import NETWORK_COLOUR, Style, log_axis, open_frame, plain_number
from sponge_env.run.bounds import BOUND_AGENTS

LINEAR_UP_TO_PERCENT = 0.1
"""Violations from which on their axis is logarithmic; 0 must be on it."""

BOUND_STYLES = {
    BOUND_AGENTS["joint"]: Style("#000000", "*"),
    BOUND_AGENTS["vertical"]: Style("#777777", "*"),
}
"""The bounds are no agents, and look like none."""


@dataclass(frozen=True, slots=True)
class Point:
    """An agent, or a bound, on some cells."""

    agent: str
    cores: Estimate
    violations: Estimate
    """In per cent."""


def points(comparison: Comparison, cells: Sequence[Cell]) -> list[Point]:
    """Return agents and bounds, as means over cells and seeds.

    Cores and violations are relative to the bound of all agents, on the cells that have it, or
    as they are without one. Agents that failed on one of the cells are left out: theirs would
    be other means.
    """
    names = ("mean_cores", "avoidable_violation_rate")
    if comparison.common_bound:
        cells = comparison.bounded(cells)
        names = ("cores_over_common_bound", "beyond_common_bound_rate")
    if not cells:
        return []
    found = []
    for agent in comparison.agents:
        if all(comparison.has(agent, cell) for cell in cells):
            cores, rates = (comparison.values(agent, name, cells) for name in names)
            found.append(Point(agent, mean(cores), mean(rates * 100)))
    return found + list(_bound_points(comparison, cells))


def _bound_points(comparison: Comparison, cells: Sequence[Cell]) -> Iterator[Point]:
    """Yield the bounds that all of some cells have, relative to that of all agents."""
    if not comparison.common_bound:
        return
    wide = comparison.bound_episodes.pivot(index=["agent", *CELL], columns="seed")
    best = wide.loc[comparison.common_bound].loc[list(cells)]
    for name in BOUND_STYLES:
        if all((name, *cell) in wide.index for cell in cells):
            own = wide.loc[name].loc[list(cells)]
            cores = own["core_seconds_upper"] / best["core_seconds_upper"]
            # Below 0 where the bound is beaten.
            beyond = own["violations_upper"] - best["violations_upper"]
            rates = beyond / own["offered"].clip(lower=1) * 100
            yield Point(name, mean(cores.to_numpy()), mean(rates.to_numpy()))


def pareto_figure(
    comparison: Comparison,
    panels: Sequence[Sequence[tuple[str, Sequence[Cell]]]],
    styles: Mapping[str, Style],
) -> Figure:
    """Draw a grid of panels.

    Args:
        comparison: The run.
        panels: Rows of (title, cells); a panel shows means over its cells.
        styles: Of the agents.
    """
    rows, columns = len(panels), len(panels[0])
    all_styles = {**styles, **BOUND_STYLES}
    height = max(0.6 + 3.0 * rows, 0.3 + 0.2 * len(all_styles))  # the legend has a row for each
    figure = Figure(figsize=(2.2 + 3.4 * columns, height), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    drawn: list[Point] = []
    for axes, row in zip(grid, panels, strict=True):
        for ax, (title, cells) in zip(axes, row, strict=True):
            shown = points(comparison, cells)
            _draw(ax, shown, all_styles)
            drawn += shown
            ax.set_title(title, loc="left", fontsize="medium")
    lowest = min([0.0, *(point.violations.value for point in drawn)])
    _label(grid, bool(comparison.common_bound), lowest)
    there = {point.agent for point in drawn}
    handles = [
        Line2D([], [], linestyle="none", label=agent, **_marker(style))
        for agent, style in all_styles.items()
        if agent in there
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _marker(style: Style) -> dict[str, Any]:
    """Return how an agent's marker looks."""
    shape = {"marker": style.marker, "markersize": style.size}
    return {**shape, "color": style.colour, "markerfacecolor": style.fill}


def _draw(ax: Axes, shown: Sequence[Point], styles: Mapping[str, Style]) -> None:
    """Draw every point with its intervals, and a line along those that nobody beats."""
    front = _front([point for point in shown if point.agent not in BOUND_STYLES])
    ax.step(
        [point.cores.value for point in front],
        [point.violations.value for point in front],
        where="post",
        color=NETWORK_COLOUR,
        linewidth=0.8,
    )
    for height, point in enumerate(reversed(shown)):
        ax.errorbar(
            point.cores.value,
            point.violations.value,
            xerr=_reach(point.cores),
            yerr=_reach(point.violations),
            elinewidth=0.8,
            clip_on=False,
            zorder=3 + height,
            **_marker(styles[point.agent]),
        )


def _front(shown: Sequence[Point]) -> list[Point]:
    """Return the points for which no other has fewer violations at no more cores."""
    front: list[Point] = []
    for point in sorted(shown, key=lambda p: (p.cores.value, p.violations.value)):
        if not front or point.violations.value < front[-1].violations.value:
            front.append(point)
    return front


def _reach(interval: Estimate) -> list[list[float]]:
    """Return how far an interval reaches below and above its estimate; 0 where unknown."""
    below, above = interval.value - interval.low, interval.high - interval.value
    return [[max(0.0, float(np.nan_to_num(below)))], [max(0.0, float(np.nan_to_num(above)))]]


def _label(grid: NDArray[Any], bounded: bool, lowest: float) -> None:
    """Set scales that are the same in all panels, and say what they show.

    Args:
        grid: The panels.
        bounded: Whether values are relative to a bound.
        lowest: The least violations [%], negative where a bound is beaten.
    """
    for ax in grid.flat:
        log_axis(ax)
        ax.set_yscale("symlog", linthresh=LINEAR_UP_TO_PERCENT)
        ax.set_ylim(1.2 * lowest - 0.02, 100)
        ax.yaxis.set_major_locator(FixedLocator([-1, -0.1, 0, 0.1, 1, 10, 100]))
        ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
        ax.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32]))
        ax.xaxis.set_minor_formatter(NullFormatter())
        open_frame(ax)
    cores = axis_label(EpisodeMetrics, "mean_cores")
    violations = axis_label(EpisodeMetrics, "avoidable_violation_rate", "%")
    if bounded:
        cores = axis_label(AgainstBound, "cores_over_common_bound")
        violations = axis_label(AgainstBound, "beyond_common_bound_rate", "%")
    for ax in grid[-1]:
        ax.set_xlabel(cores)
    for ax in grid[:, 0]:
        ax.set_ylabel(violations)
