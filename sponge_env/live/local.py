"""Replicas that are child processes of this one, on CPUs that this process keeps off."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sponge_env.live.child import ORDER, READY, REPORT, Job
from sponge_env.live.cpus import RESERVATIONS, choose_cpus
from sponge_env.live.janitor import Janitor, environment, start_ticks
from sponge_env.live.limits import open_limits, process_cpu_s, refusal_as_sentence
from sponge_env.live.protocol import Answered, CpuLimiter, Death, Event, Launcher, LiveConfig, Ready
from sponge_env.live.stages import Stages
from sponge_env.models.model import NO_REPORTS
from sponge_env.scenario.config import MAX_TOTAL_CORES
from sponge_env.utils.installation import ONE_THREAD

CHILD, SANDBOX = map(Path(__file__).with_name, ("child.py", "sandbox.py"))
STDERR_BYTES = 1 << 16  # Kept between two batches of what a child says on its standard error
MAX_REPORT_BYTES = 1 << 16  # Of a child's report, with all reasons for which its model failed
END_TIMEOUT_S = 10.0  # How long a killed process may take to be gone

too_many_as_sentence = partial(
    refusal_as_sentence, "another replica", "allow more (ulimit, pids.max) or ask for fewer"
)  # Turns the refusal of descriptors, processes or memory into a :class:`WorkerError`


class LocalReplica:
    """A child process with its channel, tensors and CPU limit. Implements ``Replica``."""

    # A batch's end is stamped by the child just before it answers; should the quota be found
    # exhausted in the microseconds between, the answer arrives up to a period later. It lives under
    # its limiter from its start to its end, at full speed with all CPUs granted at first.

    limits_late, silent, placed = False, False, True

    def __init__(
        self, id: int, job: Job, launcher: "LocalLauncher", limiter: CpuLimiter, cores: float,
        full_speed: bool,
    ) -> None:  # fmt: skip
        self.id, self._limiter = id, limiter
        # the limiter's own account; after the end, what it read last
        self.throttled_s = limiter.throttled_s
        self._max_tasks, self._cores = job.max_tasks, cores
        self._cpu_s = self._reported_cpu_s = 0.0
        self._asked, self._asked_s, self._closed = 0, time.monotonic(), False
        # memory files vanish with their last user, however it ends
        with contextlib.ExitStack() as opened:
            self._stderr = opened.enter_context(_memory("sponge-stderr"))
            fcntl.fcntl(self._stderr, fcntl.F_SETFL, os.O_APPEND)
            self._said = "(nothing)"
            self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            opened.enter_context(self._channel)
            self._channel.setblocking(False)
            self.fileno = self._channel.fileno
            with far_end, _memory("sponge-tensors", os.MFD_ALLOW_SEALING) as memory:
                channel, tensors = shared = far_end.fileno(), memory.fileno()
                job = dataclasses.replace(job, threads=self.threads, socket=channel, memory=tensors)
                memory.truncate(job.tensors_dtype.itemsize)
                # or a child that cuts it would end this process
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
                self.tensors = job.map_tensors()
                told = json.dumps(dataclasses.asdict(job))
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(SANDBOX), "computes", str(CHILD), told],
                    pass_fds=shared, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=self._stderr, start_new_session=True,
                    env=environment() | ONE_THREAD | NO_REPORTS,
                )  # fmt: skip
            self._opened = opened.pop_all()
        pid = self._process.pid
        self.pid: int | None = pid
        launcher.janitor.send("process", pid, start_ticks(pid))
        try:
            with refusal_as_sentence():
                os.sched_setaffinity(pid, launcher.cpus)
                limiter.apply(math.inf if full_speed else cores)
                limiter.attach(pid)
        except ProcessLookupError:
            pass  # an early death shows at the next poll
        except BaseException:
            self.close()
            raise

    @property
    def threads(self) -> int:
        """Threads of the next batch: more than the quota can run make it collapse."""
        return math.ceil(self._cores)

    def start(self, batch_id: int, tensors: Sequence[NDArray[Any]], variant: int = 0) -> None:
        """Lay the tasks' inputs into the shared memory and order their answers."""
        for task, tensor in enumerate(tensors):
            self.tensors.inputs[task] = tensor
        self.order(batch_id, len(tensors), variant)

    def order(self, batch_id: int, size: int, variant: int) -> None:
        """Order the answers to inputs that lie in :attr:`tensors` already."""
        self._asked, self._asked_s = size, time.monotonic()
        if os.fstat(self._stderr.fileno()).st_size > STDERR_BYTES:
            self._listen()
        # if it just died, the end of its channel shows at the next poll
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(ORDER.pack(batch_id, size, self.threads, variant))

    def answers(self, size: int) -> list[NDArray[Any]]:
        """Copy the answers to the first ``size`` tasks of the last batch."""
        _, counts, slots = self.tensors
        if not self._max_tasks:
            return list(slots[:size].copy())
        return [slot[:count].copy() for slot, count in zip(slots[:size], counts, strict=False)]

    def limit(self, cores: float) -> None:
        """Put the limit in force, at once."""
        self._cores = cores
        with refusal_as_sentence():
            self._limiter.apply(cores)

    def granted_cores(self) -> float:
        """Return the physical cores in force, as the limiter itself reports them."""
        with refusal_as_sentence():
            return self._limiter.granted_cores()

    def poll(self) -> Event | None:
        """Read the child's next report; the end of its channel is its death."""
        try:
            message = self._channel.recv(MAX_REPORT_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            message = b""
        if len(message) < REPORT.size:
            self._listen()
            return Death(self._said)
        batch_id, started_s, finished_s = REPORT.unpack_from(message)
        before_s, self._reported_cpu_s = self._reported_cpu_s, self.cpu_s()
        try:
            told = json.loads(message[REPORT.size :] or b"{}")
            failed = {range(self._asked)[int(at)]: str(reason) for at, reason in told.items()}
        except (AttributeError, LookupError, RecursionError, ValueError):
            return Death("its report cannot be read")
        if not self._asked_s <= started_s <= finished_s <= time.monotonic():
            return Death("its report has impossible times")
        if batch_id == READY:
            return Ready(finished_s)
        cpu_s = self._reported_cpu_s - before_s
        return Answered(batch_id, started_s, finished_s, cpu_s, failed or None)

    def _listen(self) -> None:
        """Note the last line on the standard error, and make room there."""
        end = os.fstat(self._stderr.fileno()).st_size
        said = os.pread(self._stderr.fileno(), STDERR_BYTES, max(0, end - STDERR_BYTES))
        lines = [line for line in said.decode(errors="replace").split("\n") if line.strip()]
        self._said = lines[-1] if lines else self._said
        self._stderr.truncate(0)

    def cpu_s(self) -> float:
        """Read the child's CPU clock; after its end, return what was read last."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                self._cpu_s = process_cpu_s(self._process.pid)
        return self._cpu_s

    def kill(self) -> None:
        """Send SIGKILL, without a limit that would delay the end."""
        with contextlib.suppress(OSError):
            self._limiter.apply(math.inf)
        self._process.kill()

    def close(self) -> None:
        """End the child, wait for it, and release channel, memory and limit."""
        if self._closed:
            return
        self._closed = True
        self.kill()
        # before the child is waited for: until then its id is its own
        self._limiter.close()
        self.cpu_s()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the janitor waits for it
            self._process.wait(END_TIMEOUT_S)
        self._opened.close()
        del self.tensors  # and with them the shared memory


class LocalLauncher(Stages):
    """Starts the replicas of all stages of a chain as child processes. Implements ``Launcher``.

    They share CPUs, a control group with its quota, and a janitor. Until it is closed, this process
    keeps off these CPUs; not under the limiter ``outside``, where others say what is whose. Each
    replica holds all variants of its stage. Settings and models that cannot be used are a
    ``ConfigError``, a CPU that cannot be limited as asked is a ``WorkerError``.
    """

    def __init__(self, configs: Sequence[LiveConfig]) -> None:
        first, outside = configs[0], configs[0].limiter == "outside"
        self.cpus = frozenset(RESERVATIONS.available()) if outside else _cpus(configs)
        total = first.physical_cores(min(sum(first.nodes), MAX_TOTAL_CORES))
        with contextlib.ExitStack() as cleanup:
            if not outside:
                cleanup.enter_context(RESERVATIONS.keep_off(self.cpus))
            with too_many_as_sentence():
                self.janitor = Janitor()
            cleanup.callback(self.janitor.close)
            announce, cpus = partial(self.janitor.send, "group"), len(self.cpus)
            self.limits = open_limits(first.limiter, first.core_unit, cpus, announce, total)
            cleanup.callback(self.limits.close)
            super().__init__(configs)
            self.close = cleanup.pop_all().close
        self.limiter, self.period_s, self.tick_s = self.limits[:3]

    def launch(
        self, id: int, cores: float, *, stage: int = 0, node: int = 0, full_speed: bool = False
    ) -> LocalReplica:
        """Start a child process under a limit of its own."""
        with too_many_as_sentence():
            limiter = self.limits.limiter()
            try:
                return LocalReplica(id, self.jobs[stage], self, limiter, cores, full_speed)
            except OSError:
                limiter.close()
                raise


class Place:
    """Where real workers run their replicas: as processes here, unless a command says otherwise."""

    open: Callable[[Sequence[LiveConfig]], Launcher] = LocalLauncher

    @property
    def is_here(self) -> bool:
        """Whether they are on this machine's CPUs."""
        return self.open is LocalLauncher


PLACE = Place()  # One for the process, as its CPUs are


def reserve(configs: Sequence[LiveConfig]) -> AbstractContextManager[None]:
    """Reserve the CPUs of workers with these settings, also while none is open."""
    return RESERVATIONS.keep_off(_cpus(configs))


def _cpus(configs: Sequence[LiveConfig]) -> frozenset[int]:
    """Choose the CPUs of stages: as many as the replicas with the most cores can use."""
    return choose_cpus(max(config.physical_cores(config.cores_max) for config in configs))


def _memory(name: str, flags: int = 0) -> FileIO:
    return open(os.memfd_create(name, os.MFD_CLOEXEC | flags), "r+b", buffering=0)
