"""CPU affinity: the replicas get their CPUs, the harness keeps off them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection

from sponge_env.errors import ConfigError


def choose_cpus(wanted: Collection[int], cores: float) -> frozenset[int]:
    """Choose the CPUs that replicas are pinned to.

    Args:
        wanted: The CPUs asked for; empty for as many as ``cores`` needs, taken from the
            end of those this process may use.
        cores: Physical cores that one replica may be granted.

    Raises:
        ConfigError: A CPU this process may not use, or fewer of them than cores.
    """
    available = os.sched_getaffinity(0)
    if not available.issuperset(wanted):
        raise ConfigError(f"cpus must be among {sorted(available)}, not {sorted(wanted)}")
    chosen = wanted or sorted(available)[-math.ceil(cores) :]
    if cores > len(chosen):
        raise ConfigError(
            f"a replica may be granted {cores:g} cores, more than the {len(chosen)} CPUs it can "
            "run on; lower cores_max or core_unit"
        )
    return frozenset(chosen)


class KeepOff:
    """Moves all threads of this process off some CPUs, if there are any others."""

    def __init__(self, cpus: frozenset[int]) -> None:
        self._before: dict[int, set[int]] = {}
        for name in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
                before = os.sched_getaffinity(int(name))
                if before - cpus:
                    os.sched_setaffinity(int(name), before - cpus)
                    self._before[int(name)] = before

    def restore(self) -> None:
        """Let the threads that are left run where they could before."""
        for thread, cpus in self._before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)
        self._before.clear()
