"""A window of the relaxed server."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A window under one number of cores."""

    index: int
    start_s: float
    end_s: float
    """Infinite for the last one: what is left is served under its cores."""
    cores: int
    violation: int
    """What a violation costs, in cores held for a window."""
