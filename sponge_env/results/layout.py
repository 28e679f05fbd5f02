"""Tables before they become text, Markdown or HTML; marked parts of hand-written pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sponge_env.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in one place of a table."""

    text: str
    muted: bool = False
    """Whether it is not significant, and shown so."""
    strong: bool = False
    """Whether it is the best of its row."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first column names things, the others hold numbers."""

    headings: Sequence[str]
    """A unit stands in brackets at the end."""
    rows: Sequence[Sequence[Entry]]

    @classmethod
    def of(cls, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        """Make a table whose entries are all plain."""
        return cls(headings, [[Entry(text) for text in row] for row in rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines, padded on the right in the first column and on the left elsewhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def terminal(table: Table, title: str = "", notes: Sequence[str] = ()) -> str:
    """Return a table for the terminal, its headings in two lines, with notes below."""
    first, *others = table.headings
    above, below = zip(("", first), *map(_two_lines, others), strict=True)
    lines = aligned([above, below, *([entry.text for entry in row] for row in table.rows)])
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
    lines = [table.headings, align, *([_marked(e) for e in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _marked(entry: Entry) -> str:
    text = entry.text.replace("|", "\\|")
    return f"**{text}**" if entry.strong else text


def around(path: Path, mark: str) -> tuple[str, str]:
    """Return what goes before and after a page's marked part, the marks included.

    Args:
        path: The page, in which the part stands between ``<!-- mark:begin -->`` and
            ``<!-- mark:end -->``.
        mark: Name of the part.

    Raises:
        ConfigError: It cannot be read, or does not have the two marks.
    """
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from error
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ConfigError(f"{str(path)!r} lacks the lines {begin} and {end}, in this order")
    return f"{before}{begin}\n", f"\n{end}{after}"
