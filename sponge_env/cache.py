"""Where this machine keeps what is made once: exported models and its own profile."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder, ``$XDG_CACHE_HOME/sponge-env`` or ``~/.cache/sponge-env``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sponge-env"


def local_profile_path() -> Path:
    """Return where the calibration of this machine is kept."""
    return cache_dir() / "profiles" / "local.json"
