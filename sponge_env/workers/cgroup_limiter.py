"""The limit of one replica by the quota of its control group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sponge_env.errors import WorkerError
from sponge_env.workers.cgroups import CpuGroup
from sponge_env.workers.janitor import remove_group


@contextmanager
def refusal_as_sentence() -> Iterator[None]:
    """Turn what the kernel says into a sentence for the user.

    Raises:
        ProcessLookupError: As it is; a process may die at any time.
        WorkerError: In place of every other ``OSError``.
    """
    try:
        yield
    except ProcessLookupError:
        raise
    except OSError as error:
        raise WorkerError(
            f"the kernel refuses a control group: {describe(error)}; use the limiter 'duty-cycle'"
        ) from error


def describe(error: OSError) -> str:
    """Say what the kernel refused, and where."""
    return f"{error.strerror} ({error.filename})"


class CgroupLimiter:
    """Limits a replica by its control group's quota."""

    def __init__(self, group: CpuGroup, cpus: int) -> None:
        self._group = group
        self._cpus = cpus
        self._throttled_s = 0.0
        self._closed = False

    def attach(self, pid: int) -> None:
        """Move the process into the group."""
        with refusal_as_sentence():
            self._group.join(pid)

    def apply(self, cores: float) -> None:
        """Write the quota."""
        quota_us = None if cores >= self._cpus else round(cores * self._group.period_us)
        with refusal_as_sentence():
            self._group.set_quota_us(quota_us)

    def granted_cores(self) -> float:
        """Read the quota back."""
        quota_us = None if self._closed else self._group.quota_us()
        return float(self._cpus) if quota_us is None else quota_us / self._group.period_us

    def throttled_s(self) -> float:
        """Read the throttle counter; after the end, its last value."""
        if not self._closed:
            self._throttled_s = self._group.throttled_s()
        return self._throttled_s

    def close(self) -> None:
        """Remove the group."""
        if not self._closed:
            self.throttled_s()
            self._closed = True
            remove_group(str(self._group.path))
