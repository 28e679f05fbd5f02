"""Files that appear whole or not at all, and the folder for what is made once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sponge_env.errors import RunDirectoryError


def cache_dir() -> Path:
    """Return the cache folder, ``$XDG_CACHE_HOME/sponge-env`` or ``~/.cache/sponge-env``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sponge-env"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a partial name to write to; rename it to ``path`` when that went well.

    A path such as ``/dev/stdout`` is no file that could be replaced and is written to directly.
    Like all here it raises a :class:`RunDirectoryError` where the file cannot be written.
    """
    with saying_why(path):
        if path.exists() and not path.is_file():
            yield path
            return
        file = path.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        try:
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all; folders above the file are made.

    What JSON cannot hold is written as text, but a number that is not finite is a
    ``ValueError``. Without ``indent`` all is in one line, for long lists of numbers.
    """
    text = json.dumps(data, indent=indent, allow_nan=False, default=str) + "\n"
    with replacing(path) as partial:
        partial.write_text(text)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; anything else is a :class:`RunDirectoryError`."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{str(path)!r} holds no JSON object")
    return data


def check_writable(path: Path) -> None:
    """Notice now that a file cannot be written, before the work that is to fill it."""
    with saying_why(path):
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.exists():
            path.open("a").close()
        else:
            trial = path.with_name(path.name + ".check")
            with replacing(trial) as partial:
                partial.touch()
            trial.unlink()


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
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
