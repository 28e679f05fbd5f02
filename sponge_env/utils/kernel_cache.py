"""Where machine code is kept: in a folder that is named after all the sources it was made from.

Every constant that a kernel reads comes in by an import, so the text of a module and of all that it
imports from its project stands for all that its machine code depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from sponge_env.utils.files import cache_dir

LOG = logging.getLogger("sponge_env")

_IMPORT = re.compile(r"^(?:from (\S+) )?import (\([^)]*\)|.*)$", re.MULTILINE)
"""An import at the top level of a module."""


@functools.cache
def code_folder(module: str, chosen: str = "") -> Path | None:
    """Return the folder for the machine code of a module; None, with a warning, if there is none.

    It lies in the ``chosen`` folder or else beside the source, where the code of older sources is
    removed, or in the user's cache. Files in it that are damaged are removed with a warning.
    """
    files = sources(module)
    if module not in files:  # it was typed in
        return None
    beside = files[module].parent / "__pycache__"
    name = f"{module}-{source_mark(module)[:16]}"
    for base in (Path(chosen) if chosen else beside, cache_dir() / "kernels"):
        try:
            (base / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = str(error)
            continue
        if os.access(base / name, os.W_OK):
            for old in beside.glob(f"{module}-*") if base == beside else ():
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
            _remove_damaged(base / name)
            return base / name
        reason = f"{base / name} is read-only"
    _warn_once(reason)
    return None


def _remove_damaged(folder: Path) -> None:
    """Remove files that were not written to their end, as when the power fails."""
    for file in folder.rglob("*.nb[ic]"):
        with suppress(FileNotFoundError):  # another process may remove what is older
            if not file.read_bytes().endswith(b"."):  # as every pickle does
                LOG.warning("%s is damaged and is made anew", file)
                file.unlink()


@functools.cache
def _warn_once(reason: str) -> None:
    LOG.warning("compiled code cannot be kept (%s)", reason)


@functools.cache
def source_mark(module: str) -> str:
    """Return a hash of the sources of a module and of all that it imports from its project."""
    digest = hashlib.sha256()
    for _, file in sorted(sources(module).items()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def sources(module: str) -> dict[str, Path]:
    """Return the files of a module and of all that it imports from its project, by name."""
    roots = {module.partition(".")[0], __name__.partition(".")[0]}
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in files and name.partition(".")[0] in roots and (file := _file(name)):
            files[name] = file
            waiting.extend(_imports(name, file))
    return files


@functools.cache
def _file(module: str) -> Path | None:
    """Return the source file of a module that is imported, or of one in an imported package."""
    top, *rest = module.split(".")
    imported = sys.modules.get(top)
    alone = getattr(imported, "__file__", None)
    if alone and not hasattr(imported, "__path__"):
        return Path(alone)
    for folder in getattr(imported, "__path__", ()):
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.parent / f"{path.name}.py"):
            if file.is_file():
                return file
    return None


@functools.cache
def _imports(module: str, file: Path) -> tuple[str, ...]:
    """Return the names that a file imports at its top level, as if all were modules."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for source, imported in _IMPORT.findall(file.read_text()):
        words = [each.split()[0] for each in imported.strip("()").split(",") if each.strip()]
        if source:
            source = importlib.util.resolve_name(source, package)
            words = [source, *(f"{source}.{word}" for word in words)]
        names += words
    return tuple(names)
