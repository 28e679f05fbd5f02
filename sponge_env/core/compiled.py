"""The one door to numba, and records: rows of memory that compiled code sees as objects.

Every kernel is an ordinary function with types, decorated with :func:`compiled`,
:func:`inlined` or :func:`entry_point`. Only entry points are kept on disk; what they call is
compiled into them. With ``NUMBA_DISABLE_JIT=1`` the decorators give the functions back as they
are, for debuggers and coverage; :func:`rows` then lets Python see records as objects, too.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import logging
import pickle
import sys
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
from unittest.mock import patch

import numba
import numpy as np
from numba.core import ir
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numpy.typing import NDArray

LOG = logging.getLogger("sponge_env")

INTERPRETED = bool(getattr(numba.config, "DISABLE_JIT", False))
"""Whether kernels run as ordinary Python."""

CPUS = int(getattr(numba.config, "NUMBA_NUM_THREADS", 1))
"""Threads that kernels may use at once."""

Function = TypeVar("Function", bound=Callable[..., Any])
Record = TypeVar("Record")

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Kernels never divide by zero, so that nothing need be raised; and they never allocate, so
that numba need not count who holds an array. Counting, with every call an atomic addition
for every array, takes twice as long as all the rest."""

_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
"""Python never calls what is compiled into others; doors for it would take a quarter of the
time that compiling takes."""

_SCALARS = {int: np.int64, float: np.float64, bool: np.bool_}


class Records(Protocol[Record]):
    """(n,) array whose rows compiled code sees as objects, or as numbers."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records[Record]: ...

    def __setitem__(self, index: int, row: Record) -> None: ...


Position = Annotated[int, np.uint32]
"""A place in an array. Being unsigned it never counts from the end, which compiled code
would have to ask at every access."""

Words = Annotated[Records[np.uint64], np.uint64, 4]
"""(4,) state of a random stream."""


def compiled(function: Function) -> Function:
    """Compile a function into the compiled functions that call it.

    Floating-point operations stay in the order written: without ``fastmath``, results
    equal those of the interpreter bit for bit. A call costs nothing, however much it
    passes: the machine code becomes part of the caller's.
    """
    return cast(Function, numba.njit(forceinline=True, **_INNER)(function))


def inlined(function: Function) -> Function:
    """Compile a function as a part of each caller's own text.

    For what returns records, which no ordinary call can return, and for what is called from
    one place or takes a line or two: to compile those by themselves would add a third to the
    time that a first run takes.
    """
    return cast(Function, numba.njit(inline="always", **_INNER)(function))


def entry_point(function: Function) -> Function:
    """Compile a function that Python calls; it lets go of the interpreter lock.

    The machine code is cached on disk, beside the source or in the user's cache
    directory; where neither can be written, every process compiles anew.
    """
    if INTERPRETED:
        return _without_warnings(function)
    dispatcher = numba.njit(nogil=True, **_OPTIONS)(function)
    try:
        dispatcher._cache = _SourceCache(function)
    except RuntimeError as error:  # no directory that could be written
        _say_once("compiled code cannot be kept", str(error))
    dispatcher._compiler.compile = _sharing_scopes(dispatcher._compiler.compile)
    return cast(Function, dispatcher)


def _sharing_scopes(compile_: Callable[..., Any]) -> Callable[..., Any]:
    """Let numba's inliner copy a function's blocks without its scope, which nothing changes.

    It copies the scope, with all its variables, once for each block; that would be a quarter
    of the time that compiling takes. numba's own lock is held meanwhile.
    """

    @functools.wraps(compile_)
    def sharing(*args: Any) -> Any:
        with patch.object(ir.Scope, "__deepcopy__", lambda scope, _: scope, create=True):
            return compile_(*args)

    return sharing


def _without_warnings(function: Function) -> Function:
    """Let a function's words overflow silently, as they do when compiled."""

    @functools.wraps(function)
    def quiet(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return cast(Function, quiet)


def rows(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of records in the form that kernels take it."""
    return array.view(np.recarray) if INTERPRETED and array.dtype.names else array


def dtype_of(cls: type[Any]) -> np.dtype[Any]:
    """Return the memory layout of a record that is declared as a class.

    Args:
        cls: Its annotations are the fields: ``int``, ``float``, ``bool``, another such class,
            or ``Annotated`` with the scalar's type and, for a short row of them, the length.
            What is none of these, such as a text, is left out.
    """
    fields: list[tuple[Any, ...]] = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            fields.append((name, *get_args(hint)[1:]))
        elif hint in _SCALARS:
            fields.append((name, _SCALARS[hint]))
        elif get_origin(hint) is None and isinstance(hint, type) and get_type_hints(hint):
            fields.append((name, dtype_of(hint)))
        elif hint == float | None:
            fields.append((name, np.float64))
    return np.dtype(fields, align=True)


class _SourceCache(FunctionCache):
    """numba's cache of machine code, told apart by all sources that it was made from.

    numba looks at the file of an entry point only. What cannot be read is made anew, with a
    line of notice.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._module = function.__module__
        self._marked = False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was kept of a signature, or None."""
        self._mark()
        found = None
        try:
            found = super().load_overload(sig, target_context)
        except OSError as error:
            self._cannot_keep(error)
        except Exception as error:  # a damaged pickle may raise anything
            _say_once(f"{self._cache_path}: a damaged cache is made anew", repr(error))
            self._flush()
        if found is None:
            _say_compiling(_part(self._module))
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if that is possible."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self._cannot_keep(error)

    def _mark(self) -> None:
        """Name the sources in the index; only now all imports are done."""
        if not self._marked:
            base = self._impl.filename_base
            self._cache_file = _CheckedFile(self._cache_path, base, source_mark(self._module))
            self._marked = True

    def _flush(self) -> None:
        try:
            self._cache_file.flush()
        except OSError as error:
            self._cannot_keep(error)

    def _cannot_keep(self, error: OSError) -> None:
        _say_once(f"{self._cache_path}: compiled code cannot be kept", repr(error))


_SAID: set[str] = set()


def _say_once(what: str, why: str) -> None:
    """Give notice, but not for each of many entry points."""
    if what not in _SAID:
        _SAID.add(what)
        LOG.warning("%s (%s)", what, why)


@functools.cache
def _say_compiling(part: str) -> None:
    """Tell whoever waits why, once per process for each part."""
    sys.stderr.write(f"compiling {part}, once on this machine ...\n")


def _part(module: str) -> str:
    """Return what a module's kernels belong to, as a user knows it."""
    known = {"sponge_env.core": "the simulator", "sponge_env.oracle": "the bound's solver"}
    return known.get(".".join(module.split(".")[:2]), "a controller")


class _CheckedFile(IndexDataCacheFile):
    """Cache files that are not executed when a byte of them, or a source, has changed.

    numba writes the index first: when it is stopped before the machine code is there, the file
    that the index names may still be one of older sources. So the code's checksum covers them.
    """

    def _save_index(self, overloads: Any) -> None:
        self._write(self._index_path, self._dump((self._version, self._source_stamp, overloads)))

    def _load_index(self) -> Any:
        try:
            content = self._read(self._index_path)
        except FileNotFoundError:
            return {}
        version, stamp, overloads = pickle.loads(content)
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), self._dump(data), self._source_stamp)

    def _load_data(self, name: str) -> Any:
        return pickle.loads(self._read(self._data_path(name), self._source_stamp))

    def _write(self, path: str, content: bytes, mark: str = "") -> None:
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(mark.encode() + content).digest() + content)

    def _read(self, path: str, mark: str = "") -> bytes:
        content = Path(path).read_bytes()
        digest, content = content[:32], content[32:]
        if hashlib.sha256(mark.encode() + content).digest() != digest:
            raise ValueError(f"{Path(path).name} has changed since it was written")
        return content


@functools.cache
def source_mark(module: str) -> str:
    """Return a hash of a module's source and of all that it imports from this project.

    Every constant that a kernel reads comes in by an import, so this stands for all that its
    machine code depends on.

    Args:
        module: Its name; what it imports from its own top-level package counts as well.
    """
    found = sources(module)
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(found[name].read_bytes())
    return digest.hexdigest()


def sources(module: str) -> dict[str, Path]:
    """Return the files of a module and of all that it imports from this project, by name."""
    roots = {module.partition(".")[0], __name__.partition(".")[0]}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name.partition(".")[0] in roots and (path := _source(name)):
            found[name] = path
            waiting.extend(_imports(name, path))
    return found


def _source(module: str) -> Path | None:
    """Return a module's source file; None for what is no module, or has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a name within a module; __main__
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.cache
def _imports(module: str, path: Path) -> tuple[str, ...]:
    """Return the names that a source file imports at its top level, as if all were modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(names)
