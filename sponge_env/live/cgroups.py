"""CPU control groups of both kernel interfaces: where they go, quotas, throttle counters.

Version 1 has ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``, version 2 has ``cpu.max``.
Every run gets one group with a unique name, and in it one leaf group per replica.
"""

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sponge_env.live.janitor import remove_group
from sponge_env.live.protocol import CpuLimiter

Version = Literal[1, 2]

WEIGHT: dict[Version, tuple[str, str]] = {1: ("cpu.shares", "262144"), 2: ("cpu.weight", "10000")}
"""File and largest value of a group's weight, its share where groups compete for a CPU. Replicas
have the largest, so that their quota limits them and not what else runs here."""

THROTTLED = {"throttled_time": 1e-9, "throttled_usec": 1e-6}
"""Counters of the time that a group stood stopped by its quota, and their units in seconds."""

CONTROLLERS = "cgroup.controllers"
PROC = Path("/proc/self")  # Where the kernel says what is mounted, and which groups we are in


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy that has the CPU controller."""

    version: Version
    mount: Path
    own: Path  # Directory of the group this process is in


def find_hierarchy(proc: Path | None = None) -> Hierarchy | None:
    """Find the hierarchy that limits CPU time, from ``mounts`` and ``cgroup`` in a folder."""
    proc = proc or PROC
    mounts = [line.split() for line in _read(proc / "mounts").splitlines()]
    member = [line.split(":", 2) for line in _read(proc / "cgroup").splitlines()]
    versions: tuple[tuple[Version, str, str], ...] = ((1, "cgroup", "cpu"), (2, "cgroup2", ""))
    for version, kind, controller in versions:
        for _, point, mounted, options, *_ in mounts:
            mount = Path(point)
            within = options.split(",") if version == 1 else _read(mount / CONTROLLERS).split()
            if mounted == kind and "cpu" in within:
                # of version 2 there is one line, which names no controllers
                own = next((at for _, names, at in member if controller in names.split(",")), "/")
                # in a container the kernel may name a path outside of what is mounted
                path = mount / own.lstrip("/")
                return Hierarchy(version, mount, path if path.is_dir() else mount)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, text.encode())
    except OSError as error:
        error.filename = str(path)  # which the kernel's refusal does not name
        raise
    finally:
        os.close(handle)


class CgroupLimiter(CpuLimiter):
    """Limits a replica by the quota of a group of its own, which it removes in the end."""

    def __init__(self, version: Version, group: Path, period_us: int, cpus: int) -> None:
        super().__init__(cpus)
        self.group, self._closed = group, False
        self._version, self._period_us = version, period_us

    def attach(self, pid: int) -> None:
        """Move the process with all its threads into the group."""
        _write(self.group / "cgroup.procs", str(pid))

    def apply(self, cores: float) -> None:
        """Write the quota and, where it is not in force yet, the period."""
        unlimited = "max" if self._version == 2 else "-1"
        quota = unlimited if cores >= self._cpus else str(round(cores * self._period_us))
        if self._version == 2:
            _write(self.group / "cpu.max", f"{quota} {self._period_us}")
            return
        period = self.group / "cpu.cfs_period_us"
        if int(period.read_text()) != self._period_us:
            _write(period, str(self._period_us))
        _write(self.group / "cpu.cfs_quota_us", quota)

    def granted_cores(self) -> float:
        """Read the quota back."""
        quota = "max"
        if not self._closed:
            name = "cpu.cfs_quota_us" if self._version == 1 else "cpu.max"
            quota = (self.group / name).read_text().split()[0]
        return float(self._cpus) if quota in ("-1", "max") else int(quota) / self._period_us

    def throttled_s(self) -> float:
        """Read the throttle counter, summed over CPUs; after the end, its last value."""
        if not self._closed:
            self._throttled_s = _throttled_s(self.group, self._throttled_s)
        return self._throttled_s

    def close(self) -> None:
        """Remove the group."""
        if not self._closed:
            self.throttled_s()
            self._closed = True
            remove_group(str(self.group))


class OutsideLimiter(CpuLimiter):
    """Limits nothing, and reads what limits this process's own group, as Kubernetes resizes it."""

    def __init__(self, cpus: int) -> None:
        super().__init__(cpus)
        found = find_hierarchy()
        self._group = found.own if found else PROC
        self._before_s = _throttled_s(self._group, 0.0)

    def granted_cores(self) -> float:
        """Return the quota of the group, no more than there are CPUs."""
        v1 = f"{_read(self._group / 'cpu.cfs_quota_us')} {_read(self._group / 'cpu.cfs_period_us')}"
        quota, period, *_ = [*(_read(self._group / "cpu.max") or v1).split(), "-1", "-1"]
        return self._cores if quota in ("-1", "max") else min(self._cores, int(quota) / int(period))

    def throttled_s(self) -> float:
        """Return how long the whole group stood stopped since this replica began."""
        return _throttled_s(self._group, self._before_s) - self._before_s


def _throttled_s(group: Path, before_s: float) -> float:
    """Read a group's throttle counter; if there is none any more it is as before."""
    counters = dict(map(str.split, _read(group / "cpu.stat").splitlines()))
    found_s = (int(counters[name]) * unit for name, unit in THROTTLED.items() if name in counters)
    return next(found_s, before_s)


class RunGroup:
    """The group of a run, above its replicas' leaves. What is refused is an ``OSError``."""

    # Each directory is announced before it is made: the janitor can clean up after a crash.

    def __init__(self, within: Hierarchy, period_us: int, announce: Callable[[Path], None]) -> None:
        self._hierarchy, self._period_us, self._announce = within, period_us, announce
        self._replicas = itertools.count()
        name = f"sponge-{os.getpid()}-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as self._cleanup:
            base = within.own if within.version == 1 else self._delegate(name)
            sweep(base)
            self._path = self._make(base / name)
            self._cleanup.callback(remove_group, str(self._path))
            file, weight = WEIGHT[within.version]
            _write(self._path / file, weight)
            if within.version == 2:
                _write(self._path / "cgroup.subtree_control", "+cpu")
            self._cleanup = self._cleanup.pop_all()

    def limit(self, cores: float, cpus: int) -> None:
        """Give all replicas together no more than so many physical cores of these CPUs."""
        if cores < cpus:
            self._limiter(self._path, cpus).apply(cores)

    def limiter(self, cpus: int) -> CgroupLimiter:
        """Make the group of one replica that can use so many CPUs, without limit so far."""
        return self._limiter(self._make(self._path / f"replica-{next(self._replicas)}"), cpus)

    def _limiter(self, path: Path, cpus: int) -> CgroupLimiter:
        return CgroupLimiter(self._hierarchy.version, path, self._period_us, cpus)

    def close(self) -> None:
        """Remove the run's group, whose leaves must be gone, and move back. Safe to call twice."""
        self._cleanup.close()

    def _delegate(self, name: str) -> Path:
        """Choose a version 2 group to make ours in, and have it hand out the CPU controller."""
        # That is the nearest group above our own that does so already and lets us (the run's group
        # becomes a sibling), else our own group, which a transient scope with ``Delegate=yes``
        # gives to ordinary users; this process must then move down into a leaf of it, with its
        # children, for only leaves hold processes. The root group is exempt from that rule.
        own, mount = self._hierarchy.own, self._hierarchy.mount
        for above in own.parents:
            if above.is_relative_to(mount) and _hands_out_cpu(above):
                return above
        if not _hands_out_cpu(own):
            if (own / "cgroup.type").exists():  # the root group has none
                # Not announced: the janitor is in it. After a crash the next run sweeps it away.
                shelter = self._make(own / f"{name}-harness", announced=False)
                self._cleanup.callback(remove_group, str(shelter))
                self._cleanup.callback(_leave, own, shelter)
                _move(own, shelter)
            _write(own / "cgroup.subtree_control", "+cpu")
        return own

    def _make(self, path: Path, announced: bool = True) -> Path:
        if announced:
            self._announce(path)
        path.mkdir()
        return path


def _leave(own: Path, shelter: Path) -> None:
    """Move back from the leaf into the group above, if that is allowed."""
    with contextlib.suppress(OSError):
        # a group that hands out controllers must not hold processes itself
        _write(own / "cgroup.subtree_control", "-cpu")
        _move(shelter, own)


def _move(source: Path, target: Path) -> None:
    """Move this process and its children, such as the janitor, from a group into another."""
    own = str(os.getpid())
    for pid in _read(source / "cgroup.procs").split():
        if pid == own or f"\nPPid:\t{own}\n" in _read(Path("/proc", pid, "status")):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                _write(target / "cgroup.procs", pid)


def sweep(base: Path) -> None:
    """Remove the groups that dead runs left in a group, but none that has a process."""
    for group in base.glob("sponge-*-*"):
        if (pid := group.name.split("-")[1]).isdigit() and not Path("/proc", pid).exists():
            for path in (*group.glob("replica-*"), group):
                with contextlib.suppress(OSError):
                    path.rmdir()


def _hands_out_cpu(group: Path) -> bool:
    """Tell whether groups made below a group get the CPU controller, and we may make them."""
    hands_out = "cpu" in _read(group / "cgroup.subtree_control").split()
    # moving a process takes the right to write to the group above both its groups
    return hands_out and all(os.access(path, os.W_OK) for path in (group, group / "cgroup.procs"))
