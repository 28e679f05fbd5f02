"""Replicas that are child processes of this one, on CPUs that this process keeps off."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.live.child import ORDER, READY, REPORT, Job
from sponge_env.live.janitor import Janitor, start_ticks
from sponge_env.live.limits import open_limits, process_cpu_s, refusal_as_sentence
from sponge_env.live.locks import lock_cpu
from sponge_env.live.replica import Answer, CpuLimiter, Death, Event, LiveConfig, Ready
from sponge_env.models.model import Model, described
from sponge_env.models.registry import resolve_variants
from sponge_env.scenario.config import MAX_TOTAL_CORES

CHILD, SANDBOX = map(Path(__file__).with_name, ("child.py", "sandbox.py"))
_DRAWS = 1 << 16
"""Requests whose samples are drawn independently."""
END_TIMEOUT_S = 10.0
"""How long a killed process may take to be gone."""


class Setup(NamedTuple):
    """What all replicas of a launcher have in common."""

    job: Job
    """What a child shall run; each replica fills in threads and file descriptors."""
    cpus: frozenset[int]
    """CPUs the children are pinned to."""
    janitor: Janitor
    """Kills what is left should this process end without doing so."""


class LocalReplica:
    """A child process with its channel, tensors and CPU limit. Implements ``Replica``.

    A batch's end is stamped by the child just before it answers; should the quota be found
    exhausted in the microseconds between, the answer arrives up to a period later. It lives
    under its limiter from its start to its end, at full speed with all CPUs granted at first.
    """

    def __init__(
        self, id: int, setup: Setup, limiter: CpuLimiter, cores: float, full_speed: bool = False
    ) -> None:
        self.id = id
        self._limiter = limiter
        # the limiter's own account; after the end, what it read last
        self.throttled_s = limiter.throttled_s
        self._janitor = setup.janitor
        self._most_tasks = setup.job.most_tasks
        self._cores = cores
        self._cpu_s = self._reported_cpu_s = 0.0
        self._closed = False
        # memory files vanish with their last user, however it ends
        with contextlib.ExitStack() as undo:
            self._stderr = os.memfd_create("sponge-stderr")
            undo.callback(os.close, self._stderr)
            self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._channel.close)
            self._channel.setblocking(False)
            with far_end:
                self._process = self._spawn(setup.job, far_end.fileno())
            undo.pop_all()
        self.pid: int | None = self._process.pid
        self._janitor.tell("process", self.pid, start_ticks(self._process.pid))
        self._confine(setup.cpus, math.inf if full_speed else cores)

    def _spawn(self, job: Job, channel: int) -> subprocess.Popen[bytes]:
        """Start the child with its end of the channel and the tensors that it shares."""
        memory = os.memfd_create("sponge-tensors")
        try:
            job = dataclasses.replace(job, threads=self.threads, socket=channel, memory=memory)
            os.ftruncate(memory, job.memory_bytes)
            self._tensors = job.map_tensors()
            told = json.dumps(dataclasses.asdict(job))
            return subprocess.Popen(
                [sys.executable, "-P", str(SANDBOX), "computes", str(CHILD), told],
                pass_fds=(channel, memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        finally:
            os.close(memory)

    @property
    def threads(self) -> int:
        """Threads of the next batch: more than the quota can run make it collapse."""
        return math.ceil(self._cores)

    def _confine(self, cpus: frozenset[int], cores: float) -> None:
        """Pin and limit the child, which has only just begun."""
        try:
            with refusal_as_sentence():
                os.sched_setaffinity(self._process.pid, cpus)
                self._limiter.apply(cores)
                self._limiter.attach(self._process.pid)
        except ProcessLookupError:
            pass  # an early death is noticed by whoever polls
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor of the channel to the child."""
        return self._channel.fileno()

    def start(self, batch_id: int, tensors: Sequence[NDArray[Any]], variant: int = 0) -> None:
        """Lay the tasks' inputs into the shared memory and order their answers."""
        for task, tensor in enumerate(tensors):
            self._tensors.inputs[task] = tensor
        # if it just died, whoever polls notices the end of its channel
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(ORDER.pack(batch_id, len(tensors), self.threads, variant))

    def answers(self, size: int) -> list[NDArray[Any]]:
        """Copy the answers to the first ``size`` tasks of the last batch."""
        _, counts, slots = self._tensors
        if not self._most_tasks:
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
            message = self._channel.recv(REPORT.size)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            message = b""
        if len(message) < REPORT.size:
            return Death(self._last_line())
        batch_id, started_s, finished_s = REPORT.unpack(message)
        before_s, self._reported_cpu_s = self._reported_cpu_s, self.cpu_s()
        if batch_id == READY:
            return Ready(finished_s)
        return Answer(batch_id, started_s, finished_s, self._reported_cpu_s - before_s)

    def _last_line(self) -> str:
        """Return the last line on the child's standard error."""
        lines = os.pread(self._stderr, 65536, 0).decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "(nothing)")

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
        self._process.wait(END_TIMEOUT_S)
        self._janitor.tell("forget", self.pid)
        self._channel.close()
        os.close(self._stderr)
        del self._tensors  # and with them the shared memory


class LocalMachine:
    """What the replicas of all stages share: CPUs, a control group with its quota, a janitor.

    While it is open, this process keeps off these CPUs. Settings that cannot be are a
    ``ConfigError``, a CPU that cannot be limited as asked is a ``WorkerError``.
    """

    def __init__(self, configs: Sequence[LiveConfig]) -> None:
        first = _largest(configs)
        self.cpus = _cpus(first)
        total = first.physical_cores(min(first.total_cores, MAX_TOTAL_CORES))
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(RESERVATIONS.keep_off(self.cpus))
            with too_many_as_sentence():
                self.janitor = Janitor()
            cleanup.callback(self.janitor.close)
            self.limits = open_limits(
                first.limiter,
                first.core_unit,
                len(self.cpus),
                partial(self.janitor.tell, "group"),
                total,
            )
            cleanup.callback(self.limits.close)
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Remove the control groups, end the janitor, take back the CPUs."""
        self._cleanup.close()


class LocalLauncher:
    """Starts replicas as child processes. Implements ``Launcher``.

    Each replica holds all variants of the configuration. A model that cannot be used is a
    ``ConfigError``. Without a machine that is shared with other stages it opens one.
    """

    def __init__(self, config: LiveConfig, machine: LocalMachine | None = None) -> None:
        models = resolve_variants(config.variants or [config.model])
        job = make_job(models, config.batch_max)
        self._samples: NDArray[Any] = models[0].samples()
        count = len(self._samples)
        drawn = np.random.default_rng(0).integers(count, size=_DRAWS)
        self._shown = np.concatenate([np.arange(count), drawn])
        shared = machine or LocalMachine([config])
        self._own = None if machine else shared
        self._setup = Setup(job, shared.cpus, shared.janitor)
        self._limits = shared.limits
        self.limiter: str = self._limits.kind
        self.period_s = self._limits.period_s
        self.tick_s = self._limits.tick_s
        self.most_tasks = job.most_tasks
        self.inputs, self.outputs = models[0].inputs, models[0].outputs

    def sample(self, request_id: int) -> NDArray[Any]:
        """Return one of the model's samples, the same for an id: each once, then at random."""
        sample: NDArray[Any] = self._samples[self._shown[request_id % len(self._shown)]]
        return sample

    def launch(self, id: int, cores: float, *, full_speed: bool = False) -> LocalReplica:
        """Start a child process under a limit of its own."""
        with too_many_as_sentence():
            limiter = self._limits.limiter()
            try:
                return LocalReplica(id, self._setup, limiter, cores, full_speed)
            except OSError:
                limiter.close()
                raise

    def close(self) -> None:
        """Close the machine, unless others share it."""
        if self._own is not None:
            self._own.close()


def make_job(models: Sequence[Model], batch_max: int) -> Job:
    """Say what a child shall run: models of the same inputs and outputs."""
    inputs, outputs, most_tasks = models[0].inputs, models[0].outputs, models[0].most_tasks
    makings = [(_place(model), _arguments(model)) for model in models]
    return Job(makings, batch_max, *inputs, *outputs, most_tasks=most_tasks, path=sys.path)


def _place(model: Model) -> str:
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _arguments(model: Model) -> dict[str, Any]:
    """Return the fields of a model that is a dataclass."""
    return dataclasses.asdict(model) if dataclasses.is_dataclass(model) else {}


def too_many_as_sentence() -> AbstractContextManager[None]:
    """Turn the refusal of descriptors, processes or memory into a :class:`WorkerError`."""
    return refusal_as_sentence("another replica", "allow more (ulimit, pids.max) or ask for fewer")


def reserve(configs: Sequence[LiveConfig]) -> AbstractContextManager[None]:
    """Keep the CPUs of workers that are set up like this, also while none is open."""
    return RESERVATIONS.keep_off(_cpus(_largest(configs)))


def _largest(configs: Sequence[LiveConfig]) -> LiveConfig:
    """Return the stage whose replicas can have most cores: they all share its CPUs."""
    return max(configs, key=lambda config: config.physical_cores(config.cores_max))


def _cpus(config: LiveConfig) -> frozenset[int]:
    return choose_cpus(config.cpus, config.physical_cores(config.cores_max))


def check_machine(configs: Sequence[LiveConfig]) -> str:
    """Raise now what would keep a worker from starting here, see :class:`LocalLauncher`.

    Returned is what would limit its CPU.
    """
    with contextlib.closing(LocalMachine(configs)) as machine:
        open_launchers(configs, machine)
        return machine.limits.kind


def open_launchers(configs: Sequence[LiveConfig], machine: LocalMachine) -> list[LocalLauncher]:
    """Return a launcher for each stage of a chain on one machine.

    What answers of the first stage lead to has to be what the second takes, and later stages lead
    to nothing but one task; else that is a ``ConfigError``.
    """
    made = [LocalLauncher(config, machine) for config in configs]
    for k, (lead, after) in enumerate(itertools.pairwise(made)):
        if k and lead.most_tasks:
            raise ConfigError(
                f"{configs[k].model} says how many tasks follow, which only the first stage may"
            )
        if lead.most_tasks and lead.outputs != after.inputs:
            raise ConfigError(
                f"{configs[k].model} leads to tasks of {described(lead.outputs)}, but "
                f"{configs[k + 1].model} takes {described(after.inputs)}"
            )
    return made


def choose_cpus(wanted: Collection[int], cores: float) -> frozenset[int]:
    """Choose the CPUs that replicas are pinned to, each of them granted up to so many cores.

    Where none are wanted, they are the last that this process may use: workers of one process
    share them. Too few, or one that it may not use, are a :class:`ConfigError`.
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

    Meanwhile every thread of the process keeps off them, if it may use any others, and so do the
    workers of other processes.
    """

    def __init__(self) -> None:
        self.patient = False
        """Whether to wait for a CPU that another process has, or to refuse."""
        self._locks: dict[int, IO[str] | None] = {}
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
        """Move all threads of this process off some CPUs until the end of the block.

        A CPU that another process has is a :class:`WorkerError`, unless this one is patient.
        """
        with self._lock:
            self._lock_cpus(cpus)
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
                self._unlock_cpus()

    def _lock_cpus(self, cpus: frozenset[int]) -> None:
        try:
            for cpu in sorted(cpus - self._locks.keys()):  # all in one order: no deadlock
                self._locks[cpu] = lock_cpu(cpu, self.patient)
        except BaseException:
            self._unlock_cpus()
            raise

    def _unlock_cpus(self) -> None:
        for cpu in self._locks.keys() - frozenset[int]().union(*self._taken):
            if (lock := self._locks.pop(cpu)) is not None:
                lock.close()

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
