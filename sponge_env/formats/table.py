"""Trace files as columns of numbers, with errors that name the line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import TraceError

_SHOWN_CHARACTERS = 80


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; a byte order mark and blank last lines are left out.

    Raises:
        TraceError: The file cannot be read, is not text, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TraceError(f"{path} is not a trace: it is not a text file") from None
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    if not text.strip():
        raise TraceError(f"{path} is not a trace: it is empty")
    return text.rstrip().split("\n")


def shown(line: str) -> str:
    """Quote a line for a message, shortened if it is long."""
    return repr(line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "...")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a trace file, one per line."""

    path: Path
    format: str
    """Format the file is read as, for messages."""
    rows: list[str]
    """Text of each row."""
    split: Callable[[str], list[str]]
    """How a row falls into cells."""
    header: tuple[str, ...]
    """Name of each column; one for each cell of a good row."""
    first_line: int = 1
    """Number of the first row's line."""
    on_one_line: bool = False
    """Whether all rows stand on that line."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise TraceError(f"{self.path} is not a trace: there is nothing below its header")

    def error(self, row: int, reason: str) -> TraceError:
        """Return the error that says what is wrong with a row."""
        line = self.first_line + (0 if self.on_one_line else row)
        return TraceError(
            f"{self.path}, line {line}: {reason}: {shown(self.rows[row])} (read as {self.format})"
        )

    def require(self, good: NDArray[np.bool_], reason: str) -> None:
        """Check a rule on all rows.

        Args:
            good: (rows,) whether each row keeps the rule.
            reason: What is wrong where one does not.

        Raises:
            TraceError: Names the first row that breaks it.
        """
        if not good.all():
            raise self.error(int(np.argmin(good)), reason)

    def column(
        self, name: str, convert: Callable[[str], float] = float, dtype: type[Any] = np.float64
    ) -> NDArray[Any]:
        """Return one column as numbers that are finite and at least 0.

        Args:
            name: Name of the column in the header.
            convert: Makes a number of a cell, or raises ValueError.
            dtype: Type of the numbers.

        Returns:
            (rows,) numbers.

        Raises:
            TraceError: A row has too few or too many cells, or a bad number.
        """
        values = np.fromiter(self._converted(name, convert), dtype=dtype, count=len(self.rows))
        self.require(np.isfinite(values), f"{name} is not a finite number")
        self.require(values >= 0, f"{name} is negative")
        return values

    def ascending(self, name: str, values: NDArray[Any]) -> None:
        """Check that a column never goes back.

        Raises:
            TraceError: It does.
        """
        self.require(np.diff(values, prepend=values[:1]) >= 0, f"{name} goes back")

    def _converted(self, name: str, convert: Callable[[str], float]) -> Iterator[float]:
        column, width = self.header.index(name), len(self.header)
        for row, text in enumerate(self.rows):
            cells = self.split(text)
            if len(cells) != width:
                empty = not text.strip()
                reason = (
                    "the line is empty" if empty else f"{len(cells)} instead of {width} columns"
                )
                raise self.error(row, reason)
            try:
                yield convert(cells[column])
            except ValueError:
                raise self.error(row, f"{name} cannot be {cells[column]!r}") from None


@dataclass(frozen=True, slots=True)
class Format:
    """One file format."""

    name: str
    layout: Literal["header", "columns", "one line"]
    """A CSV header that has the columns among others; numbers in columns without a
    header; or all numbers of one column on the file's only line."""
    columns: tuple[str, ...]
    """Names of the columns; of those that are needed where there is a header."""
    parse: Callable[[Table], Any]
    """Makes of the table what the file says."""

    def matches(self, lines: list[str]) -> bool:
        """Whether the first line looks like this format."""
        if self.layout == "header":
            return set(self.columns) <= set(_header(lines[0]))
        if self.layout == "one line":
            cells = _numbers_on(lines[0])
            return len(lines) == 1 and len(cells) > 1 and all(map(_is_number, cells))
        cells = lines[0].split()
        return len(cells) == len(self.columns) and all(map(_is_number, cells))

    def table(self, path: Path, lines: list[str]) -> Table:
        """Lay the lines out as rows of cells."""
        if self.layout == "header":
            return Table(path, self.name, lines[1:], _split_csv, _header(lines[0]), first_line=2)
        if self.layout == "one line":
            cells = _numbers_on(lines[0])
            return Table(path, self.name, cells, str.split, self.columns, on_one_line=True)
        return Table(path, self.name, lines, str.split, self.columns)


def _split_csv(line: str) -> list[str]:
    return line.split(",")


def _header(line: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in _split_csv(line))


def _numbers_on(line: str) -> list[str]:
    return line.replace(",", " ").split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
