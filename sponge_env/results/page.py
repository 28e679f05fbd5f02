"""From runs to a report: one page that needs no other file, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter

from sponge_env.arrays import FloatArray
from sponge_env.metrics import EpisodeMetrics, axis_label, column
from sponge_env.results import suite_tables, tables
from sponge_env.results.comparison import Cell, Comparison, RunFolder
from sponge_env.results.drawing import (
    NETWORK_COLOUR,
    PLAIN,
    FewTicks,
    Style,
    Styles,
    open_frame,
    png,
    styles_of_run,
    time_series,
)
from sponge_env.results.layout import Table
from sponge_env.results.statistics import Estimate, mean
from sponge_env.run.suite import BOUND_AGENTS
from sponge_env.utils.console import Progress

Points = dict[str, tuple[Estimate, Estimate]]
"""By agent or bound: cores, and violations in per cent."""

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

Titled = tuple[str, Mapping[str, Table]]
"""Further tables by their titles, below a note about all of them."""


class Picture(NamedTuple):
    """A picture, ready to be shown."""

    text: str
    """What is on it, for those who cannot see it."""
    content: bytes
    """PNG."""


def draw_all(comparison: Comparison, featured: Sequence[str]) -> dict[str, Picture]:
    """Draw everything, with progress; return the pictures by file name without ending."""
    draw = list(_pictures(comparison, featured))
    drawn: dict[str, Picture] = {}
    with closing(Progress("report", len(draw), "picture")) as progress:
        for name, text, figure in draw:
            drawn[name] = Picture(text, png(figure()))
            progress.show(len(drawn))
    return drawn


def _pictures(
    c: Comparison, featured: Sequence[str]
) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    styles = styles_of_run(c.agents)
    few = {agent: styles[agent] for agent in featured}
    panels = [(f"{s} start", points(c, c.cells_of(start=s), c.agents)) for s in c.starts]
    text = f"Violations against cores of {', '.join(few)}, mean over all cells"
    yield "pareto", text, partial(points_figure, panels, few, bool(c.common_bound))
    for cell in c.cells:
        frames = {agent: c.intervals_of(agent, cell) for agent in few}
        runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
        text = f"{cell[0]}, {cell[1]}, {cell[2]} start, seed 0, over time"
        yield series_name(cell), text, partial(time_series, runs, few)


def series_name(cell: Cell) -> str:
    """Return the name of the picture of a cell over time."""
    return f"series-{'-'.join(cell)}"


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


def points_figure(panels: Sequence[tuple[str, Points]], styles: Styles, relative: bool) -> Figure:
    """Draw violations against cores, these ``relative`` to a bound or as they are."""
    there = {name for _, own in panels for name in own}
    looks = {**dict.fromkeys(there, OTHER_STYLE), **styles, **BOUND_STYLES}
    legend = {name: style for name, style in {**styles, **BOUND_STYLES}.items() if name in there}
    if there - legend.keys():
        legend[OTHERS] = OTHER_STYLE
    handles = [Line2D([], [], linestyle="none", label=n, **s.of_marker) for n, s in legend.items()]
    cores = axis_label(EpisodeMetrics, "mean_cores")
    if relative:
        cores = column("cores_over_common_bound").label
    size = 0.7 + 3.4 * len(panels), 4.0
    figure = Figure(size, dpi=100, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)
    for ax, (title, own) in zip(grid.flat, panels, strict=True):
        open_frame(ax)
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set(xlabel=cores, ylabel="avoidable violations [%]")
        ax.label_outer(remove_inner_ticks=False)
        _draw_points(ax, own, looks)
        ax.set_yscale("symlog", linthresh=LINEAR_UP_TO_PERCENT)
        ax.set_ylim(-0.2 * LINEAR_UP_TO_PERCENT, 100)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.01, 0.1, 1, 10, 100]))
        ax.yaxis.set_major_formatter(PLAIN)
        log_axis(ax)
    drawn = figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize="small"
    )
    room = drawn.get_window_extent()  # for which the figure grows
    width, height = size[0] + room.width / figure.dpi, 0.2 + room.height / figure.dpi
    figure.set_size_inches(width, max(height, size[1]))
    return figure


def log_axis(ax: Axes) -> None:
    """Make the horizontal axis logarithmic, with a few plain numbers of cores on it."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FewTicks(*CORE_TICKS))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_xlim()
    if high < 1.01 * low:  # a single value, of which rounding leaves no view
        ax.set_xlim(low / 1.25, high * 1.25)


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


def page(
    runs: Sequence[RunFolder],
    pictures: Sequence[Mapping[str, Picture]],
    first: Sequence[Titled] = (),
) -> str:
    """Return runs, each with its pictures, and tables before them as HTML."""
    environment = Environment(
        loader=PackageLoader("sponge_env.results"), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # A picture stands in the page itself, which so needs no other file.
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    paths = [run.path.absolute() for run in runs]
    # Beside others a run has the name of the folder around it as well.
    titles = [f"{p.parent.name}/{p.name}" if len(runs) > 1 else p.name for p in paths]
    parts = list(zip(titles, runs, pictures, strict=True))
    shown = {"parts": parts, "first": first, "suites": suite_tables, "tables": tables}
    return environment.get_template("page.html.j2").render(**shown)
