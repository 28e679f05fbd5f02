"""Has the event loop write what arrives where it is wanted."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Reader(Protocol):
    """Who takes what arrives; the rest is as asyncio's protocols have it."""

    @property
    def room(self) -> memoryview:
        """Where to write what comes next."""

    def written(self, size: int) -> None:
        """Take so many bytes that were written there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""

    def eof_received(self) -> bool:
        """As asyncio has it."""

    def pause_writing(self) -> None:
        """As asyncio has it."""

    def resume_writing(self) -> None:
        """As asyncio has it."""


class InPlace(asyncio.BufferedProtocol):
    """Has the loop write what arrives where a connection wants it; the rest is passed on."""

    def __init__(self, connection: Reader) -> None:
        self._to = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to write what comes next."""
        return self._to.room

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on that something was written there."""
        self._to.written(nbytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on."""
        self._to.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._to.connection_lost(exc)

    def eof_received(self) -> bool:
        """Pass it on, and whether answers are due."""
        return self._to.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._to.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._to.resume_writing()
