"""Where large requests are parsed: beside the loop, which serves the others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LARGE_BYTES = 2**16
"""From here on what has to be parsed, written or unpacked number by number is done in a thread:
JSON of this size takes about 2 ms, the way to a thread and back 0.1 ms."""


async def aside(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Do what takes long for large bodies in another thread."""
    if size < LARGE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
