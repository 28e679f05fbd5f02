"""The simulated worker: replicas on a virtual clock that jumps from event to event.

How long a batch takes is the business of a service: :class:`ProfileService` charges the measured
l(b, c), right for whole cores; :class:`~reference.quota.QuotaBucket` is the kernel's CPU
bandwidth control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sponge_env.arrays import total
from sponge_env.interfaces import Allocation, Batch, Completion, FloatArray, WorkerStatus
from sponge_env.latency import quantile


class Service(Protocol):
    """The batch on one replica, and the replica's counters."""

    finish_s: float
    """When the batch, or the loading, ends if nothing changes."""
    used_core_s: float
    throttled_s: float

    def load(self, now_s: float, cold_start_s: float, loading: int) -> None:
        """Begin to load the model, as one of ``loading`` replicas that do so."""

    def start(self, now_s: float, size: int, noise: float) -> None:
        """Begin a batch that takes ``noise`` times the usual work."""

    def advance(self, now_s: float) -> None:
        """Let the batch and the counters progress to ``now_s``."""

    def resize(self, now_s: float, cores: int) -> None:
        """Change the cores; what is left of the batch goes on at the new speed."""

    def share(self, now_s: float, cores: float) -> None:
        """Get no more than so many core units until this is called again, or a resize."""


class ProfileService:
    """Every batch takes l(b, c); a resize rescales the time that is left.

    To load the model takes its time on any cores, and is not counted as use of them.
    """

    def __init__(self, latency_s: FloatArray, cores: int) -> None:
        """Start idle; ``latency_s`` is (batch_max, cores_max)."""
        self._latency_s = latency_s
        self._cores = cores
        self._size = 0  # 0 while loading
        self._since_s = 0.0
        self.finish_s = 0.0
        self.used_core_s = 0.0
        self.throttled_s = 0.0

    def load(self, now_s: float, cold_start_s: float, loading: int) -> None:
        self._size, self.finish_s = 0, now_s + cold_start_s

    def start(self, now_s: float, size: int, noise: float) -> None:
        self._size, self._since_s = size, now_s
        self.finish_s = now_s + float(self._latency_s[size - 1, self._cores - 1]) * noise

    def advance(self, now_s: float) -> None:
        to_s = min(now_s, self.finish_s)
        if self._size and to_s > self._since_s:
            self.used_core_s += (to_s - self._since_s) * self._cores
            self._since_s = to_s

    def resize(self, now_s: float, cores: int) -> None:
        self.advance(now_s)
        if self._size and self.finish_s > now_s:
            old, new = self._latency_s[self._size - 1, [self._cores - 1, cores - 1]]
            self.finish_s = now_s + (self.finish_s - now_s) * float(new / old)
        self._cores = cores

    def share(self, now_s: float, cores: float) -> None:
        """Do nothing: whole cores are a replica's own."""


class _Held:
    """Integral of the cores held."""

    def __init__(self) -> None:
        self.cores, self._since_s, self._total = 0.0, 0.0, 0.0

    def set(self, now_s: float, cores: float) -> None:
        self._total, self._since_s, self.cores = self.read(now_s), now_s, cores

    def read(self, now_s: float) -> float:
        return self._total + self.cores * max(0.0, now_s - self._since_s)


@dataclass(slots=True)
class _Replica:
    id: int
    ready_s: float
    service: Service
    batch: Batch | None = None
    started_s: float = 0.0
    draining: bool = False


class SimulatedWorker:
    """Serves batches in virtual time; the same seed gives the same completions."""

    limiter = "simulated"

    def __init__(
        self,
        make_service: Callable[[int], Service],
        initial: Allocation,
        *,
        cold_start_s: float,
        actuation_delay_s: float = 0.0,
        total_cores: int = 1 << 30,
        cpu_cores: float = math.inf,
        noise: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Start at time 0 with the initial replicas warm.

        Args:
            make_service: Makes the service of a replica with the given core units.
            initial: Allocation in force at first.
            cold_start_s: Time until a new replica serves; what that means on how many cores is
                the service's business.
            actuation_delay_s: Time from :meth:`resize` until it takes effect.
            total_cores: Core units of the machine, which is all that replicas can hold together.
            cpu_cores: Core units that all replicas together can get.
            noise: Draws the work of a batch relative to the usual.
        """
        self._make_service = make_service
        self._cold_start_s = cold_start_s
        self._actuation_delay_s = actuation_delay_s
        self._total_cores = total_cores
        self.cpu_cores = cpu_cores
        self._noise = noise
        self._now_s = 0.0
        self._target = initial
        self._cores = initial.cores
        self._next_id = 0
        self._replicas: list[_Replica] = []
        self.pending: list[tuple[float, Allocation]] = []
        """When resizes that were asked for come into force."""
        self.in_force: list[tuple[float, int]] = [(-math.inf, initial.cores)]
        """When resizes came into force, and their cores."""
        self._crashed: list[Completion] = []
        self._retired_core_s = 0.0
        self._retired_throttled_s = 0.0
        self._restarts = 0
        self._held = _Held()
        for _ in range(initial.replicas):
            self._add_replica()
        self._update_held()

    def now(self) -> float:
        """Return the virtual time."""
        return self._now_s

    def idle(self, stage: int = 0) -> int:
        """Return how many replicas could start a batch now."""
        return sum(1 for replica in self._replicas if self._is_idle(replica))

    def start(self, batch: Batch) -> None:
        """Give a batch to the idle replica with the lowest id."""
        replica = next((r for r in self._replicas if self._is_idle(r)), None)
        if replica is None:
            raise RuntimeError("no replica is idle")
        replica.batch, replica.started_s = batch, self._now_s
        replica.service.start(self._now_s, batch.size, self._noise())

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Jump to the next event, at the latest to ``until_s``."""
        if self._crashed:
            crashed, self._crashed = self._crashed, []
            return crashed
        event_s = min(self.events_s(), default=float("inf"))
        self._now_s = max(self._now_s, min(until_s, event_s))
        while self.pending and self.pending[0][0] <= self._now_s:
            self._apply(self.pending.pop(0)[1])
        return self._take_completions()

    def forget(self, requests: Sequence[int]) -> None:
        """Do nothing: nothing is kept of requests."""

    def wake(self) -> None:
        """Do nothing: virtual time never blocks."""

    def resize(self, allocation: Allocation) -> None:
        """Put an allocation in force, after the actuation delay if there is one."""
        if self._actuation_delay_s > 0:
            self.pending.append((self._now_s + self._actuation_delay_s, allocation))
        else:
            self._apply(allocation)

    def hold(self) -> None:
        """Do nothing: the virtual clock stands still by itself."""

    def release(self) -> float:
        """Return 0: no wall time was held."""
        return 0.0

    def status(self, stage: int = 0) -> WorkerStatus:
        """Return the replicas' state and the counters up to now."""
        for replica in self._replicas:
            replica.service.advance(self._now_s)
        staying = [replica for replica in self._replicas if not replica.draining]
        starting_s = sorted(r.ready_s - self._now_s for r in staying if r.ready_s > self._now_s)
        services = [replica.service for replica in self._replicas]
        return WorkerStatus(
            ready=len(staying) - len(starting_s),
            starting_s=tuple(starting_s),
            held_cores=self._held.cores,
            effective_cores=float(self._cores),
            core_seconds=self._held.read(self._now_s),
            used_core_seconds=self._retired_core_s + total(s.used_core_s for s in services),
            cpu_s=0.0,
            throttled_s=self._retired_throttled_s + total(s.throttled_s for s in services),
            restarts=self._restarts,
            actuation_s=0.0,
        )

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def crash(self, spared: int = -1) -> None:
        """Kill the first replica that serves, a busy one if there is one; restart it cold.

        The replica ``spared`` lives on.

        Raises:
            RuntimeError: No replica serves.
        """
        serving = [r for r in self._replicas if r.ready_s <= self._now_s and r.id != spared]
        if not serving:
            raise RuntimeError("no replica serves that could crash")
        replica = min(serving, key=lambda r: (r.batch is None, r.id))
        if replica.batch is not None:
            self._crashed.append(self._completion(replica, self._now_s, ok=False))
        self._retire(replica)
        self._restarts += 1
        self._fit()

    def _is_idle(self, replica: _Replica) -> bool:
        return replica.batch is None and replica.ready_s <= self._now_s

    def _share_cpu(self) -> None:
        """Let each replica that serves or loads have an equal part of the CPU, if it needs it."""
        busy = sum(1 for replica in self._replicas if not self._is_idle(replica))
        part = min(self._cores, self.cpu_cores / max(1, busy))
        for replica in self._replicas:
            idle = self._is_idle(replica)
            replica.service.share(self._now_s, float(self._cores if idle else part))
            if replica.ready_s > self._now_s:
                replica.ready_s = replica.service.finish_s

    def events_s(self) -> list[float]:
        """Return when something will happen of itself."""
        self._share_cpu()
        ends = [r.service.finish_s for r in self._replicas if r.batch is not None]
        ready = [r.ready_s for r in self._replicas if r.ready_s > self._now_s]
        return ends + ready + [time_s for time_s, _ in self.pending[:1]]

    def _take_completions(self) -> list[Completion]:
        ended = [
            replica
            for replica in self._replicas
            if replica.batch is not None and replica.service.finish_s <= self._now_s
        ]
        ended.sort(key=lambda replica: (replica.service.finish_s, replica.id))
        completions = [self._completion(r, r.service.finish_s, ok=True) for r in ended]
        for replica in ended:
            replica.service.advance(replica.service.finish_s)
            replica.batch = None
            if replica.draining:
                self._retire(replica)
                self._fit()
        if ended:
            self._update_held()
        return completions

    @staticmethod
    def _completion(replica: _Replica, finished_s: float, ok: bool) -> Completion:
        assert replica.batch is not None
        return Completion(replica.batch, replica.id, replica.started_s, finished_s, ok)

    @property
    def _staying(self) -> list[_Replica]:
        return [replica for replica in self._replicas if not replica.draining]

    def _apply(self, allocation: Allocation) -> None:
        """Put an allocation in force, as far as the machine has room for it."""
        self._target = allocation
        self.in_force.append((self._now_s, allocation.cores))
        surplus = len(self._staying) - allocation.replicas
        for replica in sorted(self._staying, key=self._scale_in_order)[: max(0, surplus)]:
            self._drain(replica)
        self._fit()

    def _fit(self) -> None:
        """Come as close to the allocation as those that still drain, and hold cores, allow."""
        held, target = len(self._replicas), self._target
        missing = max(0, min(target.replicas - len(self._staying), self._total_cores - held))
        self._set_cores(min(target.cores, self._total_cores // max(1, held + missing)))
        self._load([self._add_replica() for _ in range(missing)])
        self._update_held()

    def _set_cores(self, cores: int) -> None:
        if cores != self._cores:
            self._cores = cores
            for replica in self._replicas:
                replica.service.resize(self._now_s, cores)
                if replica.ready_s > self._now_s:
                    replica.ready_s = replica.service.finish_s

    def _scale_in_order(self, replica: _Replica) -> tuple[bool, bool, int]:
        """Cold ones go first, then idle ones, then busy ones; the youngest first."""
        return (replica.ready_s <= self._now_s, replica.batch is not None, -replica.id)

    def _drain(self, replica: _Replica) -> None:
        if replica.batch is None:
            self._retire(replica)
        else:
            replica.draining = True

    def _add_replica(self) -> _Replica:
        """Add a replica that is ready."""
        replica = _Replica(self._next_id, self._now_s, self._make_service(self._cores))
        self._replicas.append(replica)
        self._next_id += 1
        return replica

    def _load(self, replicas: Sequence[_Replica]) -> None:
        """Let new replicas load their model."""
        loading = len(replicas) + sum(r.ready_s > self._now_s for r in self._replicas)
        for replica in replicas:
            replica.service.load(self._now_s, self._cold_start_s, loading)
            replica.ready_s = replica.service.finish_s

    def _retire(self, replica: _Replica) -> None:
        replica.service.advance(self._now_s)
        self._retired_core_s += replica.service.used_core_s
        self._retired_throttled_s += replica.service.throttled_s
        self._replicas.remove(replica)

    def _update_held(self) -> None:
        self._held.set(self._now_s, float(self._cores * len(self._replicas)))


def noise_source(
    quantiles: Sequence[float], scale: float, rng: np.random.Generator
) -> Callable[[], float]:
    """Make a source of multiplicative noise from a profile's scatter.

    Args:
        quantiles: Relative deviations at evenly spaced probabilities.
        scale: Factor on the deviations; 0 gives 1.0 always.
        rng: One uniform number is drawn from it for each batch.

    Returns:
        A function that returns one factor, at least 0.05, at each call.
    """
    return lambda: max(0.05, 1.0 + scale * quantile(quantiles, rng.random()))
