"""One live run at a time on a CPU: a locked file for each, which dies with whoever holds it."""

from __future__ import annotations

import fcntl
import logging
import os
from typing import IO

from sponge_env.errors import WorkerError
from sponge_env.files import runtime_dir

LOG = logging.getLogger("sponge_env")


def lock_cpu(cpu: int, wait: bool) -> IO[str] | None:
    """Lock a CPU until what is returned is closed or this process ends.

    Where another process has it, that is waited for or a :class:`WorkerError`, and either names
    it. There is no lock where no file can be made for it, which is a warning.
    """
    try:
        file = os.open(runtime_dir() / f"cpu-{cpu}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
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
