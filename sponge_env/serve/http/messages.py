"""HTTP requests as they arrive, responses as they are sent, and compressed bodies of both."""

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools
import numpy as np
import orjson

from sponge_env.serve.interface import Status
from sponge_env.serve.wire.inline import InlineFuture
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.resources import HeldBytes, MemoryLimit
from sponge_env.serve.wire.tensors import Buffer, brief

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"application/json"
BINARY = b"application/octet-stream"
HEAD = b"HTTP/1.1 %d %s\r\ndate: %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n"
PHRASES = {499: b"Cancelled"} | {status.value: status.phrase.encode() for status in HTTPStatus}
CLOSE = (b"connection", b"close")

_GZIP = zlib.MAX_WBITS | 16
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}
COMPRESSION_LEVEL = 1  # Tensors hardly shrink more at higher levels


class Request:
    """A request whose head has arrived; its body may still be on the way."""

    # A body of known size is read into its own buffer; chunks are appended to each other. Either
    # counts in the server's memory for as long as it is used.

    def __init__(self, began_s: float, client: tuple[str, int] | None) -> None:
        """Begin a request; ``began_s`` is the monotonic time of its first byte."""
        self.began_s, self.client = began_s, client
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.headers: dict[bytes, bytes] = {}  # By lower-case name; of repeated ones the last
        self.method = self.path = self.query = self.version = ""
        self.keep_alive, self.answered = False, False
        self.buffer: memoryview | None = None  # Of a body of known size; ``filled`` bytes are here
        self.filled = 0
        self._chunks = bytearray()
        self._held: HeldBytes | None = None
        self._body: Buffer = b""
        self._error: WireError | None = None
        self._whole = False
        self._arrived = InlineFuture()
        self._send_continue: Callable[[bytes], None] | None = None

    def end_head(self, parser: httptools.HttpRequestParser, send: Callable[[bytes], None]) -> None:
        """Read what the parser knows after the headers, or raise; ``send`` writes to the client."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.path = unquote(path) if "%" in path else path
        self.query = (url.query or b"").decode("latin-1")
        self.method, self.version = parser.get_method().decode(), parser.get_http_version()
        self.headers = dict(self.pairs)
        self.keep_alive = self.version != "1.0" and parser.should_keep_alive()
        if self.headers.get(b"expect", b"").lower() == b"100-continue" and self.version != "1.0":
            self._send_continue = send

    def allocate(self, size: int, memory: MemoryLimit) -> None:
        """Make the buffer of a body of known size; a WireError without memory for it."""
        memory.hold(size)
        array = np.empty(size, np.uint8)  # bytearray would write zeros first
        memory.release_with(array, size)
        self.buffer = array.data

    def add(self, part: bytes, memory: MemoryLimit, max_bytes: int) -> None:
        """Add a part of the body that the parser has seen; a WireError without memory for it."""
        if self.answered or self._error is not None:
            return
        if self.buffer is not None:
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            return
        self._held = self._held or HeldBytes(memory)
        self._held.add(len(part))
        self._chunks += part
        if len(self._chunks) > max_bytes:
            self.fail(too_large(max_bytes))

    @property
    def missing(self) -> int:
        """Bytes of the body that are still to come, where its size is known."""
        return 0 if self.buffer is None else len(self.buffer) - self.filled

    def complete(self) -> None:
        """Make the body available: all of it has arrived."""
        if self.buffer is not None:
            self._body = self.buffer
        elif self._held is not None:
            array = np.frombuffer(self._chunks, np.uint8)
            self._held.release_with(array)
            self._body = array.data
        self._whole = True

    def fail(self, error: WireError) -> None:
        """Raise this error where the body is awaited."""
        self._error, self._chunks, self._held = error, bytearray(), None
        self._whole = True

    def resume(self) -> None:
        """Resume the coroutine that awaits the body, if all of it is here."""
        if self._whole:
            self._arrived.set_result(None)

    def release(self) -> None:
        """Drop the body of a request that has been answered."""
        self.answered, self.buffer, self._body = True, None, b""
        self._chunks, self._held = bytearray(), None

    async def body(self) -> Buffer:
        """Return the body once it is complete; a WireError if it is too large."""
        if not self._whole:
            if self._send_continue is not None:
                self._send_continue(CONTINUE)
            await self._arrived
        if self._error is not None:
            raise self._error
        return self._body


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def head(self, close: bool) -> bytes:
        """Return status line and headers; ``close`` says that the connection ends with it."""
        more = (CLOSE,) if close and CLOSE not in self.headers else ()
        lines = b"".join(b"%s: %s\r\n" % pair for pair in self.headers + more)
        first = self.status, PHRASES[self.status], _date(int(time.time()))
        return HEAD % (*first, self.content_type, len(self.body), lines)


@lru_cache(maxsize=1)
def _date(unix_s: int) -> bytes:
    return formatdate(unix_s, usegmt=True).encode()


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response that holds plain values."""
    return Response(orjson.dumps(value), status)


def error_response(error: WireError, headers: Mapping[bytes, bytes]) -> Response:
    """Return the response that tells a client what is wrong with a request of these headers."""
    values: dict[str, object] = {"error": error.sentence}
    if error.ended is Status.REFUSED:
        values["retry_after_ms"] = round(error.retry_after_s * 1000, 3)
    extra = []
    if error.status == 503:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    if b"expect" in headers:  # it may never send the body that it announced
        extra.append(CLOSE)
    return Response(orjson.dumps(values), error.status, JSON, tuple(extra))


def too_large(max_bytes: int) -> WireError:
    """Return the error of a body that is too large."""
    return WireError(f"a request has at most {max_bytes} bytes", 413)


def decompress(body: Buffer, encoding: str, max_bytes: int) -> Buffer:
    """Return a body unpacked, never more than ``max_bytes`` of it, or raise a WireError."""
    if (encoding := encoding.strip().lower()) in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise WireError(f"Content-Encoding must be gzip or deflate, not {brief(encoding)}", 415)
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, max_bytes + 1)
    except zlib.error:
        raise WireError(f"the body is not {encoding}") from None
    if len(unpacked) > max_bytes:
        raise WireError(f"the body has more than {max_bytes} bytes unpacked", 413)
    if not unpacker.eof or unpacker.unused_data:
        raise WireError(f"the body is not one complete {encoding} stream")
    return unpacked


def accepted_encoding(accept: str) -> str:
    """Return gzip or deflate where a client accepts it, by ``Accept-Encoding``, else nothing."""
    qualities = {}
    for choice in accept.lower().split(","):
        name, _, quality = choice.partition(";")
        qualities[name.strip()] = quality.replace(" ", "").removeprefix("q=")
    for name in ("gzip", "deflate"):
        quality = qualities.get(name, qualities.get("*", "0"))
        if quality.rstrip("0.") or quality == "":  # neither 0 nor 0.000
            return name
    return ""


def compress(body: bytes, encoding: str) -> bytes:
    """Return a body in an encoding."""
    return zlib.compress(body, COMPRESSION_LEVEL, _WINDOW_BITS[encoding])
