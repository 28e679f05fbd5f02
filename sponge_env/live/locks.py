"""One live run at a time on a CPU: a locked file for each, which dies with whoever holds it."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from sponge_env.errors import WorkerError

LOG = logging.getLogger("sponge_env")

FOLDERS = (Path("/run/lock"), Path("/tmp"))
"""Where the files are, in the first of these that every user may write to: the same for all users
and sessions, as a CPU is."""


def lock_cpu(cpu: int, wait: bool) -> IO[str] | None:
    """Lock a CPU until what is returned is closed or this process ends.

    Where another process has it, that is waited for or a :class:`WorkerError`, and either names
    it. There is no lock where no file can be made for it, which is a warning.
    """
    try:
        file = _opened(f"sponge-env-cpu-{cpu}")
    except OSError as error:
        LOG.warning("another live run on CPU %d would go unnoticed: %s", cpu, error)
        return None
    lock = open(file, "r+")  # noqa: SIM115  # it stays open
    try:
        _take(lock, cpu, wait)
    except BaseException:
        lock.close()
        raise
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _opened(name: str) -> int:
    """Open a file that every user may lock, whoever made it first."""
    open_to_all = (f for f in FOLDERS if f.is_dir() and f.stat().st_mode & stat.S_IWOTH)
    path = next(open_to_all, FOLDERS[-1]) / name
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        with suppress(FileExistsError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(file, 0o666)
            return file


def _take(lock: IO[str], cpu: int, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = f"CPU {cpu} is in use by the live run of process {lock.read().strip() or '(?)'}"
        if not wait:
            raise WorkerError(
                f"{said}; run this when that has ended, or with --wait, which does so by itself"
            ) from None
        LOG.warning("%s; waiting until it has ended", said)
        fcntl.flock(lock, fcntl.LOCK_EX)
