"""What the HTTP connections of a server share, and how one of them is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sponge_env.serve.memory import Memory
from sponge_env.serve.options import ServeOptions

SCRATCH_BYTES = 2**16
"""Read at once where nothing is known of what comes."""


def _scratch() -> memoryview:
    return memoryview(bytearray(SCRATCH_BYTES))


@dataclass
class Shared:
    """What all connections of a server count together, in its loop's thread."""

    options: ServeOptions
    memory: Memory
    rejected: Callable[[int], None]
    """Counts a request that was no HTTP, too slow, too large, or one too many, by its status."""
    scratch: memoryview = field(default_factory=_scratch)
    """What was read is parsed before the next connection reads."""


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
        if self.status == 503:
            headers += b"retry-after: 1\r\n"
        length = b"content-length: %d\r\n\r\n" % len(body)
        return STATUS_LINE[self.status] + headers + length + body
