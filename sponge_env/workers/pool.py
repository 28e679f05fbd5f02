"""The real worker: a pool of child processes that run the model under CPU limits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType

from sponge_env.interfaces import Allocation, Batch, Completion, WorkerStatus
from sponge_env.models import resolve_model, sample_images
from sponge_env.workers.affinity import RESERVATIONS, choose_cpus
from sponge_env.workers.child import Job
from sponge_env.workers.cleanup import Janitor
from sponge_env.workers.clock import EpisodeClock
from sponge_env.workers.fleet import Ended, Fleet
from sponge_env.workers.limits import open_limits
from sponge_env.workers.meter import Meter
from sponge_env.workers.process import Replica, State
from sponge_env.workers.real_config import RealWorkerConfig

__all__ = ["PoolWorker", "RealWorkerConfig"]


def check_machine(config: RealWorkerConfig) -> None:
    """Raise now what would keep a worker from starting, before anything is started.

    Raises:
        ConfigError: The configuration or the model cannot be used.
        WorkerError: The CPU cannot be limited as asked.
    """
    cpus = choose_cpus(config.cpus, config.physical_cores(config.cores_max))
    resolve_model(config.model)
    open_limits(config.limiter, config.core_unit, len(cpus), lambda group: None).close()


class PoolWorker:
    """Runs batches on real replicas, in real time. Implements ``interfaces.Worker``.

    The constructor returns when the initial replicas are ready; they start at full speed,
    then their limits are put in force and the clock starts. All methods but :meth:`wake`
    belong to one thread at a time.

    A batch's CPU time includes the handling of its messages. Its end is stamped by the
    child just before it answers; should the quota be found exhausted in the microseconds
    between, the answer arrives up to a period later.

    Args:
        config: How to set it up.

    Raises:
        ConfigError: The configuration or the model cannot be used.
        WorkerError: No replica starts, or the CPU cannot be limited as asked.
    """

    def __init__(self, config: RealWorkerConfig | None = None) -> None:
        self.config = config or RealWorkerConfig()
        self._cores = self.config.initial.cores
        self._cpu_s = 0.0
        self._actuation_s = 0.0
        with contextlib.ExitStack() as cleanup:
            self._open(cleanup)
            self._cleanup = cleanup.pop_all()
        self._warm_up_cpu_s = self._fleet.cpu_s
        self._clock = EpisodeClock()
        self._meter = Meter(self._held_cores)

    def _open(self, cleanup: contextlib.ExitStack) -> None:
        """Acquire everything that is given back at the end, and start the replicas."""
        config = self.config
        cpus = choose_cpus(config.cpus, config.physical_cores(config.cores_max))
        model = resolve_model(config.model)
        job = Job(str(model.path), config.batch_max, model.image_shape, model.outputs)
        images = sample_images(model.image_shape)
        cleanup.enter_context(RESERVATIONS.keep_off(cpus))
        janitor = Janitor()
        cleanup.callback(janitor.close)
        self._limits = open_limits(config.limiter, config.core_unit, len(cpus), janitor.watch_group)
        cleanup.callback(self._limits.close)
        self._fleet = Fleet(config, job, images, cpus, self._limits, janitor)
        cleanup.callback(self._fleet.close)
        self._fleet.warm_up(config.initial.replicas, config.physical_cores(self._cores))

    @property
    def limiter(self) -> str:
        """What limits the CPU: cgroup-v1, cgroup-v2, duty-cycle or none."""
        return self._limits.kind

    @property
    def period_s(self) -> float:
        """Enforcement period of the CPU limit."""
        return self._limits.period_s

    @property
    def tick_s(self) -> float:
        """Time between two looks of the CPU limit at what was used."""
        return self._limits.tick_s

    @property
    def paused_s(self) -> float:
        """Total time that the clock was held."""
        return self._clock.paused_s

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, oldest first; for inspection only."""
        return tuple(self._fleet.replicas)

    def now(self) -> float:
        """Return the time since the start of the episode, without the times held."""
        return self._clock.now_s()

    def hold(self) -> None:
        """Stop the clock, for instance while a policy learns.

        What runs goes on running; batches that end meanwhile end at the hold's instant.
        """
        self._clock.hold()

    def release(self) -> float:
        """Let the clock run on; return how long it was held."""
        held_s = self._clock.release()
        self._fleet.excuse(held_s)
        return held_s

    def idle(self) -> int:
        """Return how many replicas could start a batch now."""
        return sum(1 for replica in self.replicas if replica.state is State.IDLE)

    def start(self, batch: Batch) -> None:
        """Give a batch to the idle replica with the lowest id."""
        replica = next((r for r in self.replicas if r.state is State.IDLE), None)
        if replica is None:
            raise RuntimeError("no replica is idle")
        replica.start(batch, self.config.threads(self._cores))

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Block until something changes, at the latest until ``until_s``.

        Raises:
            WorkerError: Replicas die over and over before they are ready.
            RuntimeError: The clock is held, so that ``until_s`` would never come.
        """
        if self._clock.held:
            raise RuntimeError("cannot wait while the clock is held; release it first")
        while True:
            left_s = until_s - self.now()
            changed, ended = self._fleet.poll(max(0.0, left_s))
            if changed:
                self._update_meter()
            if changed or left_s <= 0:
                return sorted(map(self._complete, ended), key=lambda c: c.finished_s)

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return now; safe from any thread."""
        self._fleet.wake()

    def resize(self, allocation: Allocation) -> None:
        """Put cores and replicas in force.

        Raises:
            ConfigError: Cores or replicas out of range.
            WorkerError: The kernel refuses the new limit or a new replica's.
        """
        self.config.check(allocation)
        begin_s = time.monotonic()
        # a quota write refills the kernel's tokens: none without need
        if allocation.cores != self._cores:
            # a batch takes its threads from this when it starts, and this thread starts
            # none meanwhile: threads never outnumber what the quota can run
            self._cores = allocation.cores
            self._fleet.limit(self.config.physical_cores(self._cores))
        self._fleet.scale(allocation.replicas)
        self._update_meter()
        self._actuation_s = time.monotonic() - begin_s

    def status(self) -> WorkerStatus:
        """Return the replicas' state and the counters up to now.

        Cores in use are the CPU time of all replicas until now, that of running batches,
        of messages and of cold starts included; ``cpu_s`` counts batches when they end.
        """
        staying = [replica for replica in self.replicas if not replica.draining]
        starting = [replica for replica in staying if replica.state is State.STARTING]
        ready_s = [r.spawned_s + self._fleet.cold_start_s - time.monotonic() for r in starting]
        granted_cores = [replica.limiter.granted_cores() for replica in self.replicas[:1]]
        used_cpu_s = self._fleet.cpu_s - self._warm_up_cpu_s
        return WorkerStatus(
            ready=len(staying) - len(starting),
            starting_s=tuple(sorted(max(0.0, left_s) for left_s in ready_s)),
            held_cores=self._meter.value,
            effective_cores=sum(granted_cores) / self.config.core_unit,
            core_seconds=self._meter.read(self.now()),
            used_core_seconds=used_cpu_s / self.config.core_unit,
            cpu_s=self._cpu_s,
            throttled_s=self._fleet.throttled_s,
            restarts=self._fleet.restarts,
            actuation_s=self._actuation_s,
        )

    def crash(self) -> None:
        """Kill the first replica that serves, a busy one if there is one.

        For failure injection. The next :meth:`wait` notices, as it does every death.

        Raises:
            RuntimeError: No replica serves.
        """
        serving = [r for r in self.replicas if r.state is not State.STARTING]
        if not serving:
            raise RuntimeError("no replica serves that could crash")
        min(serving, key=lambda r: (r.state is not State.BUSY, r.id)).kill()

    def close(self) -> None:
        """Stop; leave no process and no control group behind. Safe to call twice."""
        self._cleanup.close()

    def __enter__(self) -> PoolWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _held_cores(self) -> float:
        return float(self._cores * len(self.replicas))

    def _update_meter(self) -> None:
        self._meter.set(self.now(), self._held_cores)

    def _complete(self, end: Ended) -> Completion:
        batch, sent_s = end.running
        if end.report is None:
            started_s = self._clock.at(sent_s)
            return Completion(batch, end.replica_id, started_s, self.now(), ok=False)
        started_s, finished_s, cpu_s = end.report.started_s, end.report.finished_s, end.report.cpu_s
        self._cpu_s += cpu_s
        return Completion(
            batch,
            end.replica_id,
            self._clock.at(started_s),
            self._clock.at(finished_s),
            True,
            cpu_s,
        )
