"""What is sent back over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson

from sponge_env.serve.wire.outcomes import WireError, error_body, retry_after_header

JSON = b"application/json"
BINARY = b"application/octet-stream"
CLOSE = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def head(self, close: bool) -> bytes:
        """Return status line and headers; ``close`` says that the connection ends with it."""
        headers = [
            (b"date", _date(int(time.time()))),
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
            *([CLOSE] if close and CLOSE not in self.headers else ()),
        ]
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        phrase = HTTPStatus(self.status).phrase.encode() if self.status != 499 else b"Cancelled"
        return b"HTTP/1.1 %d %s\r\n%s\r\n" % (self.status, phrase, lines)


@lru_cache(maxsize=1)
def _date(unix_s: int) -> bytes:
    return formatdate(unix_s, usegmt=True).encode()


def as_json(found: Any) -> Response:
    """Return a response that holds some plain values, or the one that it is already."""
    return found if isinstance(found, Response) else Response(orjson.dumps(found))


def as_error(error: WireError, headers: Mapping[bytes, bytes]) -> Response:
    """Return the response that tells a client what is wrong."""
    more = retry_after_header(error)
    if error.status == 401:
        more = (*more, (b"www-authenticate", b"Bearer"))
    if b"expect" in headers:  # it may never send the body that it announced
        more = (*more, CLOSE)
    return Response(orjson.dumps(error_body(error)), error.status, JSON, more)
