"""One replica: a child process that runs the model under a CPU limit."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import WorkerError
from sponge_env.interfaces import Batch
from sponge_env.workers.child import ORDER, READY, REPORT, Job
from sponge_env.workers.duty_cycle import process_cpu_s
from sponge_env.workers.limits import Limiter

CHILD = Path(__file__).with_name("child.py")
END_TIMEOUT_S = 10.0
"""How long a killed process may take to be gone."""


class State(enum.Enum):
    """What a replica is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Report:
    """What a child says: it is ready, or a batch ended. Monotonic stamps, in seconds."""

    ready: bool
    started_s: float
    finished_s: float
    cpu_s: float
    """CPU time since its last report, the handling of messages included."""


class Running(NamedTuple):
    """A batch on a replica, and when it was sent (monotonic)."""

    batch: Batch
    sent_s: float


class Replica:
    """A child process with its channel, tensors and CPU limit.

    Args:
        id: Identity of the replica.
        job: What the child shall run; the file descriptors in it are filled in here.
        images: (n, *image_shape) float32; a request gets the image of its id modulo n.
        cpus: CPUs the child is pinned to.
        limiter: Its CPU limit, which it lives under from its start.
        cores: Physical cores granted.

    Raises:
        WorkerError: Its CPU cannot be limited.
    """

    def __init__(
        self,
        id: int,
        job: Job,
        images: NDArray[np.float32],
        cpus: frozenset[int],
        limiter: Limiter,
        cores: float,
    ) -> None:
        self.id = id
        self.limiter = limiter
        self.state = State.STARTING
        self.draining = False
        self.running: Running | None = None
        self.last_words = ""
        """Last line on its standard error, known once it is closed."""
        self.spawned_s = time.monotonic()
        self.busy_since_s = self.spawned_s
        """When it was given what it does now; moved on by times that nobody listened."""
        self._cpu_s = self._reported_cpu_s = 0.0
        self._images = images
        # memory files vanish with their last user, however it ends
        self._stderr = os.memfd_create("sponge-stderr")
        self.channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        memory = os.memfd_create("sponge-tensors")
        job = replace(job, socket=far_end.fileno(), memory=memory)
        os.ftruncate(memory, job.memory_bytes)
        self._inputs, self._outputs = job.map_tensors()
        with far_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(CHILD), job.to_json()],
                pass_fds=(far_end.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        os.close(memory)
        self._confine(cpus, cores)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def _confine(self, cpus: frozenset[int], cores: float) -> None:
        """Pin and limit the child, which has only just begun.

        Raises:
            WorkerError: The kernel refuses it.
        """
        try:
            os.sched_setaffinity(self.pid, cpus)
            self.limiter.apply(cores)
            self.limiter.attach(self.pid)
        except ProcessLookupError:
            pass  # an early death is noticed by whoever waits
        except (OSError, WorkerError) as error:
            self.close()
            raise WorkerError(f"a replica cannot be confined to its CPU: {error}") from error

    def outputs(self, size: int) -> NDArray[np.float32]:
        """Return a copy of the answers to the first ``size`` images of the last batch."""
        return self._outputs[:size].copy()

    def start(self, batch: Batch, threads: int) -> None:
        """Send a batch; the replica must be idle."""
        for row, request in enumerate(batch.requests):
            self._inputs[row] = self._images[request % len(self._images)]
        self.state = State.BUSY
        self.busy_since_s = time.monotonic()
        self.running = Running(batch, self.busy_since_s)
        # if it just died, whoever waits notices the end of its channel
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send(ORDER.pack(batch.id, batch.size, threads))

    def receive(self) -> Report | None:
        """Take the child's next report; None if it died.

        Raises:
            BlockingIOError: There is no report.
        """
        try:
            message = self.channel.recv(REPORT.size)
        except ConnectionResetError:
            return None
        if len(message) < REPORT.size:
            return None
        batch_id, started_s, finished_s = REPORT.unpack(message)
        self.state = State.IDLE
        before_s, self._reported_cpu_s = self._reported_cpu_s, self.cpu_s()
        return Report(batch_id == READY, started_s, finished_s, self._reported_cpu_s - before_s)

    def cpu_s(self) -> float:
        """Return the CPU time of the child so far; after its end, the last that was read."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                self._cpu_s = process_cpu_s(self.pid)
        return self._cpu_s

    def kill(self) -> None:
        """End the child; whoever waits notices the end of its channel."""
        # to go takes CPU time too, which is not to wait for a quota
        with contextlib.suppress(WorkerError):
            self.limiter.apply(math.inf)
        self._process.kill()

    def close(self) -> None:
        """End the child and release everything."""
        self.kill()
        # before the child is waited for: until then its id is its own
        self.limiter.close()
        self.cpu_s()
        self._process.wait(END_TIMEOUT_S)
        self.channel.close()
        lines = os.pread(self._stderr, 65536, 0).decode(errors="replace").split("\n")
        self.last_words = next((line for line in reversed(lines) if line.strip()), "(nothing)")
        os.close(self._stderr)
