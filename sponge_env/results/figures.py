"""Pictures of a suite: violations against cores, distributions of latency, decision times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from sponge_env.arrays import FloatArray
from sponge_env.metrics import EpisodeMetrics, axis_label, column
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.drawing import (
    NETWORK_COLOUR,
    PLAIN,
    Style,
    Styles,
    legend_beside,
    log_axis,
    open_frame,
)
from sponge_env.results.statistics import Estimate, mean
from sponge_env.run.suite import BOUND_AGENTS

Points = dict[str, tuple[Estimate, Estimate]]
"""By agent or bound: cores, and violations in per cent."""

T = TypeVar("T")

Grid = Sequence[Sequence[tuple[str, T]]]
"""Rows of (title, what the panel shows)."""

Panels = Grid[Sequence[Cell]]

CORE_TICKS = ([1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32], range(1, 33))

LINEAR_UP_TO_PERCENT = 0.01
"""Violations per request from which on their axis is logarithmic; 0 must be on it."""

BOUND_STYLES = {
    BOUND_AGENTS["joint"]: Style("#000000", "*"),
    BOUND_AGENTS["vertical"]: Style("#777777", "*"),
}
"""The bounds are no agents, and look like none."""

OTHERS, OTHER_STYLE = "others", Style("#BBBBBB", ".")
"""How agents without a style are drawn, and what the legend calls them."""


def _grid(
    panels: Grid[T], height: float, handles: Sequence[Line2D], labels: tuple[str, str], lines: Any
) -> tuple[Figure, list[tuple[Axes, T]]]:
    """Lay out panels with shared axes, of which the horizontal one is logarithmic.

    The height is a panel's, in inches, the handles are the legend's, the labels those of both
    axes, and the lines behind the data x, y or both. With the figure comes each panel with what
    it shows.
    """
    size = 0.7 + 3.4 * len(panels[0]), 0.7 + height * len(panels)
    figure = Figure(size, dpi=100, layout="constrained")
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False, sharex=True, sharey=True)
    flat = [panel for row in panels for panel in row]
    for ax, (title, _) in zip(grid.flat, flat, strict=True):
        log_axis(ax)
        open_frame(ax, lines)
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set(xlabel=labels[0], ylabel=labels[1])
        ax.label_outer(remove_inner_ticks=False)
    legend_beside(figure, handles=handles)
    return figure, [(ax, shown) for ax, (_, shown) in zip(grid.flat, flat, strict=True)]


def latency_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw the distribution of latency on each panel's cell, mean over the seeds."""
    handles = [Line2D([], [], color=style.colour, label=agent) for agent, style in styles.items()]
    figure, grid = _grid(panels, 2.4, handles, ("latency [ms]", "requests [%]"), "both")
    for ax, cells in grid:
        for agent, style in styles.items():
            for table in [comparison.latencies_of(agent, cell) for cell in cells]:
                if not table.empty:
                    share, latency_ms = table["quantile"] * 100, table["latency_s"] * 1000
                    ax.plot(latency_ms, share, color=style.colour, label=agent)
        ax.set_ylim(0, 100)
    return figure


def decision_figure(comparison: Comparison) -> Figure:
    """Draw how long decisions take: each agent's median and 99th percentile, over all cells."""
    names = ("decision_p50_s", "decision_p99_s")
    medians = comparison.episodes.groupby("agent")[list(names)].median() * 1000
    medians = medians.loc[list(reversed(comparison.agents))]
    size = 5 + 0.09 * max(map(len, medians.index)), 0.9 + 0.28 * len(medians)
    figure = Figure(size, dpi=90, layout="constrained")
    ax = figure.subplots()
    ax.hlines(medians.index, medians[names[0]], medians[names[1]], color=NETWORK_COLOUR)
    for name, marker in zip(names, "os", strict=True):
        label = axis_label(EpisodeMetrics, name, "")
        ax.plot(medians[name], medians.index, marker, color="black", label=label)
    log_axis(ax)
    ax.set_xlabel("decision [ms]")
    ax.margins(y=0.5 / len(medians))
    open_frame(ax, "x")
    legend_beside(figure)
    return figure


def points(comparison: Comparison, cells: Sequence[Cell], agents: Sequence[str]) -> Points:
    """Return agents and bounds, as means over cells and seeds.

    Cores are relative to the bound of all agents, on the cells that have it, or as they are
    without one. Agents that failed on one of the cells are left out: theirs would
    be other means.
    """
    names = ("mean_cores", "avoidable_violation_rate")
    if comparison.common_bound:
        cells = comparison.bounded(cells)
        names = ("cores_over_common_bound", names[1])
    if not cells:
        return {}
    pooled = {
        agent: [comparison.pooled(agent, name, cells) for name in names]
        for agent in (*agents, *BOUND_STYLES)
        if comparison.has(agent, *cells)
    }
    return {name: (mean(cores), mean(rates * 100)) for name, (cores, rates) in pooled.items()}


def pareto_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw violations against cores; a panel shows means over its cells."""
    shown = [[(t, points(comparison, cells, comparison.agents)) for t, cells in p] for p in panels]
    return points_figure(shown, styles, relative=bool(comparison.common_bound))


def points_figure(panels: Grid[Points], styles: Styles, relative: bool) -> Figure:
    """Draw violations against cores, these ``relative`` to a bound or as they are.

    Agents without a style are grey.
    """
    there = {name for row in panels for _, own in row for name in own}
    looks = {**dict.fromkeys(there, OTHER_STYLE), **styles, **BOUND_STYLES}
    legend = {name: style for name, style in {**styles, **BOUND_STYLES}.items() if name in there}
    if there - legend.keys():
        legend[OTHERS] = OTHER_STYLE
    handles = [Line2D([], [], linestyle="none", label=n, **s.of_marker) for n, s in legend.items()]
    cores = axis_label(EpisodeMetrics, "mean_cores")
    if relative:
        cores = column("cores_over_common_bound").label
    figure, grid = _grid(panels, 3.3, handles, (cores, "avoidable violations [%]"), "y")
    for ax, own in grid:
        _draw_points(ax, own, looks)
        ax.set_yscale("symlog", linthresh=LINEAR_UP_TO_PERCENT)
        ax.set_ylim(-0.2 * LINEAR_UP_TO_PERCENT, 100)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.01, 0.1, 1, 10, 100]))
        ax.yaxis.set_major_formatter(PLAIN)
        log_axis(ax, *CORE_TICKS)
    return figure


def _draw_points(ax: Axes, shown: Points, styles: Styles) -> None:
    """Draw every point with its intervals, and a line along those with none better in both."""
    front: list[tuple[float, float]] = []
    for place in sorted((c.value, v.value) for a, (c, v) in shown.items() if a not in BOUND_STYLES):
        if not front or place[1] < front[-1][1]:
            front.append(place)
    ax.step(*np.reshape(front, (-1, 2)).T, where="post", color=NETWORK_COLOUR, linewidth=0.8)
    for height, (agent, (cores, violations)) in enumerate(reversed(shown.items())):
        grey = styles[agent] is OTHER_STYLE
        look = {"elinewidth": 0.8, "clip_on": False, **styles[agent].of_marker}
        errors = (None, None) if grey else (_errors(violations), _errors(cores))
        order = 2 if grey else 3 + height
        ax.errorbar(cores.value, violations.value, *errors, zorder=order, **look)


def _errors(interval: Estimate) -> FloatArray:
    """Return (2, 1) how far an interval reaches below and above; 0 where unknown."""
    sides = interval.value - interval.low, interval.high - interval.value
    errors: FloatArray = np.nan_to_num(sides).clip(min=0.0)[:, None]
    return errors
