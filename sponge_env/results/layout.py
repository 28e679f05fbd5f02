"""Tables, and how they become text, Markdown or HTML."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sponge_env.errors import ConfigError

T = TypeVar("T")

MISSING = "-"  # Stands where nothing was measured


Columns = Sequence[tuple[str, Callable[[T], str]]]
"""Headings, a unit in brackets at the end, and what writes the entry of a row's subject."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first column names things, the others hold numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, columns: Columns[T], subjects: Iterable[T]) -> "Table":
        """Write a row for each subject."""
        rows = [[write(subject) for _, write in columns] for subject in subjects]
        return cls([heading for heading, _ in columns], rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines, padded on the right in the first column and on the left elsewhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if n else '<'}{width}}}" for n, width in enumerate(widths))
    return [form.format(*row).rstrip() for row in rows]


def terminal(table: Table, title: str = "", notes: Sequence[str] = ()) -> str:
    """Return a table for the terminal, its headings in two lines, with notes below."""
    first, *others = table.headings
    above, below = zip(("", first), *map(_two_lines, others), strict=True)
    lines = aligned([above, below, *table.rows])
    rule = "-" * max(map(len, lines))
    head = [title, rule] if title else []
    return "\n".join([*head, *lines[:2], rule, *lines[2:], *notes])


def _two_lines(heading: str) -> tuple[str, str]:
    """Break a heading at its comma or where that makes it narrowest; units lose their brackets."""
    heading = re.sub(r"[][]", "", heading)
    above, comma, below = heading.partition(", ")
    if comma:
        return above, below
    words = heading.split()
    if len(words) < 2:
        above, hyphen, below = heading.partition("-")
        return (above + hyphen, below) if hyphen else (heading, "")
    breaks = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, len(words))]
    return min(breaks, key=lambda lines: max(map(len, lines)))


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    align = [":--", *["--:"] * (len(table.headings) - 1)]
    head, *rows = [[plain(text) for text in line] for line in (table.headings, *table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *rows))


def plain(text: str) -> str:
    """Write text in one line of Markdown, without HTML, links and ends of table cells in it."""
    text = " ".join(text.split("\n")).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[|]|(?<=\])\(", r"\\\g<0>", text)


def with_block(page: str, name: str, content: str) -> str:
    """Return a page with other lines between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begins, rest = page.partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ConfigError(f"the page lacks the lines {begin} and {end}, in this order")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"
