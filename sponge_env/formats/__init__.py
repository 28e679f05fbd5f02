"""Trace files in formats of others: found by name, told by their content and never by their name.

``arrivals.py`` and ``bandwidth.py`` hold one parser for each format and the traces they make;
a format more is a line in their tables.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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


def read_bandwidth(name: str | Path) -> BandwidthTrace:
    """Read a bandwidth trace, named as for :func:`find_trace`, in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    trace: BandwidthTrace = _read(name, "bandwidth")
    return trace


def read_arrivals(name: str | Path) -> EventTrace | CountTrace:
    """Read an arrival trace, named as for :func:`find_trace`, in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    trace: EventTrace | CountTrace = _read(name, "arrivals")
    return trace


def find_trace(name: str | Path, content: Content) -> Path:
    """Return the file of a trace: named by its path, or by its name in ``traces/``.

    Raises:
        TraceError: There is no such file.
    """
    if os.path.isfile(name):
        return Path(name)
    name = str(name)
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


def _read(name: str | Path, content: Content) -> Any:
    path = find_trace(name, content)
    status = path.stat()
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
