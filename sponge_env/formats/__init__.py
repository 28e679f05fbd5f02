"""Trace files in formats of others: found by name, told by their content and never by their name.

``arrivals.py`` and ``bandwidth.py`` hold one parser for each format and the traces they make;
a format more is a line in their tables.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sponge_env.config import Arrivals, Network
from sponge_env.errors import TraceError, unknown
from sponge_env.formats import arrivals, bandwidth
from sponge_env.formats.arrivals import CountTrace as CountTrace
from sponge_env.formats.arrivals import EventTrace as EventTrace
from sponge_env.formats.bandwidth import BandwidthTrace as BandwidthTrace
from sponge_env.formats.table import Format, Line, read_lines, shown
from sponge_env.scenario import SCENARIO_DIR

Content = Literal["bandwidth", "arrivals"]
"""What a trace is of."""

FORMATS: Mapping[Content, tuple[Format[Any], ...]] = {
    "bandwidth": bandwidth.FORMATS,
    "arrivals": arrivals.FORMATS,
}
"""Every format that traces can be loaded from."""

TRACE_DIR = SCENARIO_DIR.parent
"""Traces that ship with the project; those of arrivals are named ``arrivals-*.csv``."""

RESERVED = ("4g", "none")
"""Names that are no files: bandwidth generated for each seed, and no transfer time."""

_SETTING = {
    "bandwidth": "network.trace (option --trace)",
    "arrivals": "arrivals.file (option --arrivals)",
}


def recorded_bandwidth(network: Network) -> BandwidthTrace:
    """Load the trace that a network names, if it is none of those that are :data:`RESERVED`.

    Raises:
        TraceError: There is no such trace, or its file cannot be used.
    """
    return read_bandwidth(find_trace(network.trace, "bandwidth"))


def recorded_arrivals(arrivals: Arrivals) -> EventTrace | CountTrace:
    """Load the trace that arrivals of the kind ``trace`` play.

    Raises:
        TraceError: There is no such trace, or its file cannot be used.
    """
    return read_arrivals(find_trace(str(arrivals.file), "arrivals"))


def read_bandwidth(path: str | Path) -> BandwidthTrace:
    """Read a bandwidth trace in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    trace: BandwidthTrace = _read(Path(path), "bandwidth")
    return trace


def read_arrivals(path: str | Path) -> EventTrace | CountTrace:
    """Read an arrival trace in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    trace: EventTrace | CountTrace = _read(Path(path), "arrivals")
    return trace


def find_trace(name: str, content: Content) -> Path:
    """Return the file of a trace: named by its path, or by its name in ``traces/``.

    Raises:
        TraceError: There is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {
        file.stem: file
        for file in TRACE_DIR.glob("*.csv")
        if file.stem.startswith("arrivals-") == (content == "arrivals")
    }
    stem = name.removesuffix(".csv")
    if stem not in shipped:
        reserved = RESERVED if content == "bandwidth" else ()
        raise TraceError(unknown(f"file or trace of {content}", name, (*reserved, *shipped)))
    return shipped[stem]


def _read(path: Path, content: Content) -> Any:
    try:
        status = path.stat()
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    return _parse(path, content, (status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=16)
def _parse(path: Path, content: Content, state: tuple[int, ...]) -> Any:
    """Parse a file once for all episodes, and again when another is there by that name."""
    lines = read_lines(path)
    for candidate in FORMATS[content]:
        if candidate.matches(lines):
            try:
                return candidate.read(lines)
            except TraceError as error:
                raise TraceError(f"{path}: {error}") from None
    raise TraceError(f"{path} {_why_not(lines, content)}")


def _why_not(lines: list[Line], content: Content) -> str:
    """Say why a file is in no format of the content that is wanted."""
    for other, formats in FORMATS.items():
        for candidate in formats:
            if candidate.matches(lines):
                return (
                    f"holds {other}, not {content} (it is {candidate.name}); "
                    f"use it as {_SETTING[other]}"
                )
    known = "; ".join(candidate.name for candidate in FORMATS[content])
    number, first = lines[0]
    return (
        f"is in no known format of {content}: line {number} is {shown(first)}; known are: {known}"
    )
