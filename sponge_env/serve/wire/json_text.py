"""The JSON of a request: how large it may be, how much memory it takes, and how it is read."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sponge_env.serve.interface import Served
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import Buffer, shown

HEAD_BYTES = 2**16
"""Of JSON beside numbers: names, parameters and outputs of a request."""
MOST_OBJECTS = 1000
"""Of JSON: tensors and parameters; each takes 30 times the memory of its text, and longest."""
NUMBER_BYTES = 32
"""Of a number in JSON, with what separates it from the next; the longest FP64 takes 24."""


def check_json_size(size: int, body_size: int, served: Served, options: ServeOptions) -> None:
    """Raise a WireError if the JSON of a body is larger than a request to this model can need."""
    most, where = HEAD_BYTES, "before binary tensors"
    if size == body_size:
        numbers = options.most_rows * math.prod(served.inputs.shape)
        most, where = HEAD_BYTES + NUMBER_BYTES * numbers, "of a request"
    if size > most:
        raise WireError(f"the JSON {where} has at most {most} bytes", 413)


def _object_bytes() -> NDArray[np.uint8]:
    """Return what each byte of JSON stands for in memory, in bytes: (256,).

    A value comes after a comma or a bracket: 16 bytes while it is parsed, up to 32 as a number, and
    two pointers. An empty list takes 72 bytes more, a dictionary with one key 200, each other key
    100, a text 49 (in two quotation marks). The parser copies all, and a character of a text takes
    4 bytes if another one in it is beyond the Basic Multilingual Plane.
    """
    table = np.full(256, 6, np.uint8)
    for sign, size in {",": 64, "[": 160, "{": 255, ":": 100, '"': 32}.items():
        table[ord(sign)] = size
    return table


_OBJECT_BYTES = _object_bytes()


def object_bytes(text: Buffer) -> int:
    """Return how much memory it takes to read some JSON, at most; 2 ms for 1 MB.

    More objects than a request can need are a WireError.
    """
    signs = np.frombuffer(text, np.uint8)
    if np.count_nonzero(signs == ord("{")) > MOST_OBJECTS:
        raise WireError(f"the JSON of a request has at most {MOST_OBJECTS} objects", 413)
    return int(np.take(_OBJECT_BYTES, signs).sum())


def read_json(text: Buffer) -> dict[str, Any]:
    """Parse a JSON object; anything else is a WireError."""
    try:
        with _uncollected():
            found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WireError(f"this is no JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise WireError(f"the request must be a JSON object, not {shown(found)}")
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage: of many lists at once, all would be looked through again and again.

    That takes five times as long as to make them, and nothing else runs meanwhile.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
