"""From runs to a report: one page that needs no other file, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from sponge_env.results import suite_tables, tables
from sponge_env.results.comparison import Cell, Comparison, RunFolder
from sponge_env.results.drawing import (
    PLAIN,
    FewTicks,
    Styles,
    legend_above,
    open_frame,
    png,
    styles_of,
    time_series,
)
from sponge_env.results.layout import Table
from sponge_env.results.suite_tables import SCORE_NOTE, cell_rows, ratios
from sponge_env.utils.console import Progress

RATIO_TICKS = ([0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4], [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4])
LARGEST_RATIO = 4.0
"""Times the reference's cores up to which a performance profile goes."""

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
    styles = styles_of(c.agents)
    few = {agent: styles[agent] for agent in featured}
    if len(c.shown.cells) > 1:
        text = f"Share of cells that {', '.join(few)} meet with at most so many times the cores of "
        draw = partial(profile_figure, cell_rows(c), c.shown.reference, few)
        yield "profile", text + c.shown.reference, draw
    for cell in c.shown.cells:
        frames = {agent: c.intervals_of(agent, cell) for agent in few}
        runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
        text = f"{cell[0]}, {cell[1]}, {cell[2]} start, the first seed, over time"
        yield series_name(cell), text, partial(time_series, runs, few)


def series_name(cell: Cell) -> str:
    """Return the name of the picture of a cell over time."""
    return f"series-{'-'.join(cell)}"


def profile_figure(cells: pd.DataFrame, reference: str, styles: Styles) -> Figure:
    """Draw a performance profile (Dolan and More, 2002), with a panel for each start.

    It shows the share of a suite's cells that agents meet with at most so many times the
    reference's cores.
    """
    rows = ratios(cells, reference)
    starts = [*rows["start"].unique()]
    figure = Figure((0.7 + 4.6 * len(starts), 3.4), dpi=100, layout="constrained")
    grid = figure.subplots(1, len(starts), squeeze=False, sharex=True, sharey=True)
    lowest = np.fmin(rows["cores_over_reference"].min(), 1.0)
    for ax, start in zip(grid.flat, starts, strict=True):
        own = rows[rows["start"] == start]
        total = len(own.drop_duplicates(["scenario", "profile"]))
        for agent, style in styles.items():
            found = own.loc[own["agent"] == agent, "cores_over_reference"].dropna().sort_values()
            steps = [lowest, *found, max(LARGEST_RATIO, found.max())]
            shares = [*(np.arange(len(found) + 1) / total), len(found) / total]
            ax.step(steps, shares, where="post", label=agent, **style)
        open_frame(ax)
        ax.set_title(f"{start} start", loc="left", fontsize="medium")
        ax.set(xlabel=f"cores over {reference}", ylabel="cells met", ylim=(0, 1.02))
        ax.label_outer(remove_inner_ticks=False)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xscale("log")
        ax.set_xlim(0.95 * lowest, LARGEST_RATIO)
        ax.xaxis.set_major_locator(FewTicks(*RATIO_TICKS))
        ax.xaxis.set_major_formatter(PLAIN)
        ax.xaxis.set_minor_formatter(NullFormatter())
    legend_above(figure, *grid[0, 0].get_legend_handles_labels(), title="")
    return figure


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
    shown["score_note"] = SCORE_NOTE
    return environment.get_template("page.html.j2").render(**shown)
