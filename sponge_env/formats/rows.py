"""Trace files as rows and columns of numbers, with errors that name the line."""

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError
from sponge_env.utils.files import read_text

_SHOWN_CHARACTERS = 80
_MOST_ROWS = 10_000_000  # Lines, or numbers on the only one; each takes 200 bytes while it is read
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # What ends a line
_LATEST_S = 1e11  # In the year 5138 by Unix seconds; more is a clock in milliseconds or finer


class Line(NamedTuple):
    """One line of a file, or one of the rows that stand on it."""

    number: int  # Its number in the file, from 1
    text: str


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a text file, gzipped or not; TraceError if it is none, or empty."""
    # Without byte order mark, comments (lines that start with ``#``), and blank lines at the ends.
    try:
        text = read_text(path)
        if any(text.count(mark) > _MOST_ROWS for mark in (_BREAKS + " \t," * ("\n" not in text))):
            raise ValueError(f"it has more than {_MOST_ROWS} lines or numbers; cut out a part")
        numbered = enumerate(text.splitlines(), start=1)
    except ValueError as error:
        raise TraceError(f"{path} is not a trace: {error}") from None
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror or error}") from None
    lines = [Line(number, text) for number, text in numbered if text.lstrip()[:1] != "#"]
    filled = [i for i, line in enumerate(lines) if line.text.strip()]
    if not filled:
        raise TraceError(f"{path} is not a trace: it is empty")
    return lines[filled[0] : filled[-1] + 1]


def shown(line: str) -> str:
    """Quote a line for a message, shortened if it is long."""
    return repr(line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "...")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a trace file. Whatever breaks a rule is a ``TraceError`` that names the line."""

    format: str  # Format the file is read as, for messages
    lines: list[Line]
    split: Callable[[str], list[str]]  # How a row falls into cells
    header: tuple[str, ...]  # Name of each column; one for each cell of a good row

    def __post_init__(self) -> None:
        if not self.lines:
            raise TraceError("there is nothing below its header")

    def error(self, row: int, reason: str) -> TraceError:
        """Return the error that says what is wrong with a row; -1 is the last one."""
        number, line = self.lines[row]
        text = "" if shown(line) in reason else f": {shown(line)}"
        return TraceError(f"line {number}: {reason}{text} (read as {self.format})")

    def require(self, good: NDArray[np.bool_], reason: str) -> None:
        """Check a rule on all rows; ``good`` says which of the (rows,) keep it."""
        if not good.all():
            raise self.error(int(np.argmin(good)), reason)

    def ascending(self, name: str, values: FloatArray) -> None:
        """Check that a column never goes back."""
        self.require(np.diff(values, prepend=values[:1]) >= 0, f"{name} goes back: sort by it")

    def column(self, name: str, convert: Callable[[str], float] | None = None) -> FloatArray:
        """Return a column, (rows,) from 0; ``convert`` makes numbers of cells, or raises."""
        column, width = self.header.index(name), len(self.header)
        values = np.empty(len(self.lines))
        for row, (_, text) in enumerate(self.lines):
            cells = self.split(text)
            if not text.strip():
                raise self.error(row, "the line is empty")
            if len(cells) < width or any(cells[width:]):
                raise self.error(row, f"{len(cells)} instead of {width} columns")
            try:
                values[row] = (convert or _number)(cells[column])
            except ValueError:
                raise self.error(row, f"{name} cannot be {cells[column]!r}") from None
        self.require(np.isfinite(values), f"{name} is not a finite number")
        self.require(values >= 0, f"{name} is negative")
        return values

    def seconds(self, name: str, convert: Callable[[str], float] | None = None) -> FloatArray:
        """Return one column of times in seconds, from whatever start."""
        time_s = self.column(name, convert)
        self.require(time_s < _LATEST_S, "the time is too large for seconds")
        return time_s

    def measured(self, name: str) -> "Rows":
        """Leave out the rows where a column has what loggers write for no reading."""
        own, blank = slice(at := self.header.index(name), at + 1), (["-"], ["nan"], [""])
        lines = [each for each in self.lines if self.split(each.text.lower())[own] not in blank]
        if not lines:
            raise self.error(0, f"there is no {name} from here to the end")
        return dataclasses.replace(self, lines=lines)


@dataclass(frozen=True, slots=True)
class Format:
    """One file format."""

    name: str
    layout: Literal["header", "columns", "one line"]
    """A CSV header that has the columns among others; numbers in columns without a
    header; or all numbers of one column on the file's only line."""
    columns: tuple[str, ...]  # Names of the columns; of those needed where there is a header
    parse: Callable[[Rows], Any]  # Makes the trace of the rows

    def matches(self, lines: list[Line]) -> bool:
        """Whether the first line looks like this format."""
        first = lines[0].text
        if self.layout == "header":
            return {*map(str.lower, self.columns)} <= {*_split_csv(first.lower())}
        if self.layout == "one line":
            return len(lines) == 1 < len(_numbers(_split_line(first)))
        return len(_numbers(first.split())) == len(self.columns)

    def read(self, lines: list[Line]) -> Any:
        """Lay the lines out as rows of cells, and make the trace of them."""
        number, first = lines[0]
        if self.layout == "header":
            own = {name.lower(): name for name in self.columns}
            header = tuple(own.get(name.lower(), name) for name in _split_csv(first))
            return self.parse(Rows(self.name, lines[1:], _split_csv, header))
        if self.layout == "one line":
            lines = [Line(number, cell) for cell in _split_line(first)]
        return self.parse(Rows(self.name, lines, str.split, self.columns))


def _split_csv(line: str) -> list[str]:
    if "," not in line:  # which others write as tabs or semicolons
        line = line.replace("\t", ",").replace(";", ",")
    if '"' not in line:  # the same, several times faster
        return [cell.strip() for cell in line.split(",")]
    try:
        return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
    except csv.Error:  # a cell longer than the module allows: no line of a CSV trace
        return [line]


def _split_line(line: str) -> list[str]:
    return line.replace(",", " ").split()


def _numbers(cells: list[str]) -> list[float]:
    try:
        return list(map(_number, cells))
    except ValueError:
        return []


def _number(text: str) -> float:
    """Convert a number as other programs write it, that is without Python's ``1_000``."""
    if "_" in text:
        raise ValueError
    return float(text)
