"""The simulated system once more, as one would write it with SimPy.

Requests, an earliest-deadline-first queue, one worker that serves batches, and a step that
sets cores and batch size, also of the batch that is running, and lets one interval pass. The
observation goes through the project's own encoder. Replicas, drop policies, the quota service
and the ledger are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy

from reference.system import Request
from sponge_env.interfaces import (
    Allocation,
    FloatArray,
    RunningBatch,
    StageView,
    SystemSpec,
    SystemView,
)
from sponge_env.metrics import IntervalMetrics
from sponge_env.simulation.encoding import encode

Process = Generator[simpy.Event, object, None]


@dataclass
class Interval:
    arrived: list[Request] = field(default_factory=list)
    on_time: int = 0
    late: int = 0
    busy_s: float = 0.0


class Server:
    """Queue and worker in virtual time."""

    def __init__(
        self,
        spec: SystemSpec,
        requests: Sequence[Request],
        latency_s: FloatArray,
        noise: Callable[[], float],
    ) -> None:
        """Set up an episode."""
        self._env = simpy.Environment()
        self._queue = simpy.PriorityStore(self._env)
        self._spec = spec
        self._latency_s = latency_s
        self._noise = noise
        self._allocation = spec.initial
        self._running: RunningBatch | None = None
        self._interval = Interval()
        self._arrivals: list[float] = []
        self._mean_delays_s: list[float] = []
        self._bandwidths: list[float] = []
        self._env.process(self._send(requests))
        self._worker = self._env.process(self._serve())

    def step(self, cores: int, batch: int) -> tuple[np.ndarray, Interval]:
        before, self._allocation = self._allocation, Allocation(cores, batch)
        if self._running is not None and before.cores != cores:
            self._worker.interrupt(before.cores)
        self._env.run(until=(len(self._arrivals) + 1) * self._spec.interval_s)
        interval, self._interval = self._interval, Interval()
        return encode(self._view(interval), self._spec), interval

    def _send(self, requests: Sequence[Request]) -> Process:
        for request in requests:
            yield self._env.timeout(max(0.0, request.arrival_s - self._env.now))
            self._interval.arrived.append(request)
            item = simpy.PriorityItem((request.deadline_s, request.id), request)
            yield self._queue.put(item)

    def _serve(self) -> Process:
        while True:
            batch = [(yield self._queue.get())]
            while len(batch) < self._allocation.batch and self._queue.items:
                batch.append((yield self._queue.get()))
            yield from self._work(len(batch))
            for item in batch:
                if self._env.now <= item.item.deadline_s:
                    self._interval.on_time += 1
                else:
                    self._interval.late += 1

    def _work(self, size: int) -> Process:
        """Pass the time of a batch; an interrupt says that the cores have changed."""
        cores = self._allocation.cores
        left_s = float(self._latency_s[size - 1, cores - 1]) * self._noise()
        while left_s > 0:
            started_s = self._env.now
            self._running = RunningBatch(size, started_s, started_s + left_s)
            try:
                yield self._env.timeout(left_s)
                left_s = 0.0
            except simpy.Interrupt:
                after = self._allocation.cores
                speed = self._latency_s[size - 1, after - 1] / self._latency_s[size - 1, cores - 1]
                left_s, cores = (left_s - (self._env.now - started_s)) * float(speed), after
            self._interval.busy_s += self._env.now - started_s
        self._running = None

    def _view(self, interval: Interval) -> SystemView:
        delays_s = np.array([r.delay_s for r in interval.arrived])
        transfer_s = delays_s.sum() - 0.01 * len(delays_s)
        self._arrivals.append(float(len(delays_s)))
        self._mean_delays_s.append(float(delays_s.mean()) if len(delays_s) else np.nan)
        payload_bytes = sum(r.payload_bytes for r in interval.arrived)
        self._bandwidths.append(payload_bytes / transfer_s if transfer_s > 0 else np.nan)
        only = StageView(
            queued_deadlines_s=np.sort([item.priority[0] for item in self._queue.items]),
            running=() if self._running is None else (self._running,),
            allocation=self._allocation.stages[0],
            replicas_ready=1,
            arrivals=np.array(self._arrivals[-30:]),
            cores_in_force=self._allocation.cores,
        )
        return SystemView(
            now_s=self._env.now,
            stages=(only,),
            allocation=self._allocation,
            delays_s=delays_s,
            budgets_s=self._spec.slo_s - delays_s,
            mean_delays_s=np.array(self._mean_delays_s[-30:]),
            bandwidths_bytes_per_s=np.array(self._bandwidths[-30:]),
            last=IntervalMetrics(
                on_time=interval.on_time,
                late=interval.late,
                utilisation=interval.busy_s / self._spec.interval_s,
            ),
        )
