"""From sections to files: the page, the Markdown, the README's part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sponge_env.errors import ConfigError
from sponge_env.report.overview import FEW_VIOLATIONS
from sponge_env.report.rates import percent
from sponge_env.report.section import Picture, Section
from sponge_env.report.tables import DAGGER, markdown
from sponge_env.report.targets import TARGET_NOTE
from sponge_env.suite.comparison import Cell
from sponge_env.suite.tables import TEST_NOTE

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""What the README's part stands between."""

COMPARISON = "comparison.png"
"""The README's picture, beside the Markdown."""

TIME_SERIES = (("paper-300kb", "cold"), ("flash-crowd", "warm"), ("deep-fade", "warm"))
"""Scenarios and starts whose first episode the Markdown shows, with the first profile."""


def page(sections: Sequence[Section], pictures: Sequence[Mapping[str, Picture]]) -> str:
    """Return the page as HTML that needs no other file.

    Args:
        sections: One for each run.
        pictures: Of each section, see :meth:`Section.pictures`.
    """
    template = _environment().get_template("page.html.j2")
    parts = list(zip(sections, pictures, strict=True))
    return template.render(parts=parts)


def results(section: Section, pictures: Mapping[str, Picture]) -> tuple[str, dict[str, bytes]]:
    """Return ``docs/results.md``, and the pictures beside it by file name."""
    series = [pictures[f"series-{'-'.join(cell)}"] for cell in _shown(section)]
    template = _environment().get_template("results.md.j2")
    text = template.render(
        section=section,
        comparison=COMPARISON,
        series=series,
    )
    files = {f"results-{picture.name}.png": picture.content for picture in series}
    return text, {COMPARISON: pictures["pareto"].content, **files}


def _shown(section: Section) -> list[Cell]:
    """Return the cells of which the Markdown shows an episode; the first if it has none."""
    source = section.source
    groups = [source.cells(scenario, start) for scenario, start in TIME_SERIES]
    return [cells[0] for cells in groups if cells] or source.cells()[:1]


def with_results(readme: Path, section: Section, folder: Path) -> str:
    """Return a README with its part about results written anew.

    Args:
        readme: The README.
        section: The run.
        folder: Where the pictures and the Markdown are.

    Raises:
        ConfigError: It cannot be read, or does not have the two marks.
    """
    before, after = around_results(readme)
    part = (
        _environment()
        .get_template("readme.md.j2")
        .render(
            section=section,
            comparison=f"{_relative(folder, readme)}{COMPARISON}",
            starts=section.source.starts,
        )
    )
    return f"{before}{BEGIN}\n{part.strip()}\n{END}{after}"


def around_results(readme: Path) -> tuple[str, str]:
    """Return what goes before and after the README's part about results.

    Raises:
        ConfigError: It cannot be read, or does not have the two marks.
    """
    try:
        text = readme.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(readme)!r}: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{str(readme)!r} lacks the lines {BEGIN} and {END}, in this order")
    return before, after


def _relative(folder: Path, readme: Path) -> str:
    """Return how a README refers to a folder; empty if it lies in it."""
    relative = Path(os.path.relpath(folder, readme.parent)).as_posix()
    return "" if relative == "." else f"{relative}/"


def _environment() -> Environment:
    """Return what fills in the templates."""
    found = Environment(
        loader=PackageLoader("sponge_env.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["markdown"] = markdown
    found.globals.update(
        dagger=DAGGER,
        few_violations=percent(FEW_VIOLATIONS, 1),
        target_note=TARGET_NOTE,
        test_note=TEST_NOTE,
    )
    return found
