"""The CPUs of the real worker: replicas are pinned to them, and nothing else runs there meanwhile.

The other threads of this process keep off them. Other processes that serve live are kept off by a
locked file for each CPU, which the kernel unlocks when its holder ends, however that happens.
"""

import contextlib
import fcntl
import logging
import math
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from sponge_env.errors import ConfigError, WorkerError

LOG = logging.getLogger("sponge_env")

_SHARED = Path("/run/lock")
LOCK_FOLDER = _SHARED if _SHARED.is_dir() and _SHARED.stat().st_mode & 2 else Path("/tmp")
"""One that every user may write to: the same for all users and sessions, as a CPU is."""


def choose_cpus(cores: float) -> frozenset[int]:
    """Choose the CPUs that replicas are pinned to; too few are a :class:`ConfigError`."""
    # The last that this process may use: workers of one process share them.
    cpus = sorted(RESERVATIONS.available())[-math.ceil(cores) :]
    if cores > len(cpus):
        raise ConfigError(
            f"a replica may be granted {cores:g} cores, more than the {len(cpus)} CPUs it can "
            "run on; choose fewer or smaller core units"
        )
    return frozenset(cpus)


def prepare_cpus(wait: bool, cpus: frozenset[int] | None) -> None:
    """Wait for CPUs that another process has, and keep to some; both where asked for."""
    # CPUs that this process may not use are a ConfigError.
    RESERVATIONS.patient |= wait
    if not cpus:
        return
    if others := sorted(cpus - os.sched_getaffinity(0)):
        allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigError(f"--cpus names CPU {others[0]}, but this process may use {allowed}")
    for thread in affinities():
        move(thread, cpus)


def affinities() -> dict[int, set[int]]:
    """Return the CPUs that each thread of this process may use."""
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it may end meanwhile
            found[thread] = os.sched_getaffinity(thread)
    return found


def move(thread: int, cpus: Iterable[int]) -> None:
    """Have a thread, if it is still there, run on some CPUs."""
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cpus)


class Reservations:
    """The CPUs of all workers that this process has open; they may end in any order."""

    def __init__(self) -> None:
        self.patient = False  # Whether to wait for a CPU that another process has, or to refuse
        self._locks: dict[int, FileIO | None] = {}
        self._lock = threading.Lock()
        self._reserved: list[frozenset[int]] = []
        self._before: set[int] = set()  # What this thread could use before any CPU was reserved
        self._pinned: dict[int, set[int]] = {}  # What each thread that was there could use then

    def available(self) -> set[int]:
        """Return the CPUs this process may use when it keeps off none."""
        with self._lock:
            return self._before if self._reserved else os.sched_getaffinity(0)

    @contextmanager
    def keep_off(self, cpus: frozenset[int]) -> Iterator[None]:
        """Keep this process's threads, if it has other CPUs, off some until the block ends."""
        # A CPU that another process has is a WorkerError, unless this one is patient.
        with self._lock:
            if not self._reserved:
                self._before, self._pinned = os.sched_getaffinity(0), affinities()
            self._reserved.append(cpus)
            try:
                for cpu in sorted(cpus - self._locks.keys()):  # all in one order: no deadlock
                    self._locks[cpu] = lock_cpu(cpu, self.patient)
            except BaseException:
                self._let_go(cpus)
                raise
            self._move_threads()
        try:
            yield
        finally:
            with self._lock:
                self._let_go(cpus)
                self._move_threads()

    def _let_go(self, cpus: frozenset[int]) -> None:
        self._reserved.remove(cpus)
        for cpu in self._locks.keys() - frozenset[int]().union(*self._reserved):
            if (lock := self._locks.pop(cpu)) is not None:
                lock.close()

    def _move_threads(self) -> None:
        for thread in affinities():
            own = self._pinned.get(thread, self._before)
            others = (each.difference(*self._reserved) for each in (own, self._before))
            move(thread, next(filter(None, others), own))


RESERVATIONS = Reservations()  # One for the process, as affinity is the process's


def lock_cpu(cpu: int, wait: bool) -> FileIO | None:
    """Lock a CPU until the returned file is closed or this process ends."""
    # A CPU that another process has is waited for, with a warning, or a WorkerError. Where no file
    # can be made there is no lock, which is a warning.
    path = LOCK_FOLDER / f"sponge-env-cpu-{cpu}"
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        if not path.exists():
            # in such a folder the kernel lets users create, but not "create or open" others' files
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)
                os.close(descriptor)
        lock = open(os.open(path, flags), "r+b", buffering=0)  # noqa: SIM115
        found = os.fstat(lock.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:  # others may write there, too
            lock.close()
            raise OSError(f"{path} is no file of its own; remove it")
    except OSError as error:
        LOG.warning("another live run on CPU %d would go unnoticed: %s", cpu, error)
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(20).decode(errors="replace").strip()
            holder = holder if holder.isdecimal() else "(?)"
            message = f"CPU {cpu} is in use by the live run of process {holder}"
            if not wait:
                raise WorkerError(
                    f"{message}; run this when that has ended, or with --wait, which does so by "
                    "itself, or run each on CPUs of its own (--cpus)"
                ) from None
            LOG.warning("%s; waiting until it has ended", message)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate(0)
        with contextlib.suppress(OSError):  # the disk is full
            lock.write(f"{os.getpid()}\n".encode())
        undo.pop_all()
    return lock
