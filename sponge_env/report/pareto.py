"""Violations against cores: who is better in one without being worse in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from sponge_env.metrics import EpisodeMetrics, axis_label
from sponge_env.report.source import Source
from sponge_env.report.style import NETWORK_COLOUR, Style, open_frame
from sponge_env.run.bounds import BOUND_AGENTS
from sponge_env.run.read import CELL, AgainstBound
from sponge_env.statistics import Estimate, mean
from sponge_env.suite.comparison import Cell

LINEAR_UP_TO_PERCENT = 0.1
"""Violations from which on their axis is logarithmic; 0 must be on it."""

AVOIDABLE = axis_label(EpisodeMetrics, "avoidable_violation_rate", "%")
BEYOND = axis_label(AgainstBound, "beyond_common_bound_rate", "%")

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


def points(source: Source, cells: Sequence[Cell]) -> list[Point]:
    """Return agents and bounds, as means over cells and seeds.

    Cores and violations are relative to the bound of all agents, on the cells that have it, or
    as they are without one. Agents that failed on one of the cells are left out: theirs would
    be other means.
    """
    if source.comparison.common_bound:
        cells = source.comparison.bounded(cells)
    if not cells:
        return []
    frame = _relative(source)
    wanted = frame[frame[list(CELL)].apply(tuple, axis=1).isin(list(cells))]
    found = []
    for agent in [*source.comparison.agents, *BOUND_STYLES]:
        own = wanted[wanted["agent"] == agent].pivot_table(
            index=list(CELL), columns="seed", values=["cores", "violations"]
        )
        if len(own) == len(cells):
            estimates = [mean(own[name].to_numpy(np.float64)) for name in ("cores", "violations")]
            found.append(Point(agent, *estimates))
    return found


def _relative(source: Source) -> pd.DataFrame:
    """Return cores and violations [%] of every agent, bound, cell and seed."""
    episodes, bound = source.comparison.episodes, source.comparison.common_bound
    if not bound:
        renamed = {"mean_cores": "cores", "avoidable_violation_rate": "violations"}
        frame = episodes[["agent", *CELL, "seed", *renamed]].rename(columns=renamed)
        return frame.assign(violations=frame["violations"] * 100)
    key = [*CELL, "seed"]
    bounds = source.comparison.bounds.rename(
        columns={"core_seconds_upper": "core_seconds", "violations_upper": "violations"}
    )
    offered = episodes[[*key, "offered"]].drop_duplicates(key)
    columns = ["agent", *key, "core_seconds", "violations"]
    frame = pd.concat([episodes[columns], bounds[columns]]).merge(offered, on=key)
    best = bounds[bounds["agent"] == bound][[*key, "core_seconds", "violations"]]
    frame = frame.merge(best, on=key, suffixes=("", "_best"))
    beyond = frame["violations"] - frame["violations_best"]  # below 0 where the bound is beaten
    return frame.assign(
        cores=frame["core_seconds"] / frame["core_seconds_best"],
        violations=beyond / frame["offered"].clip(lower=1) * 100,
    )


def pareto_figure(
    source: Source,
    panels: Sequence[Sequence[tuple[str, Sequence[Cell]]]],
    styles: Mapping[str, Style],
) -> Figure:
    """Draw a grid of panels.

    Args:
        source: The run.
        panels: Rows of (title, cells); a panel shows means over its cells.
        styles: Of the agents.
    """
    rows, columns = len(panels), len(panels[0])
    all_styles = {**styles, **BOUND_STYLES}
    height = max(0.6 + 3.0 * rows, 0.3 + 0.2 * len(all_styles))  # the legend has a row for each
    figure = Figure(figsize=(2.2 + 3.4 * columns, height), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    drawn: set[str] = set()
    lowest = 0.0
    for axes, row in zip(grid, panels, strict=True):
        for ax, (title, cells) in zip(axes, row, strict=True):
            shown = points(source, cells)
            _draw(ax, shown, all_styles)
            drawn |= {point.agent for point in shown}
            lowest = min([lowest, *(point.violations.value for point in shown)])
            ax.set_title(title, loc="left", fontsize="medium")
    _label(grid, bool(source.comparison.common_bound), lowest)
    _add_legend(figure, {a: style for a, style in all_styles.items() if a in drawn})
    return figure


def _add_legend(figure: Figure, styles: Mapping[str, Style]) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=style.marker,
            color=style.colour,
            markerfacecolor=style.fill,
            markersize=_size(style),
            label=agent,
        )
        for agent, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")


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
        style = styles[point.agent]
        ax.errorbar(
            point.cores.value,
            point.violations.value,
            xerr=_reach(point.cores),
            yerr=_reach(point.violations),
            fmt=style.marker,
            color=style.colour,
            markerfacecolor=style.fill,
            markersize=_size(style),
            elinewidth=0.8,
            clip_on=False,
            zorder=3 + height,
        )


def _size(style: Style) -> float:
    """Return a marker's size: hollow ones surround others, stars need more to be as large."""
    return 12.0 if style.marker == "*" else 8.0 if style.hollow else 5.5


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
        ax.set_xscale("log")
        ax.set_yscale("symlog", linthresh=LINEAR_UP_TO_PERCENT)
        ax.set_ylim(1.2 * lowest - 0.02, 100)
        ax.yaxis.set_major_locator(FixedLocator([-1, -0.1, 0, 0.1, 1, 10, 100]))
        ax.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32]))
        ax.xaxis.set_minor_formatter(NullFormatter())
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        open_frame(ax)
    cores, violations = axis_label(EpisodeMetrics, "mean_cores"), AVOIDABLE
    if bounded:
        cores, violations = axis_label(AgainstBound, "cores_over_common_bound"), BEYOND
    for ax in grid[-1]:
        ax.set_xlabel(cores)
    for ax in grid[:, 0]:
        ax.set_ylabel(violations)
