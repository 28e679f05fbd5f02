"""How the worker's CPU is limited: which means this machine allows, and one limiter each.

All limiters keep the kernel's rule of CPU bandwidth control: per period a replica may use
so many seconds of CPU at full speed; unused ones are lost. As many cores as CPUs means no quota
at all, since even a quota as long as the period throttles.
"""

import contextlib
import errno
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.live.cgroups import OutsideLimiter, RunGroup, find_hierarchy
from sponge_env.live.protocol import CpuLimiter
from sponge_env.scenario.config import Limiter

LOG = logging.getLogger("sponge_env")

_WARNED: list[str] = []  # Why it fell back to the duty cycle; a process warns of it once

QUOTA_FLOOR_S = 0.001  # Shortest quota the kernel accepts
PERIOD_STEP_S = 0.010  # Shortest period, and the step between periods: shorter ones cost switches
PERIOD_MAX_S = 1.0  # Longest period the kernel accepts
OUTSIDE_PERIOD_S = 0.1  # Period of the kubelet, and the kernel's default
COARSE_CLOCK = 6  # ``CLOCK_MONOTONIC_COARSE``, which advances at each tick of the kernel
POLL_MIN_S = 0.0002  # Shortest sleep of the duty cycle between two looks at the CPU clock


def process_cpu_s(pid: int) -> float:
    """Return the CPU time of a process with all its threads; ``OSError`` if there is none."""
    # the kernel's encoding of another process's CPU clock, as in clock_getcpuclockid(3)
    return time.clock_gettime((~pid << 3) | 2)


def process_memory_bytes(pid: int) -> int:
    """Return the memory that a process holds for itself; ``OSError`` if there is none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next((line.split()[1] for line in lines if line.startswith("RssAnon:")), 0))


class DutyCycleLimiter(CpuLimiter):
    """Stops and continues a process, without the kernel's help."""

    # For users who may not make control groups. It polls the process's CPU clock: what it grants
    # too much, it takes off the next periods.

    def __init__(self, period_s: float, cpus: int) -> None:
        super().__init__(cpus)
        self._period_s = period_s
        self._changed = threading.Event()  # Something was applied, or it is closed
        self._closed = False
        self._thread: threading.Thread | None = None

    def attach(self, pid: int) -> None:
        """Watch the process from a thread."""
        name = f"duty-cycle-{pid}"
        thread = threading.Thread(target=self._enforce, args=(pid,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system allows no more threads
            raise OSError(errno.EAGAIN, str(error)) from None
        self._thread = thread

    def apply(self, cores: float) -> None:
        """Grant cores; a new period begins, and nothing is owed, as under the kernel's quota."""
        self._cores = min(cores, float(self._cpus))
        self._changed.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join()

    def _enforce(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._changed.clear()
                if self._closed:
                    return
                if self._cores >= self._cpus:
                    self._changed.wait()
                else:
                    self._limit(pid, self._cores * self._period_s)

    def _limit(self, pid: int, quota_s: float) -> None:
        """Grant so much CPU time in each period until something changes."""
        # Unused time is lost. Overuse is owed, also what it uses until it stops. Each period begins
        # where the last one ended, so a late wake-up makes none longer.
        left_s, end_s, cpu_s = 0.0, time.monotonic(), process_cpu_s(pid)
        while not self._changed.is_set():
            if (rest_s := end_s - time.monotonic()) <= 0:
                left_s, end_s = quota_s + min(0.0, left_s), end_s + self._period_s
                continue
            if left_s > 0:
                self._changed.wait(min(rest_s, max(POLL_MIN_S, left_s / self._cpus)))
            else:
                owed = int(-left_s / quota_s)  # Periods after this one in which it must not run
                left_s, end_s = left_s + owed * quota_s, end_s + owed * self._period_s
                self._pause(pid, rest_s + owed * self._period_s)
            before_s, cpu_s = cpu_s, process_cpu_s(pid)
            left_s -= cpu_s - before_s

    def _pause(self, pid: int, seconds: float) -> None:
        start_s = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            self._changed.wait(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
            self._throttled_s += time.monotonic() - start_s


class CpuLimits(NamedTuple):
    """The CPU limits of one run."""

    kind: str  # ``cgroup-v1``, ``cgroup-v2``, ``duty-cycle``, ``none`` or ``outside``
    period_s: float  # Enforcement period
    tick_s: float  # Time between two looks at what was used; until then a quota can be overdrawn
    limiter: Callable[[], CpuLimiter]  # Makes one replica's; ``OSError`` where the kernel refuses
    close: Callable[[], None] = lambda: None  # Removes what they shared; safe to call twice


@contextmanager
def refusal_as_sentence(
    what: str = "a CPU limit", remedy: str = "use the limiter 'duty-cycle'"
) -> Iterator[None]:
    """Turn an ``OSError`` of the kernel into a :class:`WorkerError` with a remedy."""
    # A ProcessLookupError stays as it is, for a process may die at any time.
    try:
        yield
    except ProcessLookupError:
        raise
    except OSError as error:
        raise WorkerError(f"the kernel refuses {what}: {_describe(error)}; {remedy}") from error


def _describe(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the control group was removed ({error.filename})"
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def enforcement_period_s(core_unit: float) -> float:
    """Return the shortest period in which one core unit is a legal quota, or ``ConfigError``."""
    # Short periods matter: a 12 ms batch under half a core had a p99 of 76 ms with the default
    # period of 100 ms and of 19 ms with 10 ms. None is long enough for a very small unit.
    period_s = PERIOD_STEP_S * max(1, math.ceil(QUOTA_FLOOR_S / core_unit / PERIOD_STEP_S - 1e-9))
    if period_s > PERIOD_MAX_S:
        raise ConfigError(
            f"a core unit of {core_unit:g} cores is too small; "
            f"the kernel's limits allow {QUOTA_FLOOR_S / PERIOD_MAX_S:g} and more"
        )
    return period_s


def open_limits(
    limiter: Limiter, core_unit: float, cpus: int, announce: Callable[[Path], None],
    total_cores: float = math.inf,
) -> CpuLimits:  # fmt: skip
    """Set up the CPU limits of a run, for replicas pinned to so many CPUs.

    Under control groups, all together get no more than ``total_cores`` physical cores. ``auto``
    takes control groups if this process may make them with the quotas it needs, else the duty
    cycle, with a warning; ``cgroup`` then raises a :class:`WorkerError`. Each is announced first.
    """
    period_s, tick_s = enforcement_period_s(core_unit), time.clock_getres(COARSE_CLOCK)
    if limiter == "outside":
        return CpuLimits("outside", OUTSIDE_PERIOD_S, tick_s, partial(OutsideLimiter, cpus))
    if limiter == "none":
        return CpuLimits("none", period_s, tick_s, partial(CpuLimiter, cpus))
    if limiter != "duty-cycle":
        try:
            if (hierarchy := find_hierarchy()) is None:
                reason = "no cgroup hierarchy with the cpu controller is mounted"
                raise OSError(errno.ENODEV, reason)
            group = RunGroup(hierarchy, round(period_s * 1e6), announce)
            try:
                # The kernel refuses, say, a version 1 quota above that of a group further up, as in
                # a container. So the smallest quota is tried, and one just below no limit.
                group.limit(total_cores, cpus)
                with closing(group.limiter(cpus)) as tried:
                    for cores in {core_unit, min(cpus, total_cores) - core_unit}:
                        if 0 < cores < cpus:
                            tried.apply(cores)
            except OSError:
                group.close()
                raise
            kind, make = f"cgroup-v{hierarchy.version}", partial(group.limiter, cpus)
            return CpuLimits(kind, period_s, tick_s, make, group.close)
        except OSError as error:
            if limiter == "cgroup":
                raise WorkerError(
                    f"cannot limit CPU by control groups: {_describe(error)}; run as root or under "
                    "'systemd-run --user --scope -p Delegate=yes', or use the limiter 'duty-cycle'"
                ) from error
            if not _WARNED:
                text = "limiting CPU by a duty cycle, not by control groups: %s"
                LOG.warning(text, _describe(error))
            _WARNED.append(str(error))
    return CpuLimits("duty-cycle", period_s, POLL_MIN_S, partial(DutyCycleLimiter, period_s, cpus))
