"""CPU affinity: the replicas get their CPUs, the harness keeps off them."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sponge_env.errors import ConfigError


def choose_cpus(wanted: Collection[int], cores: float) -> frozenset[int]:
    """Choose the CPUs that replicas are pinned to.

    Workers of one process share CPUs, unless they are told which to take.

    Args:
        wanted: The CPUs asked for; empty for as many as ``cores`` needs, taken from the
            end of those this process may use.
        cores: Physical cores that one replica may be granted.

    Raises:
        ConfigError: A CPU this process may not use, or fewer of them than cores.
    """
    available = RESERVATIONS.available()
    if not available.issuperset(wanted):
        raise ConfigError(f"cpus must be among {sorted(available)}, not {sorted(wanted)}")
    chosen = wanted or sorted(available)[-math.ceil(cores) :]
    if cores > len(chosen):
        raise ConfigError(
            f"a replica may be granted {cores:g} cores, more than the {len(chosen)} CPUs it can "
            "run on; lower cores_max or core_unit"
        )
    return frozenset(chosen)


class Reservations:
    """The CPUs of all workers that this process has open, in any order.

    Meanwhile every thread of the process keeps off them, if it may use any others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: list[frozenset[int]] = []
        self._process: set[int] = set()
        self._threads: dict[int, set[int]] = {}
        """What the process and its threads could use before any CPU was taken."""

    def available(self) -> set[int]:
        """Return the CPUs this process may use when it keeps off none."""
        with self._lock:
            return self._process if self._taken else os.sched_getaffinity(0)

    @contextmanager
    def keep_off(self, cpus: frozenset[int]) -> Iterator[None]:
        """Move all threads of this process off some CPUs until the end of the block."""
        with self._lock:
            if not self._taken:
                self._process, self._threads = os.sched_getaffinity(0), _affinities()
            self._taken.append(cpus)
            self._move_threads()
        try:
            yield
        finally:
            with self._lock:
                self._taken.remove(cpus)
                self._move_threads()

    def _move_threads(self) -> None:
        taken = frozenset[int]().union(*self._taken)
        for thread in _affinities():
            # a younger thread has its affinity from one that was moved already
            before = self._threads.get(thread, self._process)
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, before - taken or before)


RESERVATIONS = Reservations()
"""One for the process, as affinity is the process's."""


def _affinities() -> dict[int, set[int]]:
    """Return the CPUs that each thread of this process may use."""
    affinities = {}
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
            affinities[int(name)] = os.sched_getaffinity(int(name))
    return affinities
