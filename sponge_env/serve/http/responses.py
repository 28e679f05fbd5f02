"""What is sent back over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from sponge_env.serve.wire.outcomes import WireError, error_body, retry_after_header

Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON = b"application/json"
BINARY = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def as_json(found: Any) -> Response:
    """Return a response that holds some plain values, or the one that it is already."""
    return found if isinstance(found, Response) else Response(orjson.dumps(found))


def as_error(error: WireError, headers: Mapping[bytes, bytes]) -> Response:
    """Return the response that tells a client what is wrong."""
    more = retry_after_header(error)
    if error.status == 401:
        more = (*more, (b"www-authenticate", b"Bearer"))
    if b"expect" in headers:  # it may never send the body that it announced
        more = (*more, (b"connection", b"close"))
    return Response(orjson.dumps(error_body(error)), error.status, JSON, more)


async def sent(response: Response, send: Send) -> None:
    """Send a response, if there is still somebody to take it."""
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
    ]
    with suppress(RuntimeError):  # it was closed just now, which the server does not know yet
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
