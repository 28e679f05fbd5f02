"""Where machine code is kept: in a folder that is named after all the sources it was made from.

Every constant that a kernel reads comes in by an import, so the text of a module and of all that it
imports from its project stands for all that its machine code depends on.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sponge_env.utils.files import cache_dir

LOG = logging.getLogger("sponge_env")

_IMPORT = re.compile(r"(?m)^(?:from (\S+) )?import (\((?:[^)#]|#[^\n]*)*\)|(?:[^\n\\]|\\\n)*)")
"""An import at the top level of a module; in brackets it may have comments."""
_COMMENT = re.compile(r"#[^\n]*")
_OWN_PACKAGES = {"sponge_env", "agents", "baselines"}  # This project's, which kernels may import


@functools.cache
def code_folder(module: str, chosen: str = "") -> Path | None:
    """Return the folder for a module's machine code; None, with a warning, if there is none."""
    # It lies in the ``chosen`` folder or else beside the source, where the code of older sources is
    # removed, or in the user's cache. That begins with what lies where nothing can be written, as
    # in an image: numba itself reads only where it can write.
    files = sources(module)
    if module not in files:  # it was typed in
        return None
    beside, name = files[module].parent / "__pycache__", f"{module}-{source_mark(module)[:16]}"
    shipped = None
    for base in (Path(chosen) if chosen else beside, cache_dir() / "kernels"):
        try:
            if shipped and not (base / name).exists():
                shutil.copytree(shipped, base / name)
            (base / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = str(error)
            continue
        if os.access(base / name, os.W_OK):
            for old in beside.glob(f"{module}-*") if base == beside else ():
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
            return base / name
        shipped, reason = base / name, f"{base / name} is read-only"
    _warn_once(reason)
    return None


class KeptCode:
    """numba's cache of an entry point; neither damage nor a full disk is an error."""

    def __init__(self, cache: Any, folder: Path) -> None:
        """Wrap the cache of a dispatcher that keeps its files in this folder."""
        self._cache, self._folder = cache, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return compiled code, or None where there is none that can be read."""
        try:
            return self._cache.load_overload(signature, context)
        except Exception as error:  # whatever a damaged pickle raises
            LOG.warning("code in %s cannot be read and is made anew: %s", self._folder, error)
            for file in self._folder.rglob("*.nb[ic]"):
                file.unlink(missing_ok=True)
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep compiled code."""
        try:
            self._cache.save_overload(signature, data)
        except OSError as error:
            _warn_once(str(error))


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
    roots = {module.partition(".")[0], *_OWN_PACKAGES}
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
        plain = _COMMENT.sub("", imported).replace("\\\n", " ").strip("() \n")
        words = [each.split()[0] for each in plain.split(",") if each.strip()]
        if source:
            source = importlib.util.resolve_name(source, package)
            words = [source, *(f"{source}.{word}" for word in words)]
        names += words
    return tuple(names)
