"""Tensors of the Open Inference Protocol: datatypes, and arrays from bytes and from JSON."""

import math
import reprlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.models.model import TEXT, TEXT_BYTES, TensorSpec
from sponge_env.serve.interface import Status
from sponge_env.serve.wire.outcomes import WireError

Buffer = bytes | bytearray | memoryview

_INTEGERS = [f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)]
_NUMPY = ("bool", *_INTEGERS, "float16", "float32", "float64")
DATATYPES = {dtype: dtype.upper().replace("FLOAT", "FP") for dtype in _NUMPY}
"""The protocol's name of each NumPy type."""
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()} | {"BYTES": TEXT}
"""NumPy's name of each of the protocol's types that have one."""
_KINDS: dict[str, tuple[type, ...]] = {"b": (bool,), "f": (float, int), "S": (str, bytes)}
"""Python's types of the values in JSON, or of a gRPC message, where not integers only."""
MAX_TEXTS = 1 << 13  # Of a request, which take 32 MB
LENGTH_BYTES = 4  # Before each text in a tensor of BYTES, little-endian


@cache  # for NumPy takes 10 us to find a name
def datatype(dtype: str | np.dtype[Any]) -> str:
    """Return the protocol's name of a NumPy type."""
    dtype = np.dtype(dtype)
    return "BYTES" if dtype.kind == "S" else DATATYPES[dtype.name]


def check_rows(shape: object, kind: object, spec: TensorSpec, max_rows: int) -> int:
    """Return the rows of a tensor as a client describes it; a wrong one is a ``WireError``."""
    if kind != datatype(spec.dtype):
        raise WireError(f"{spec.name!r} has the datatype {datatype(spec.dtype)}, not {brief(kind)}")
    expected = f"[N, {', '.join(map(str, spec.shape))}]" if spec.shape else "[N]"
    if not (isinstance(shape, Sequence) and all(type(size) is int for size in shape)):
        raise WireError(f"the shape of {spec.name!r} must be {expected}, not {brief(shape)}")
    if len(shape) == 0 or tuple(shape[1:]) != spec.shape:
        raise WireError(f"the shape of {spec.name!r} must be {expected}, not {brief(list(shape))}")
    if not 1 <= shape[0] <= max_rows:
        raise WireError(f"a request has 1 to {max_rows} rows, not {brief(shape[0])}")
    return int(shape[0])


def from_bytes(data: Buffer, rows: int, spec: TensorSpec) -> NDArray[Any]:
    """Return a (rows, *spec.shape) view on the bytes, a copy of texts; else a WireError."""
    count = rows * math.prod(spec.shape)
    if spec.element.kind == "S":
        return _texts(_split(data, count, spec.name), rows, spec)
    if len(data) != (needed := count * spec.element.itemsize):
        raise WireError(f"{spec.name!r} needs {needed} bytes, not {len(data)}")
    # the protocol is little-endian, and so is every machine that this runs on
    array = np.frombuffer(data, spec.element).reshape(rows, *spec.shape)
    if array.dtype.kind == "b" and array.view(np.uint8).max() > 1:
        raise WireError(f"{spec.name!r} holds bytes that are neither 0 nor 1")
    return array


def from_values(data: object, rows: int, spec: TensorSpec) -> NDArray[Any]:
    """Make a (rows, *spec.shape) array of JSON's values, flat in row-major order or nested."""
    name = spec.name
    if not isinstance(data, list):
        raise WireError(f"the data of {name!r} must be a list of values, not {brief(data)}")
    shape, dtype = (rows, *spec.shape), spec.element
    needed = math.prod(shape)
    if len(data) not in (rows, needed):  # before any conversion, which takes 50 ns for each number
        text = f"needs {needed} values, or {rows} rows of them, not {len(data)}"
        raise WireError(f"{name!r} {text}")
    # as objects: any other type would read "1" as a number, or reserve the longest text for each
    try:
        array = np.array(data, object)
    except (ValueError, RecursionError):
        raise WireError(f"the data of {name!r} is no regular list of values") from None
    if array.size != needed:
        raise WireError(f"{name!r} needs {needed} values, not {array.size}")
    if array.ndim != 1 and array.shape != shape:
        raise WireError(f"the data of {name!r} is neither flat nor nested as its shape says")
    if not set(_KINDS.get(dtype.kind, (int,))).issuperset(map(type, array.flat)):
        raise WireError(f"the data of {name!r} must be values of {datatype(dtype)}")
    if dtype.kind == "S":
        return _texts([t.encode() if isinstance(t, str) else t for t in array.flat], rows, spec)
    try:
        with np.errstate(over="raise"):
            return array.reshape(shape).astype(dtype)
    except ArithmeticError:
        raise WireError(f"a number in {name!r} does not fit {datatype(dtype)}") from None


def _split(data: Buffer, count: int, name: str) -> list[bytes]:
    """Return the texts in the bytes of a tensor."""
    texts, end = [], 0
    for _ in range(count):
        begin = end + LENGTH_BYTES
        end = begin + int.from_bytes(data[end:begin], "little")
        texts.append(bytes(data[begin:end]))
    if end != len(data):
        raise WireError(f"{name!r} needs {count} texts, each after its length in four bytes")
    return texts


def _texts(texts: list[bytes], rows: int, spec: TensorSpec) -> NDArray[Any]:
    if any(len(text) > TEXT_BYTES or b"\0" in text for text in texts):
        rule = f"has at most {TEXT_BYTES} bytes, and none of them is zero"
        raise WireError(f"a text in {spec.name!r} {rule}")
    if len(texts) > MAX_TEXTS:  # each takes the room of the longest
        raise WireError(f"a request has at most {MAX_TEXTS} texts, not {len(texts)}", 413)
    array = np.empty((rows, *spec.shape), TEXT)
    array.reshape(-1)[:] = texts
    return array


def to_bytes(array: NDArray[Any]) -> bytes:
    """Return the bytes of a tensor in the protocol."""
    if array.dtype.kind != "S":
        return array.tobytes()
    texts = array.reshape(-1).tolist()
    return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)


def to_values(array: NDArray[Any], name: str) -> Any:
    """Return the values of a tensor, flat, for JSON; what JSON cannot say is a WireError."""
    flat = np.ascontiguousarray(array.reshape(-1))
    try:
        if is_finite(flat):
            return [t.decode() for t in flat.tolist()] if flat.dtype.kind == "S" else flat
        what = "NaN or infinity"
    except UnicodeDecodeError:
        what = "bytes that are no UTF-8"
    text = f"{name!r} holds {what}, which JSON cannot say; request it with binary_data"
    raise WireError(text, ended=Status.ANSWERED)


def is_finite(rows: NDArray[Any]) -> bool:
    """Return whether there is neither NaN nor infinity; 15 us for 600 KB of FP32."""
    if rows.dtype.names:
        return all(is_finite(rows[name]) for name in rows.dtype.names)
    return rows.dtype.kind != "f" or bool(np.isfinite(rows).all())


_REPR = reprlib.Repr()  # Looks at no more than the beginning of what is long or deep
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 4, 4, 60


def brief(value: object) -> str:
    """Return what a client sent, short enough for a sentence."""
    text = _REPR.repr(value.decode("latin-1") if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
