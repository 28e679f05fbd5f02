"""Tensors of the Open Inference Protocol: datatypes, and arrays from bytes and from JSON."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.models.model import TensorSpec
from sponge_env.serve.wire.outcomes import WireError

Buffer = bytes | bytearray | memoryview
INPUT = "input"
"""Name of the only tensor of a request."""

DATATYPES = {
    dtype: dtype.upper().replace("FLOAT", "FP")
    for dtype in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}
"""The protocol's name of each NumPy type."""
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
"""NumPy's name of each of the protocol's types that have one."""
_KINDS: dict[str, tuple[type, ...]] = {"b": (bool,), "f": (float, int)}
"""Python's types of the values in JSON, where not integers only."""


@cache  # for NumPy takes 10 us to find a name
def datatype(dtype: str | np.dtype[Any]) -> str:
    """Return the protocol's name of a NumPy type."""
    return DATATYPES[np.dtype(dtype).name]


def check_rows(shape: object, kind: object, spec: TensorSpec, max_rows: int) -> int:
    """Return the length of the batch axis of a (rows, *spec.shape) tensor that a client describes.

    Another datatype or shape, no row or too many are a :class:`WireError`.
    """
    if kind != datatype(spec.dtype):
        raise WireError(f"{INPUT!r} has the datatype {datatype(spec.dtype)}, not {brief(kind)}")
    expected = f"[N, {', '.join(map(str, spec.shape))}]" if spec.shape else "[N]"
    if not (isinstance(shape, Sequence) and all(type(size) is int for size in shape)):
        raise WireError(f"the shape of {INPUT!r} must be {expected}, not {brief(shape)}")
    if len(shape) == 0 or tuple(shape[1:]) != spec.shape:
        raise WireError(f"the shape of {INPUT!r} must be {expected}, not {brief(list(shape))}")
    if not 1 <= shape[0] <= max_rows:
        raise WireError(f"a request has 1 to {max_rows} rows, not {brief(shape[0])}")
    return int(shape[0])


def from_bytes(data: Buffer, rows: int, spec: TensorSpec) -> NDArray[Any]:
    """Return a (rows, *spec.shape) view on the bytes; other sizes and NaN are a WireError."""
    needed = rows * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    if len(data) != needed:
        raise WireError(f"{INPUT!r} needs {needed} bytes, not {len(data)}")
    # the protocol is little-endian, and so is every machine that this runs on
    return check_values(np.frombuffer(data, spec.dtype).reshape(rows, *spec.shape))


def from_numbers(data: object, rows: int, spec: TensorSpec) -> NDArray[Any]:
    """Make a (rows, *spec.shape) array of JSON's numbers, flat in row-major order or nested."""
    if not isinstance(data, list):
        raise WireError(f"the data of {INPUT!r} must be a list of numbers, not {brief(data)}")
    shape, dtype = (rows, *spec.shape), np.dtype(spec.dtype)
    needed = math.prod(shape)
    if len(data) not in (rows, needed):  # before any conversion, which takes 50 ns for each number
        text = f"needs {needed} numbers, or {rows} rows of them, not {len(data)}"
        raise WireError(f"{INPUT!r} {text}")
    # as objects: any other type would read "1" as a number, or reserve the longest text for each
    try:
        array = np.array(data, object)
    except (ValueError, RecursionError):
        raise WireError(f"the data of {INPUT!r} is no regular list of numbers") from None
    if array.size != needed:
        raise WireError(f"{INPUT!r} needs {needed} numbers, not {array.size}")
    if array.ndim != 1 and array.shape != shape:
        raise WireError(f"the data of {INPUT!r} is neither flat nor nested as its shape says")
    allowed = _KINDS.get(dtype.kind, (int,))
    if not set(allowed).issuperset(map(type, array.flat)):
        raise WireError(f"the data of {INPUT!r} must be values of {datatype(dtype)}")
    try:
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused next
            return check_values(array.reshape(shape).astype(dtype))
    except OverflowError:
        raise WireError(f"a number in {INPUT!r} does not fit {datatype(dtype)}") from None


def check_values(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array unless it holds NaN or infinity; 15 us for 600 KB of FP32."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise WireError(f"{INPUT!r} holds a number that is NaN or infinite")
    return array


_REPR = reprlib.Repr()
"""Looks at no more than the beginning of what is long or deep."""
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 4, 4, 60


def brief(value: object) -> str:
    """Return what a client sent, short enough for a sentence."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
