"""What the HTTP connections of a server share, and how one of them is refused."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sponge_env.serve.options import ServeOptions

SCRATCH_BYTES = 2**16
"""Read at once where nothing is known of what comes."""


def _scratch() -> memoryview:
    return memoryview(bytearray(SCRATCH_BYTES))


@dataclass
class Shared:
    """What all connections of a server count together, in its loop's thread."""

    options: ServeOptions
    scratch: memoryview = field(default_factory=_scratch)
    """What was read is parsed before the next connection reads."""
    released: deque[int] = field(default_factory=deque)
    """Sizes of bodies that nobody uses any more; any thread may be the last to use one."""
    refused: int = 0
    """Requests that were no HTTP, too slow, too large, or one too many."""
    _held_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Bodies in memory."""
        while self.released:
            self._held_bytes -= self.released.popleft()
        return self._held_bytes

    def hold(self, size: int) -> bool:
        """Count a body, or a part of one, if there is room for it."""
        if self.held_bytes + size > self.options.most_held_bytes:
            return False
        self._held_bytes += size
        return True


class RefusedError(Exception):
    """Ends a connection, also from within the parser, with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    @property
    def response(self) -> bytes:
        """What is sent before the connection is closed."""
        body = b'{"error":"%s"}' % self.sentence.encode()
        headers = b"content-type: application/json\r\nconnection: close\r\n"
        length = b"content-length: %d\r\n\r\n" % len(body)
        return STATUS_LINE[self.status] + headers + length + body
