"""The only use of numba, and records: rows of memory that compiled code sees as objects.

Every kernel is an ordinary function with types, decorated with :func:`compiled`, :func:`called`,
:func:`inlined` or :func:`entry_point`. Only entry points are kept on disk; what they call is
compiled into them. With ``NUMBA_DISABLE_JIT=1`` the decorators give the functions back as they
are, for debuggers and coverage; :func:`rows` then lets Python see records as objects, too.
"""

import copyreg
import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar, cast, get_origin, get_type_hints, overload

import numba
import numpy as np
from numba.core import event, ir
from numpy.typing import NDArray

from sponge_env.utils.kernel_cache import KeptCode, code_folder

_CONFIG: Any = numba.config

INTERPRETED = bool(_CONFIG.DISABLE_JIT)  # Whether kernels run as ordinary Python
CPUS = int(_CONFIG.NUMBA_NUM_THREADS)  # Threads that kernels may use at once

Function = TypeVar("Function", bound=Callable[..., Any])
Record = TypeVar("Record")

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Kernels never divide by zero, so nothing need be raised; and they never allocate, so numba need
not count references to arrays, which would take twice as long as all the rest."""

_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
"""Python never calls what is compiled into others; wrappers would add a third to compile time."""

_SCALARS = {int: np.int64, float: np.float64, bool: np.bool_}


class Records(Protocol[Record]):
    """(n,) array whose rows compiled code sees as objects, or as numbers."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records[Record]": ...

    def __setitem__(self, index: int, row: Record) -> None: ...


Position = Annotated[int, np.uint32]
"""A place in an array; unsigned, so that compiled code need not look for negative ones."""

Words = Annotated[Records[np.uint64], np.uint64, 4]  # (4,) state of a random stream


def compiled(function: Function) -> Function:
    """Compile a function into the compiled functions that call it.

    Floating-point operations stay in the order written: without ``fastmath``, results
    equal those of the interpreter bit for bit. A call costs nothing, however much it
    passes: the machine code becomes part of the caller's.
    """
    return cast(Function, numba.njit(forceinline=True, **_INNER)(function))


def called(function: Function) -> Function:
    """Compile a long function once for several callers; each call copies its arguments."""
    return cast(Function, numba.njit(**_INNER)(function))


def inlined(function: Function) -> Function:
    """Compile a function as a part of each caller's own source."""
    # For functions that return records, which no ordinary call can, and for those of a line or two
    # or with one caller: compiling those by themselves would make a first run a third longer.
    return cast(Function, numba.njit(inline="always", **_INNER)(function))


def entry_point(function: Function) -> Function:
    """Compile a function that Python calls; it releases the interpreter lock.

    The machine code is kept on disk for the next process; where that is not possible, every
    process compiles anew.
    """
    if INTERPRETED:
        # words overflow silently, as they do when compiled
        return np.errstate(all="ignore")(function)
    _COMPILING.modules.add(function.__module__)
    chosen = _CONFIG.CACHE_DIR
    folder = code_folder(function.__module__, chosen)
    if folder is None:
        return cast(Function, numba.njit(nogil=True, **_OPTIONS)(function))
    # numba itself compares the file of the function only; the folder stands for what it imports
    _CONFIG.CACHE_DIR = str(folder)
    try:
        dispatcher = numba.njit(nogil=True, cache=True, **_OPTIONS)(function)
    finally:
        _CONFIG.CACHE_DIR = chosen
    dispatcher._cache = KeptCode(dispatcher._cache, folder)
    return cast(Function, dispatcher)


class _Compiling(event.Listener):
    """Tells the user what the wait is for when an entry point is compiled, and makes it shorter.

    numba's inliner copies a function's scope, with all its variables, once for each block, though
    nothing changes it; that would be a quarter of the time that compiling takes. Here it is copied
    by reference, as ``copy`` does with what :mod:`copyreg` names by a text.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()  # Those of the entry points
        self._depth = 0

    def on_start(self, event: event.Event) -> None:
        """Begin to compile; numba's own lock is held meanwhile."""
        module = event.data["dispatcher"].py_func.__module__
        if module in self.modules:
            _say_compiling(".".join(module.split(".")[:2]))
        self._depth += module in self.modules
        if self._depth == 1:
            copyreg.pickle(ir.Scope, lambda scope: "scope")

    def on_end(self, event: event.Event) -> None:
        """End what was begun."""
        self._depth -= event.data["dispatcher"].py_func.__module__ in self.modules
        if self._depth == 0:
            copyreg.dispatch_table.pop(ir.Scope, None)


_COMPILING = _Compiling()
event.register("numba:compile", _COMPILING)


@functools.cache
def _say_compiling(package: str) -> None:
    sys.stderr.write(f"compiling {package}, once in this installation, up to a minute ...\n")


def rows(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of records in the form that kernels take it."""
    return array.view(np.recarray) if INTERPRETED and array.dtype.names else array


def dtype_of(cls: type[Any]) -> np.dtype[Any]:
    """Return the memory layout of a record that is declared as a class.

    Its annotations are the fields: ``int``, ``float``, ``bool``, another such class, or
    ``Annotated`` with the scalar's type and, for a short row of them, the length. What is none of
    these, such as a text, is left out.
    """
    fields: list[tuple[Any, ...]] = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            fields.append((name, *hint.__metadata__))
        elif hint in _SCALARS:
            fields.append((name, _SCALARS[hint]))
        elif get_origin(hint) is None and isinstance(hint, type) and get_type_hints(hint):
            fields.append((name, dtype_of(hint)))
        elif hint == float | None:
            fields.append((name, np.float64))
    return np.dtype(fields, align=True)
