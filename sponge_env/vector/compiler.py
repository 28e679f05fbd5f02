"""The door to numba, and records: rows of memory that compiled code sees as objects.

Every kernel is an ordinary function with types. Only the outermost ones, the entry
points, are kept on disk; what they call is compiled into them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Record = TypeVar("Record")

_CONSTANTS_FROM = (
    "bandwidth.py",
    "encoding.py",
    "network.py",
    "quota.py",
    "system.py",
    "serving/ledger.py",
    "workers/bucket.py",
)
"""Modules whose constants are part of the machine code."""

_SCALARS = {int: np.int64, float: np.float64, bool: np.bool_}


class Records(Protocol[Record]):
    """(n,) array whose rows compiled code sees as objects, or as numbers."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records[Record]: ...

    def __setitem__(self, index: int, row: Record) -> None: ...


_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Kernels never divide by zero, so that nothing need be raised; and they never allocate, so
that numba need not count who holds an array. Counting, with every call an atomic addition
for every array, takes twice as long as all the rest."""


def compiled(function: Function) -> Function:
    """Compile a function into the compiled functions that call it.

    Floating-point operations stay in the order written: without ``fastmath``, results
    equal those of the interpreter bit for bit. A call costs nothing, however much it
    passes: the machine code becomes part of the caller's.
    """
    return cast(Function, numba.njit(forceinline=True, **_OPTIONS)(function))


def inlined(function: Function) -> Function:
    """Compile a function that returns records, which no ordinary call can return."""
    return cast(Function, numba.njit(inline="always", **_OPTIONS)(function))


def entry_point(function: Function) -> Function:
    """Compile a function that Python calls; it lets go of the interpreter lock.

    The machine code is cached on disk, beside the source or in the user's cache
    directory; where neither can be written, every process compiles anew.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, **_OPTIONS)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True, **_OPTIONS)(function))


def dtype_of(cls: type[Any], *marks: str) -> np.dtype[Any]:
    """Return the memory layout of a record that is declared as a class.

    Args:
        cls: Its annotations are the fields: ``int``, ``float``, ``bool``, or
            ``Annotated`` with the scalar's type and, for a short row of them, the length.
        marks: Names of empty-handed extra fields; they make the type another type.
    """
    fields: list[tuple[Any, ...]] = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            fields.append((name, *get_args(hint)[1:]))
        else:
            fields.append((name, _SCALARS[hint]))
    return np.dtype([*fields, *((mark, np.bool_) for mark in marks)], align=True)


def sources_mark() -> str:
    """Return a field name that changes with the sources that kernels are made of.

    numba's cache on disk looks at the file of an entry point only. A record that carries
    this mark makes it look at all of them, for the record's type is part of the key.
    """
    package = Path(__file__).parent.parent
    paths = [*(package / name for name in _CONSTANTS_FROM), *(package / "vector").rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return f"sources_{digest.hexdigest()[:12]}"


Position = Annotated[int, np.uint32]
"""A place in an array. Being unsigned it never counts from the end, which compiled code
would have to ask at every access."""

Words = Annotated[Records[np.uint64], np.uint64, 4]
"""(4,) state of a random stream."""
