"""The replicas of a worker: started, watched, restarted, limited and stopped together."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import selectors
import socket
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import WorkerError
from sponge_env.workers.child import Job
from sponge_env.workers.cleanup import Janitor
from sponge_env.workers.limits import CpuLimits
from sponge_env.workers.process import Replica, Report, Running, State
from sponge_env.workers.real_config import RealWorkerConfig

HEARTBEAT_S = 1.0
"""Longest single wait for the replicas, after which hung ones are looked for."""
START_ATTEMPTS = 3
"""Replicas that may die one after another before any is ready."""


class Ended(NamedTuple):
    """A batch that ended on a replica."""

    replica_id: int
    running: Running
    report: Report | None
    """None when the replica died under it."""


class Fleet:
    """All replicas, each under the same CPU limit.

    Args:
        config: Of the worker.
        job: What the replicas run.
        images: (n, *image_shape) float32 that the requests carry.
        cpus: CPUs the replicas are pinned to.
        limits: Makes their CPU limits.
        janitor: Is told of every process, so that none outlives a crash.
    """

    def __init__(
        self,
        config: RealWorkerConfig,
        job: Job,
        images: NDArray[np.float32],
        cpus: frozenset[int],
        limits: CpuLimits,
        janitor: Janitor,
    ) -> None:
        self.replicas: list[Replica] = []
        self.cold_start_s = config.cold_start_s
        """Time from asking for the last replica until it was ready; at first, a guess."""
        self.restarts = 0
        self._config = config
        self._job, self._images, self._cpus = job, images, cpus
        self._limits, self._janitor = limits, janitor
        self._cores = 0.0
        self._next_id = 0
        self._failed_starts = 0
        self._last_words = ""
        self._retired_throttled_s = 0.0
        self._retired_cpu_s = 0.0
        # epoll would round waits up to whole milliseconds
        self._selector = selectors.SelectSelector()
        self._alarm, self._bell = socket.socketpair()
        self._alarm.setblocking(False)
        self._bell.setblocking(False)
        self._selector.register(self._alarm, selectors.EVENT_READ)

    @property
    def throttled_s(self) -> float:
        """Time that replicas, past ones included, stood stopped by their limit."""
        return self._retired_throttled_s + sum(r.limiter.throttled_s() for r in self.replicas)

    @property
    def cpu_s(self) -> float:
        """CPU time that replicas, past ones included, used for anything."""
        return self._retired_cpu_s + sum(replica.cpu_s() for replica in self.replicas)

    def warm_up(self, replicas: int, cores: float) -> None:
        """Start the first replicas at full speed; limit them when all are ready.

        Args:
            replicas: How many.
            cores: Physical cores of each, from then on.

        Raises:
            WorkerError: They do not start.
        """
        self._cores = cores
        for _ in range(replicas):
            self._spawn(math.inf)
        while any(replica.state is State.STARTING for replica in self.replicas):
            self.poll(HEARTBEAT_S)
        self.cold_start_s = self._config.cold_start_s  # full speed tells nothing of it
        self.limit(cores)

    def limit(self, cores: float) -> None:
        """Grant physical cores to each replica, at once and also to what is running.

        Raises:
            WorkerError: The kernel refuses the limit.
        """
        self._cores = cores
        for replica in self.replicas:
            replica.limiter.apply(cores)

    def scale(self, wanted: int) -> None:
        """Start or stop replicas.

        Cold ones go first, then idle ones, then busy ones, which finish their batch; of
        each kind the youngest first.

        Raises:
            WorkerError: A new replica's CPU cannot be limited.
        """
        order = (State.STARTING, State.IDLE, State.BUSY)
        staying = [replica for replica in self.replicas if not replica.draining]
        staying.sort(key=lambda replica: (order.index(replica.state), -replica.id))
        surplus = staying[: max(0, len(staying) - wanted)]
        gone = [replica for replica in surplus if replica.state is not State.BUSY]
        for replica in surplus:
            replica.draining = replica.state is State.BUSY
        self._stop(gone)
        for _ in range(wanted - len(staying)):
            self._spawn(self._cores)

    def poll(self, timeout_s: float) -> tuple[bool, list[Ended]]:
        """Take in what happened, waiting for it if need be.

        Returns:
            Whether anything happened, and the batches that ended.

        Raises:
            WorkerError: Replicas die one after another before they are ready.
        """
        events = self._selector.select(min(timeout_s, HEARTBEAT_S))
        ended = []
        for key, _ in events:
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._alarm.recv(4096)
            else:
                ended += self._hear(key.data)
        # last, for a report may have lain there while nobody listened
        self._kill_overdue()
        # batches that ended are handed over first; the failure shows again at the next poll
        if self._failed_starts >= START_ATTEMPTS and not ended:
            raise WorkerError(
                f"{START_ATTEMPTS} replicas died one after another before they were ready; "
                f"the last one said: {self._last_words}"
            )
        return bool(events), ended

    def excuse(self, seconds: float) -> None:
        """Give all replicas more time, for nobody listened to them."""
        for replica in self.replicas:
            replica.busy_since_s += seconds

    def wake(self) -> None:
        """Make a :meth:`poll` in another thread return; safe from any thread."""
        # full: the alarm rings already; closed: nobody waits
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    def close(self) -> None:
        """Stop all replicas."""
        self._stop(list(self.replicas))
        self._selector.close()
        self._alarm.close()
        self._bell.close()

    def _spawn(self, cores: float) -> None:
        """Start a replica that is granted so many physical cores at first."""
        job = dataclasses.replace(self._job, threads=math.ceil(self._cores))
        limiter = self._limits.limiter()
        replica = Replica(self._next_id, job, self._images, self._cpus, limiter, cores)
        self._next_id += 1
        self.replicas.append(replica)
        self._janitor.watch_process(replica.pid)
        self._selector.register(replica.channel, selectors.EVENT_READ, replica)

    def _stop(self, replicas: list[Replica]) -> None:
        for replica in replicas:  # all at once: a process takes its time to end
            replica.kill()
        for replica in replicas:
            self._selector.unregister(replica.channel)
            replica.close()
            self._retired_throttled_s += replica.limiter.throttled_s()
            self._retired_cpu_s += replica.cpu_s()
            self.replicas.remove(replica)
            self._janitor.forget_process(replica.pid)

    def _kill_overdue(self) -> None:
        """Kill replicas that hang; their deaths are heard of at the next poll."""
        timeouts_s = {
            State.STARTING: self._config.start_timeout_s,
            State.IDLE: math.inf,
            State.BUSY: self._config.batch_timeout_s,
        }
        for replica in self.replicas:
            if time.monotonic() > replica.busy_since_s + timeouts_s[replica.state]:
                replica.kill()

    def _hear(self, replica: Replica) -> list[Ended]:
        """Take in a replica's message, or its death."""
        report = replica.receive()
        ended = []
        if replica.running is not None:
            ended.append(Ended(replica.id, replica.running, report))
            replica.running = None
        if report is None:
            self._bury(replica)
        elif report.ready:
            self._failed_starts = 0
            self.cold_start_s = report.finished_s - replica.spawned_s
        elif replica.draining:
            self._stop([replica])
        return ended

    def _bury(self, replica: Replica) -> None:
        """Start another replica in place of one that died."""
        self._stop([replica])
        if replica.state is State.STARTING:
            self._failed_starts += 1
            self._last_words = replica.last_words
        if not replica.draining and self._failed_starts < START_ATTEMPTS:
            self.restarts += 1
            self._spawn(self._cores)
