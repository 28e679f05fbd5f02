"""From runs to a report: one page that needs no other file, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from sponge_env.results import suite_tables, tables
from sponge_env.results.comparison import Cell, Comparison, RunFolder
from sponge_env.results.drawing import png, styles_of_run
from sponge_env.results.figures import Panels, decision_figure, latency_figure, pareto_figure
from sponge_env.results.layout import Table
from sponge_env.results.time_series import time_series
from sponge_env.utils.console import Progress

Titled = tuple[str, Mapping[str, Table]]
"""Further tables by their titles, below a note about all of them."""


class Picture(NamedTuple):
    """A picture, ready to be shown."""

    text: str
    """What is on it, for those who cannot see it."""
    content: bytes
    """PNG."""


def draw_all(comparison: Comparison, featured: Sequence[str]) -> dict[str, Picture]:
    """Draw everything, with progress; return the pictures by file name without ending.

    The agents ``featured`` are shown where there is no room for all.
    """
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
    """Yield name, text and what draws each picture."""
    styles = styles_of_run(c.agents, featured)
    few = {agent: styles[agent] for agent in featured}
    overall: Panels = [[(f"{start} start", c.cells_of(start=start)) for start in c.starts]]
    text = "Violations against cores"
    draw = partial(pareto_figure, c, overall, few)
    yield "pareto", f"{text} of {', '.join(few)}, mean over all cells", draw
    yield "decisions", "Decision times", partial(decision_figure, c)
    for scenario in c.scenarios:
        panels = _panels(c, scenario)
        draw = partial(pareto_figure, c, panels, few)
        yield f"pareto-{scenario}", f"{text}, {scenario}", draw
        draw = partial(latency_figure, c, panels, few)
        yield f"latency-{scenario}", f"Distribution of latency, {scenario}", draw
    for cell in c.cells:
        frames = {agent: c.intervals_of(agent, cell) for agent in few}
        runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
        text = f"{cell[0]}, {cell[1]}, {cell[2]} start, seed 0, over time"
        yield series_name(cell), text, partial(time_series, runs, few)


def _panels(comparison: Comparison, scenario: str) -> Panels:
    """Return a scenario's cells: a row of panels for each start, a column for each profile."""
    cells = comparison.cells_of(scenario)
    profiles = dict.fromkeys(profile for _, profile, _ in cells)
    return [
        [(f"{p}, {start}", [c for c in cells if c[1:] == (p, start)]) for p in profiles]
        for start in comparison.starts
    ]


def series_name(cell: Cell) -> str:
    """Return the name of the picture of a cell over time."""
    return f"series-{'-'.join(cell)}"


def featured(run: RunFolder, chosen: Sequence[str] = ()) -> list[str]:
    """Return the agents that are shown where there is no room for all: chosen ones, or a few."""
    return [agent for agent in run.comparison.agents if agent in (chosen or run.featured)]


def page(
    runs: Sequence[RunFolder],
    pictures: Sequence[Mapping[str, Picture]],
    first: Sequence[Titled] = (),
    more: Sequence[Titled] = (),
) -> str:
    """Return runs, each with its pictures, and tables before and after them as HTML."""
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
    shown = {"parts": parts, "first": first, "more": more, "suites": suite_tables, "tables": tables}
    return environment.get_template("page.html.j2").render(**shown)
