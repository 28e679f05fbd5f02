"""A CPU limit without the kernel's help: stop and continue signals on a duty cycle.

For users who may not make control groups. It follows the kernel's rule (so many seconds of
CPU per period, unused ones are lost) by polling the process's CPU clock, and is coarser:
it overshoots by up to a polling interval, which it takes off the next period.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

POLL_MIN_S = 0.0002
"""Shortest sleep between two looks at the CPU clock."""


def process_cpu_s(pid: int) -> float:
    """Return the CPU time of a process with all its threads.

    Raises:
        OSError: There is no such process.
    """
    # the kernel's encoding of another process's CPU clock, as in clock_getcpuclockid(3)
    return time.clock_gettime((~pid << 3) | 2)


class TokenBucket:
    """CPU time a process may use in the running period.

    Args:
        quota_s: CPU time granted per period.
    """

    def __init__(self, quota_s: float) -> None:
        self._quota_s = quota_s
        self.tokens_s = quota_s

    def spend(self, cpu_s: float) -> None:
        """Take CPU time out; the balance may become negative."""
        self.tokens_s -= cpu_s

    def refill(self) -> None:
        """Start a period: what was left is lost, what was overdrawn is owed."""
        self.tokens_s = self._quota_s + min(0.0, self.tokens_s)


class DutyCycleLimiter:
    """Holds one process to a CPU share by stopping and continuing it.

    Args:
        period_s: Enforcement period.
        cores_max: Largest number of CPUs the process can use at once; that many or more
            is no limit.
    """

    def __init__(self, period_s: float, cores_max: int) -> None:
        self._period_s = period_s
        self._cores_max = cores_max
        self._cores = float(cores_max)
        self._throttled_s = 0.0
        self._changed = threading.Condition()
        self._generation = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def attach(self, pid: int) -> None:
        """Begin to limit a process, which must be a child not yet waited for."""
        self._thread = threading.Thread(
            target=self._enforce, args=(pid,), name=f"duty-cycle-{pid}", daemon=True
        )
        self._thread.start()

    def apply(self, cores: float) -> None:
        """Grant a number of cores from now on; a new period begins."""
        with self._changed:
            self._cores = min(cores, float(self._cores_max))
            self._generation += 1
            self._changed.notify_all()

    def granted_cores(self) -> float:
        """Return the cores granted."""
        return self._cores

    def throttled_s(self) -> float:
        """Return how long the process stood stopped."""
        return self._throttled_s

    def close(self) -> None:
        """Stop limiting."""
        with self._changed:
            self._closed = True
            self._generation += 1
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _enforce(self, pid: int) -> None:
        with self._changed, contextlib.suppress(OSError):
            while not self._closed:
                generation = self._generation
                if self._cores >= self._cores_max:
                    self._changed.wait()
                    continue
                bucket = TokenBucket(self._cores * self._period_s)
                while self._generation == generation:
                    self._run_period(pid, bucket, generation)
                    bucket.refill()

    def _run_period(self, pid: int, bucket: TokenBucket, generation: int) -> None:
        """Let the process run while it has tokens, then stop it to the period's end."""
        end_s = time.monotonic() + self._period_s
        cpu_s = process_cpu_s(pid)
        while self._generation == generation and (left_s := end_s - time.monotonic()) > 0:
            if bucket.tokens_s <= 0:
                self._pause(pid, left_s)
                return
            self._changed.wait(min(left_s, max(POLL_MIN_S, bucket.tokens_s / self._cores_max)))
            before_s, cpu_s = cpu_s, process_cpu_s(pid)
            bucket.spend(cpu_s - before_s)

    def _pause(self, pid: int, seconds: float) -> None:
        start_s = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            self._changed.wait(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
            self._throttled_s += time.monotonic() - start_s
