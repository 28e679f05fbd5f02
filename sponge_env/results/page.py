"""From runs to a report: one page that needs no other file, and its pictures."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from sponge_env.results import suite_tables, tables
from sponge_env.results.comparison import Cell, Comparison, RunFolder
from sponge_env.results.drawing import featured_of, png, profile_figure, styles_of, time_series
from sponge_env.results.suite_tables import cell_rows, ratios
from sponge_env.utils.console import Progress

Titled = tuple[str, Mapping[str, tables.Table]]  # Further tables by title, below a note on all


class Picture(NamedTuple):
    """A picture, ready to be shown."""

    text: str  # What is on it, for those who cannot see it
    content: bytes  # PNG


def draw_all(comparison: Comparison) -> dict[str, Picture]:
    """Draw everything, with progress; return the pictures by file name without ending."""
    draw = list(_pictures(comparison))
    drawn: dict[str, Picture] = {}
    with closing(Progress("report", len(draw), "picture")) as progress:
        for name, text, figure in draw:
            drawn[name] = Picture(text, png(figure()))
            progress.show(len(drawn))
    return drawn


def _pictures(c: Comparison) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    styles, reference = styles_of(c.agents), c.shown.reference
    few = {agent: styles[agent] for agent in featured_of(c.agents)}
    if len(c.shown.cells) > 1:
        text = f"Share of cells that {', '.join(few)} meet with at most so many times the cores of "
        draw = partial(profile_figure, ratios(cell_rows(c), reference), reference, few)
        yield "profile", text + reference, draw
    for cell in c.shown.cells:
        frames = {agent: c.intervals_of(agent, cell) for agent in few}
        runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
        text = f"{cell[0]}, {cell[1]}, {cell[2]} start, the first seed, over time"
        yield series_name(cell), text, partial(time_series, runs, few)


def series_name(cell: Cell) -> str:
    """Return the name of the picture of a cell over time."""
    return f"series-{'-'.join(cell)}"


def page(
    runs: Sequence[RunFolder], drawn: Sequence[Mapping[str, Picture]], first: Sequence[Titled] = ()
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
    parts = list(zip(titles, runs, drawn, strict=True))
    shown = {"parts": parts, "first": first, "suites": suite_tables, "tables": tables}
    return environment.get_template("page.html.j2").render(**shown)
