"""Which format a trace file is in, told by its content and never by its name."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sponge_env.errors import TraceError, unknown
from sponge_env.formats import arrivals, bandwidth
from sponge_env.formats.arrivals import Counts, Events
from sponge_env.formats.bandwidth import Samples
from sponge_env.formats.table import Format, Line, read_lines, shown
from sponge_env.installation import data_folder

Content = Literal["bandwidth", "arrivals"]
"""What a trace is of."""

FORMATS: dict[Content, tuple[Format, ...]] = {
    "bandwidth": bandwidth.FORMATS,
    "arrivals": arrivals.FORMATS,
}
"""Every format that traces can be loaded from."""

TRACE_DIR = data_folder("traces")
"""Traces that ship with the project; those of arrivals are named ``arrivals-*.csv``."""

_SETTING = {
    "bandwidth": "network.trace (option --trace)",
    "arrivals": "arrivals.file (option --arrivals)",
}


def read_bandwidth(path: str | Path) -> Samples:
    """Read a bandwidth trace in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    samples: Samples = _read(Path(path), "bandwidth")
    return samples


def read_arrivals(path: str | Path) -> Events | Counts:
    """Read an arrival trace in any known format.

    Raises:
        TraceError: The file cannot be read, is in no such format, or a line is bad.
    """
    requests: Events | Counts = _read(Path(path), "arrivals")
    return requests


def find_trace(name: str, content: Content, reserved: Iterable[str] = ()) -> Path:
    """Return the file of a trace that is named by its path or by its name in ``traces/``.

    Args:
        name: Path of a file, or name with or without ``.csv``.
        content: What the trace must be of.
        reserved: Names that stand for no file, for the message.

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
            return candidate.parse(candidate.table(path, lines))
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
