"""The body of an HTTP request, read within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import Buffer

WholeBody = Buffer
EXTENSION = "sponge.whole_body"
"""Name of the ASGI extension by which our own HTTP protocol hands a body over in one piece."""
BEGAN = "sponge.began_s"
"""Name of the one that says when its first byte came, on the monotonic clock."""
CHUNKS = "sponge.chunks"
"""Name of the one that counts a body that comes in pieces, until they are put together."""
GONE = "sponge.gone"
"""Name of the one that has a future, which is done once the client has gone away."""


async def read_body(
    scope: Mapping[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], most_bytes: int
) -> WholeBody | None:
    """Return a request's body, or None if the client went away; a larger one is a WireError."""
    refuse_larger(dict(scope["headers"]).get(b"content-length", b"0"), most_bytes)
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        more = message.get("more_body", False)
        if size > most_bytes:
            raise too_large(most_bytes)
    extensions = scope.get("extensions") or {}
    whole: WholeBody | None = extensions.get(EXTENSION)
    body = b"".join(chunks) if whole is None else whole
    extensions.pop(CHUNKS, None)
    return body


def refuse_larger(length: bytes, most_bytes: int) -> None:
    """Raise a WireError if a Content-Length says that a body is too large."""
    if not length.isdigit() or len(length) > 18 or int(length) > most_bytes:
        raise too_large(most_bytes)


def too_large(most_bytes: int) -> WireError:
    """Return the error of a body that is too large."""
    return WireError(f"a request has at most {most_bytes} bytes", 413)
