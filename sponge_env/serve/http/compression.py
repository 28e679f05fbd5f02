"""Bodies that are compressed, within bounds."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence

from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import Buffer, shown

_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
FAST = 1
"""Level of compression: tensors hardly shrink more at higher ones."""


def decompressed(body: Buffer, encoding: str, most_bytes: int) -> Buffer:
    """Return what a body was before it was compressed, or raise a WireError.

    No more than ``most_bytes`` are ever unpacked, whatever a small body claims to hold.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise WireError(f"Content-Encoding must be gzip or deflate, not {shown(encoding)}", 415)
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        unpacked = unpacker.decompress(body, most_bytes + 1)
    except zlib.error:
        raise WireError(f"the body is no {encoding}") from None
    if len(unpacked) > most_bytes:
        raise WireError(f"the body has more than {most_bytes} bytes unpacked", 413)
    if not unpacker.eof or unpacker.unused_data:
        raise WireError(f"the body is no complete {encoding}")
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


def compressed(parts: Sequence[bytes], encoding: str) -> bytes:
    """Return a body in an encoding."""
    body = b"".join(parts)
    if encoding == "gzip":
        return gzip.compress(body, FAST, mtime=0)
    return zlib.compress(body, FAST)
