"""Files that appear whole or not at all, are read within bounds, and folders of this user's."""

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sponge_env.errors import RunDirectoryError

MAX_BYTES = 500_000_000  # Of a file that is read whole, also after it was uncompressed
MAX_DEPTH = 50  # Levels of tables and lists within each other: nothing that is read here has ten
GZIP_MAGIC = b"\x1f\x8b"


def cache_dir() -> Path:
    """Return the cache folder, ``$XDG_CACHE_HOME/sponge-env`` or ``~/.cache/sponge-env``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sponge-env"


def read_all(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by their places in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_all(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder, each whole or not at all."""
    for name, content in files.items():
        with replacing(folder / name) as partial:
            data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
            partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a partial name to write to; rename it to ``path`` when that went well."""
    # A path such as ``/dev/stdout`` is no file that could be replaced and is written to directly.
    # Like all here it raises a RunDirectoryError where the file cannot be written.
    with explained(path):
        if path.exists() and not path.is_file():
            yield path
            return
        file = path.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.unlink(missing_ok=True)  # a link there would lead the writing elsewhere
        try:
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all; a number that is not finite is a ``ValueError``."""
    # What else JSON cannot hold is written as text. Without ``indent`` all is in one line.
    text = json.dumps(data, indent=indent, allow_nan=False, default=str) + "\n"
    with replacing(path) as partial:
        partial.write_text(text)


def read_bytes(path: Path) -> bytes:
    """Read a file, uncompressed if gzip compressed it, or raise ``OSError`` or ``ValueError``."""
    # Pipes and devices, which might never end, are none; and there may be at most MAX_BYTES.
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(0, "it is no regular file")
    if not status.st_size and path.is_file():
        return b""  # not read: the kernel's own files have no size, and some never end
    data, size = b"", status.st_size
    if size <= MAX_BYTES:
        with path.open("rb") as file:
            data = file.read(size)
    if data.startswith(GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as inside:
                data = inside.read(MAX_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise ValueError("it is not a text file, and its compression is damaged") from None
    if max(len(data), size) > MAX_BYTES:
        raise ValueError(f"it holds more than {MAX_BYTES / 1e6:g} MB")
    return data


def content_hash(value: Any) -> Any:
    """Return what stands for the content of a file that can be read; any other value as it is."""
    with suppress(OSError):
        if isinstance(value, str | Path) and os.path.isfile(value):
            if not os.path.getsize(value):  # see above
                return hashlib.sha256().hexdigest()
            with open(value, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return value


def read_text(path: Path) -> str:
    """Read a text file, as :func:`read_bytes` does."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not a text file (UTF-8)") from None


def parsed(parse: Callable[[str], Any], text: str) -> Any:
    """Parse text, or raise a ``ValueError``, also of what no file of ours holds."""
    # That is, more than MAX_DEPTH tables within each other, and whole numbers beyond floats.
    try:
        data = parse(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [data]
    for _ in range(MAX_DEPTH):
        if any(isinstance(each, int) and abs(each) > sys.float_info.max for each in level):
            raise ValueError("it has a whole number that is too large")
        inside = (list(each.values()) if isinstance(each, dict) else each for each in level)
        level = [e for part in inside if isinstance(part, list) for e in part]
    if level:
        raise ValueError("it is nested too deeply")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; anything else is a :class:`RunDirectoryError`."""
    try:
        data = parsed(json.loads, read_text(path))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{str(path)!r} holds no JSON object")
    return data


def check_writable(path: Path) -> None:
    """Notice now that a file cannot be written, before the work that is to fill it."""
    with explained(path):
        there = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if not there:
            path.unlink()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's ``OSError`` into a sentence for the user."""
    try:
        yield
    except RunDirectoryError:
        raise
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {str(path)!r}: {error.strerror or error}; "
            "choose a path that can be written"
        ) from error
