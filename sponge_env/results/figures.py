"""Pictures of a suite: violations against cores, distributions of latency, decision times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from sponge_env.arrays import FloatArray
from sponge_env.metrics import AgainstBound, EpisodeMetrics, axis_label
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.drawing import (
    NETWORK_COLOUR,
    NO_FRAME,
    PLAIN,
    Style,
    Styles,
    log_axis,
    open_frame,
    style_of,
)
from sponge_env.results.statistics import Estimate, mean
from sponge_env.run.suite import BOUND_AGENTS

Points = dict[str, tuple[Estimate, Estimate]]
"""By agent or bound: cores, and violations in per cent."""

Panels = Sequence[Sequence[tuple[str, Sequence[Cell]]]]
"""Rows of (title, cells)."""

CORE_TICKS = ([1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32], range(1, 33))

LINEAR_UP_TO_PERCENT = 0.1
"""Violations per request from which on their axis is logarithmic; 0 must be on it."""

BOUND_STYLES = {
    BOUND_AGENTS["joint"]: Style("#000000", "*"),
    BOUND_AGENTS["vertical"]: Style("#777777", "*"),
}
"""The bounds are no agents, and look like none."""


def _grid(
    panels: Panels, size: tuple[float, float], dpi: int, labels: tuple[str, str], lines: Any
) -> tuple[Figure, list[tuple[Axes, Sequence[Cell]]]]:
    """Lay out panels with shared axes, of which the horizontal one is logarithmic.

    The size is in inches, the labels are those of both axes, and the lines behind the data x,
    y or both. With the figure comes each panel with its cells.
    """
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False, sharex=True, sharey=True)
    flat = [panel for row in panels for panel in row]
    for ax, (title, _) in zip(grid.flat, flat, strict=True):
        log_axis(ax)
        open_frame(ax, lines)
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set(xlabel=labels[0], ylabel=labels[1])
        ax.label_outer(remove_inner_ticks=False)
    return figure, [(ax, cells) for ax, (_, cells) in zip(grid.flat, flat, strict=True)]


def latency_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw the distribution of latency on each panel's cell, mean over the seeds."""
    size = (1.6 + 3.2 * len(panels[0]), 0.8 + 2.4 * len(panels))
    figure, grid = _grid(panels, size, 90, ("latency [ms]", "requests [%]"), "both")
    for ax, cells in grid:
        for agent, style in styles.items():
            for table in [comparison.latencies_of(agent, cell) for cell in cells]:
                if not table.empty:
                    share, latency_ms = table["quantile"] * 100, table["latency_s"] * 1000
                    ax.plot(latency_ms, share, color=style.colour, label=agent)
        ax.set_ylim(0, 100)
    handles = [Line2D([], [], color=style.colour, label=agent) for agent, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", **NO_FRAME)
    return figure


def decision_figure(comparison: Comparison) -> Figure:
    """Draw how long decisions take: each agent's median and 99th percentile, over all cells."""
    names = ("decision_p50_s", "decision_p99_s")
    medians = comparison.episodes.groupby("agent")[list(names)].median() * 1000
    medians = medians.loc[list(reversed(comparison.agents))]
    figure = Figure(figsize=(7, 0.9 + 0.28 * len(medians)), dpi=90, layout="constrained")
    ax = figure.subplots()
    ax.hlines(medians.index, medians[names[0]], medians[names[1]], color=NETWORK_COLOUR)
    for name, style in zip(names, style_of(names).values(), strict=True):
        label = axis_label(EpisodeMetrics, name, "")
        ax.plot(medians[name], medians.index, style.marker, color=style.colour, label=label)
    log_axis(ax)
    ax.set_xlabel("decision [ms]")
    ax.margins(y=0.5 / len(medians))
    open_frame(ax, "x")
    figure.legend(loc="outside right upper", **NO_FRAME)
    return figure


def points(comparison: Comparison, cells: Sequence[Cell], agents: Sequence[str]) -> Points:
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
        return {}
    pooled = {
        agent: [comparison.pooled(agent, name, cells) for name in names]
        for agent in (*agents, *BOUND_STYLES)
        if comparison.has(agent, *cells)
    }
    return {name: (mean(cores), mean(rates * 100)) for name, (cores, rates) in pooled.items()}


def pareto_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw violations against cores of agents with a style; a panel shows means over its cells."""
    all_styles = {**styles, **BOUND_STYLES}
    height = max(0.6 + 3.0 * len(panels), 0.3 + 0.2 * len(all_styles))  # the legend's rows
    size = (2.2 + 3.4 * len(panels[0]), height)
    cores = axis_label(EpisodeMetrics, "mean_cores")
    violations = axis_label(EpisodeMetrics, "avoidable_violation_rate", "%")
    if comparison.common_bound:
        cores = axis_label(AgainstBound, "cores_over_common_bound")
        violations = axis_label(AgainstBound, "beyond_common_bound_rate", "%")
    figure, grid = _grid(panels, size, 110, (cores, violations), "y")
    shown = [(ax, points(comparison, cells, list(styles))) for ax, cells in grid]
    lowest = min([0.0, *(violations.value for _, own in shown for _, violations in own.values())])
    for ax, own in shown:
        _draw_points(ax, own, all_styles)
        ax.set_yscale("symlog", linthresh=LINEAR_UP_TO_PERCENT)
        ax.set_ylim(1.2 * lowest - 0.02, 100)  # below 0 where a bound is beaten
        ax.yaxis.set_major_locator(FixedLocator([-1, -0.1, 0, 0.1, 1, 10, 100]))
        ax.yaxis.set_major_formatter(PLAIN)
        log_axis(ax, *CORE_TICKS)
    handles = [
        Line2D([], [], linestyle="none", label=agent, **style.of_marker)
        for agent, style in all_styles.items()
        if any(agent in own for _, own in shown)
    ]
    figure.legend(handles=handles, loc="outside right upper", **NO_FRAME)
    return figure


def _draw_points(ax: Axes, shown: Points, styles: Styles) -> None:
    """Draw every point with its intervals, and a line along those with none better in both."""
    front: list[tuple[float, float]] = []
    for place in sorted((c.value, v.value) for a, (c, v) in shown.items() if a not in BOUND_STYLES):
        if not front or place[1] < front[-1][1]:
            front.append(place)
    ax.step(*np.reshape(front, (-1, 2)).T, where="post", color=NETWORK_COLOUR, linewidth=0.8)
    for height, (agent, (cores, violations)) in enumerate(reversed(shown.items())):
        look = {"elinewidth": 0.8, "clip_on": False, **styles[agent].of_marker}
        errors = _errors(violations), _errors(cores)
        ax.errorbar(cores.value, violations.value, *errors, zorder=3 + height, **look)


def _errors(interval: Estimate) -> FloatArray:
    """Return (2, 1) how far an interval reaches below and above; 0 where unknown."""
    sides = interval.value - interval.low, interval.high - interval.value
    errors: FloatArray = np.nan_to_num(sides).clip(min=0.0)[:, None]
    return errors
