"""Trace files in formats of others (``recorded.py``): found by name, told by their content."""

import functools
import os
from pathlib import Path
from typing import Any, cast

from sponge_env.errors import TraceError, unknown
from sponge_env.formats import recorded
from sponge_env.formats.recorded import FORMATS, BandwidthTrace, Content, CountTrace, EventTrace
from sponge_env.formats.rows import Line, read_lines, shown
from sponge_env.scenario.config import RESERVED
from sponge_env.scenario.scenario import SCENARIO_DIR
from sponge_env.utils.files import content_hash

__all__ = [
    "FORMATS", "RESERVED", "TRACE_DIR", "BandwidthTrace", "Content", "CountTrace", "EventTrace",
    "content_of", "find_trace", "format_of", "read_arrivals", "read_bandwidth", "trace_hash",
]  # fmt: skip

TRACE_DIR = SCENARIO_DIR.parent  # Traces of the project; those of arrivals are ``arrivals-*.csv``
_SETTING = {"bandwidth": "network.trace (--trace)", "arrivals": "arrivals.file (--arrivals)"}


def read_bandwidth(name: str | Path) -> BandwidthTrace:
    """Read a bandwidth trace, named as for :func:`find_trace`, in any known format."""
    return cast(BandwidthTrace, _read(name, "bandwidth")[1])


def read_arrivals(name: str | Path) -> EventTrace | CountTrace:
    """Read an arrival trace, in the same way."""
    return cast(EventTrace | CountTrace, _read(name, "arrivals")[1])


def format_of(name: str | Path, content: Content) -> str:
    """Return the name of the format in which such a trace is read."""
    return _read(name, content)[0]


def content_of(path: Path) -> Content:
    """Tell what a trace file is of by reading it; TraceError if it is no trace."""
    lines, errors = read_lines(path), []
    # Arrivals first: numbers in one column are theirs unless they only rise, as mahimahi's do.
    order: tuple[Content, ...] = ("arrivals", "bandwidth")
    fit = [content for content in order if any(each.matches(lines) for each in FORMATS[content])]
    for content in fit:
        try:
            _, trace = _read(path, content)
        except TraceError as error:
            errors.append(error)
            continue
        if content != fit[-1] and isinstance(trace, CountTrace) and recorded.only_rises(trace):
            raise TraceError(
                f"{path}: numbers that only rise may be a mahimahi trace, which needs "
                f"{recorded.MAHIMAHI_LINES} lines to be told, or requests per second: put them on "
                "one line, or give times of requests the header arrival_s"
            )
        return content
    message = f"{path} is in no known format: its first line is {shown(lines[0].text)}"
    raise errors[0] if errors else TraceError(message)


def find_trace(name: str | Path, content: Content) -> Path:
    """Return a trace's file by its path or its name in ``traces/``; TraceError if none is there."""
    if os.path.exists(name) and not os.path.isdir(name):
        return Path(name)
    name = str(name)
    shipped = {
        file.stem: file
        for pattern in ("*.csv", "recorded/3g-*", "recorded/arrivals-*")
        for file in TRACE_DIR.glob(pattern)
        if file.stem.startswith("arrivals-") == (content == "arrivals")
    }
    stem = name.removesuffix(".csv")
    if stem not in shipped:
        if os.path.isdir(name):
            raise TraceError(f"{name!r} is a folder, not a file of {content}")
        reserved = RESERVED if content == "bandwidth" else ()
        raise TraceError(unknown(f"file or trace of {content}", name, (*reserved, *shipped)))
    return shipped[stem]


def trace_hash(name: str | Path, content: Content) -> str:
    """Return what stands for the content of a trace's file; TraceError if it is no such trace."""
    return _hash(*_there(name, content))


def _read(name: str | Path, content: Content) -> tuple[str, Any]:
    return _parse(*_there(name, content))


def _there(name: str | Path, content: Content) -> tuple[Path, Content, tuple[int, ...]]:
    path = find_trace(name, content)
    status = path.stat()
    return path, content, (status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, content: Content, state: tuple[int, ...]) -> str:
    """Hash a file that can be read as a trace, which is found out first."""
    _parse(path, content, state)
    return str(content_hash(path))


@functools.lru_cache(maxsize=16)
def _parse(path: Path, content: Content, state: tuple[int, ...]) -> tuple[str, Any]:
    """Return a file's format and trace: parsed once, and again when another has its name."""
    lines = read_lines(path)
    for candidate in FORMATS[content]:
        if candidate.matches(lines):
            try:
                return candidate.name, candidate.read(lines)
            except TraceError as error:
                raise TraceError(f"{path}: {error}") from None
    raise TraceError(f"{path} {_why_not(lines, content)}")


def _why_not(lines: list[Line], content: Content) -> str:
    for other, formats in FORMATS.items():
        for found in (candidate.name for candidate in formats if candidate.matches(lines)):
            return f"holds {other}, not {content} (it is {found}); use it as {_SETTING[other]}"
    known = "; ".join(candidate.name for candidate in FORMATS[content])
    first = f"line {lines[0].number} is {shown(lines[0].text)}"
    return f"is in no known format of {content}: {first}; rename columns to those of: {known}"
