"""A response's head and body in one packet."""

from __future__ import annotations

import asyncio
from typing import Any

INTERIM = b"HTTP/1.1 100 "


class Corked:
    """A transport that keeps a response's head back until its body, or its end.

    Uvicorn writes them one after the other, which wakes the client twice.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._to = transport
        self._head: bytes | None = None
        self._open = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def write(self, data: bytes) -> None:
        """Write what is no head, with the head in front of it if there is one."""
        if self._open or data.startswith(INTERIM):
            self._to.write(data)
        elif self._head is None:
            self._head = data
        else:
            head, self._head, self._open = self._head, None, True
            self._to.writelines((head, data))

    def flush(self) -> None:
        """Write a head that has no body."""
        if self._head is not None:
            head, self._head, self._open = self._head, None, True
            self._to.write(head)

    def close(self) -> None:
        """Close once all is written."""
        self.flush()
        self._to.close()
