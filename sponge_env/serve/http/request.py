"""One HTTP request, from its head to the last byte of its body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import unquote

import httptools
import numpy as np

from sponge_env.serve.memory import HeldBytes, Memory
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import Buffer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Request:
    """A request whose head has arrived; its body may still be on the way.

    A body of known size is written where it is read; one that comes in chunks is put together.
    Either is counted in the server's memory for as long as somebody uses it.
    """

    def __init__(self, began_s: float, client: tuple[str, int] | None) -> None:
        """Begin a request, whose first byte came at a moment of the monotonic clock."""
        self.began_s, self.client = began_s, client
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.headers: dict[bytes, bytes] = {}
        """By lower-case name; of several of a name the last."""
        self.method = self.path = self.query = self.version = ""
        self.keep_alive, self.answered, self.whole = False, False, False
        self.room: memoryview | None = None
        """Where a body of known size goes; ``filled`` bytes of it are there."""
        self.filled = 0
        self._chunks = bytearray()
        self._held: HeldBytes | None = None
        self._body: Buffer = b""
        self._error: WireError | None = None
        self._arrived = asyncio.Event()
        self._ask: Callable[[bytes], None] | None = None

    def end_head(self, parser: httptools.HttpRequestParser, ask: Callable[[bytes], None]) -> None:
        """Read what the parser knows once the headers are there; ``ask`` sends to the client."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.path = unquote(path) if "%" in path else path
        self.query = (url.query or b"").decode("latin-1")
        self.method, self.version = parser.get_method().decode(), parser.get_http_version()
        self.headers = dict(self.pairs)
        self.keep_alive = self.version != "1.0" and parser.should_keep_alive()
        if self.headers.get(b"expect", b"").lower() == b"100-continue":
            self._ask = ask

    def make_room(self, size: int, memory: Memory) -> bool:
        """Make room for a body, if there is memory for it."""
        if not memory.hold(size):
            return False
        room = np.empty(size, np.uint8)  # bytearray would write zeros first
        memory.release_with(room, size)
        self.room = memoryview(room)  # type: ignore[arg-type]
        return True

    def add(self, part: bytes, memory: Memory, most_bytes: int) -> bool:
        """Take a part of the body that the parser has seen; return False without memory for it."""
        if self.answered or self._error is not None:
            return True
        if self.room is not None:
            self.room[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            return True
        self._held = self._held or HeldBytes(memory)
        if not self._held.more(len(part)):
            return False
        self._chunks += part
        if len(self._chunks) > most_bytes:
            self.fail(too_large(most_bytes))
        return True

    @property
    def missing(self) -> int:
        """Bytes of the body that are still to come, as far as that is known."""
        return 0 if self.room is None else len(self.room) - self.filled

    def end(self) -> None:
        """Hand over the body, all of which has arrived."""
        self.whole = True
        if self.room is not None:
            self._body = self.room
        elif self._held is not None:
            array = np.frombuffer(self._chunks, np.uint8)
            self._held.release_with(array)
            self._body = memoryview(array)  # type: ignore[arg-type]
        self._arrived.set()

    def fail(self, error: WireError) -> None:
        """Say that the body is none."""
        self._error, self._chunks, self._held = error, bytearray(), None
        self._arrived.set()

    def forget(self) -> None:
        """Let go of the body."""
        self.answered, self.room, self._body = True, None, b""
        self._chunks, self._held = bytearray(), None

    async def body(self) -> Buffer:
        """Return the body when all of it is there; a WireError if it is too large."""
        if self._ask is not None and not self._arrived.is_set():
            self._ask(CONTINUE)
        await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return self._body


def too_large(most_bytes: int) -> WireError:
    """Return the error of a body that is too large."""
    return WireError(f"a request has at most {most_bytes} bytes", 413)
