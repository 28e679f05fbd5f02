"""The controlled system: one step puts an allocation in force for one interval.

Simulated and real alike; only the worker differs.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from reference.drive import ArrivalCursor, drive
from reference.ledger import Counts
from reference.measure import latency_metrics, resource_metrics, slo_metrics
from reference.reward import reward
from reference.serving import ServingCore
from reference.summation import total
from sponge_env.metrics import IntervalMetrics

from sponge_env.interfaces import (
    Allocation,
    FloatArray,
    Request,
    RunningBatch,
    SystemSpec,
    SystemView,
    Worker,
)

HISTORY = 30
"""Past intervals that a view shows."""

ROUNDING_S = 1e-9
"""A shorter transfer is none: delay and base delay differ by rounding only."""


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """What a system needs to know about its episode beyond the spec."""

    requests: Sequence[Request]
    """All requests, ascending by arrival."""
    intervals: int
    """Number of intervals."""
    base_delay_s: float
    """Part of the communication delay that is not transfer."""
    violation_weight: float
    """Weight of the reward."""
    count_from_s: float = 0.0
    """Time from which requests and cores count in the summary."""


class System:
    """Queue, batches, ledger and worker under control."""

    def __init__(
        self,
        spec: SystemSpec,
        plan: EpisodePlan,
        core: ServingCore,
        worker: Worker,
        *,
        hold_between_steps: bool = False,
    ) -> None:
        """Start at time 0.

        Args:
            spec: What controllers know, too.
            plan: The episode.
            core: An empty serving core.
            worker: A worker at time 0 with ``spec.initial`` in force. The system closes it.
            hold_between_steps: Stop the clock while no step runs, so that a learner may
                take its time on a live system.
        """
        self.spec = spec
        self.plan = plan
        self.core = core
        self.worker = worker
        self._arrivals = ArrivalCursor(plan.requests)
        self._hold = hold_between_steps
        self._allocation = spec.initial
        self._expected_end_s: dict[int, float] = {}
        self._interval = 0
        self._history = _History()
        self._last: IntervalMetrics | None = None
        self._counts = core.counts
        self._status = worker.status()
        self._measured_s = worker.now()
        if self._hold:
            worker.hold()

    @property
    def done(self) -> bool:
        """Whether the last interval is over."""
        return self._interval >= self.plan.intervals

    @property
    def limiter(self) -> str:
        """What limits the worker's CPU."""
        return self.worker.limiter

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the ledger; see :meth:`reference.ledger.Ledger.columns`."""
        return self.core.ledger.columns()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time pass for requests and worker meanwhile."""
        if self._hold:
            yield  # it stands still already
            return
        self.worker.hold()
        try:
            yield
        finally:
            self.worker.release()

    def view(self) -> SystemView:
        """Return what a controller sees now."""
        return SystemView(
            now_s=self.worker.now(),
            queued_deadlines_s=self.core.queued_deadlines_s(),
            running=self._running(),
            allocation=self._allocation,
            replicas_ready=self._status.ready,
            starting_s=self._status.starting_s,
            arrivals=np.array(self._history.arrivals, dtype=np.float64),
            delays_s=self._history.delays_s,
            budgets_s=self._history.budgets_s,
            mean_delays_s=np.array(self._history.mean_delays_s, dtype=np.float64),
            bandwidths_bytes_per_s=np.array(self._history.bandwidths, dtype=np.float64),
            last=self._last,
        )

    def step(self, allocation: Allocation, decision_s: float = 0.0) -> IntervalMetrics:
        """Put an allocation in force and serve until the interval ends.

        Args:
            allocation: Within the spec's limits.
            decision_s: How long the decision took, for the record.

        Returns:
            The interval's metrics.

        Raises:
            ValueError: The allocation is outside the limits.
            RuntimeError: The episode is over.
        """
        if self.done:
            raise RuntimeError("the episode is over; start a new one")
        check_allocation(allocation, self.spec)
        paused_s = self.worker.release() if self._hold else 0.0
        self._resize(allocation)
        self._interval += 1
        until_s = self._interval * self.spec.interval_s
        drive(self.core, self.worker, self._arrivals, allocation.batch, until_s)
        self._last = self._measure(until_s, allocation, decision_s, paused_s)
        if self._hold:
            self.worker.hold()
        return self._last

    def drain(self) -> Counts:
        """End the episode: serve what is left under the allocation in force.

        No request arrives any more. Requests that still wait when the last deadline has
        passed are dropped, so that afterwards nothing is queued or running.
        """
        if self._hold:
            self.worker.release()
        no_arrivals = ArrivalCursor(())
        deadlines_s = [r.deadline_s for b, _ in self.core.running.values() for r in b.requests]
        last_s = max([*deadlines_s, *self.core.queued_deadlines_s()[-1:]], default=0.0)
        while self.core.pending and self.worker.now() < last_s:
            until_s = min(last_s, self.worker.now() + self.spec.interval_s)
            drive(self.core, self.worker, no_arrivals, self._allocation.batch, until_s)
        self.core.abandon(self.worker.now())
        while self.core.running:
            for completion in self.worker.wait(self.worker.now() + self.spec.interval_s):
                self.core.settle(completion)
        return self.core.counts

    def close(self) -> None:
        """Release the worker."""
        self.worker.close()

    def _resize(self, allocation: Allocation) -> None:
        now_s, old, new = self.worker.now(), self._allocation.cores, allocation.cores
        self.worker.resize(allocation)
        expected = {}
        for batch_id, (batch, _) in self.core.running.items():
            left_s = max(0.0, self._planned_end_s(batch_id) - now_s)
            before_s, after_s = self._latency_s(batch.size, [old, new])
            expected[batch_id] = now_s + left_s * after_s / before_s
        self._expected_end_s = expected
        self._allocation = allocation

    def _running(self) -> tuple[RunningBatch, ...]:
        return tuple(
            RunningBatch(batch.size, started_s, self._planned_end_s(batch_id))
            for batch_id, (batch, started_s) in self.core.running.items()
        )

    def _planned_end_s(self, batch_id: int) -> float:
        """When the latency model expects a running batch to end."""
        if batch_id in self._expected_end_s:
            return self._expected_end_s[batch_id]
        batch, started_s = self.core.running[batch_id]
        return started_s + self._latency_s(batch.size, [self._allocation.cores])[0]

    def _latency_s(self, size: int, cores: list[int]) -> list[float]:
        table_s = self.spec.latency.table_s(self.spec.batch_max, self.spec.cores_max)
        return [float(table_s[size - 1, c - 1]) for c in cores]

    def _measure(
        self, until_s: float, allocation: Allocation, decision_s: float, paused_s: float
    ) -> IntervalMetrics:
        arrived, ended, completions = self.core.take_interval()
        self._history.add(arrived, self.plan.base_delay_s)
        now_s, counts, status = self.worker.now(), self.core.counts, self.worker.status()
        elapsed_s = now_s - self._measured_s
        metrics = IntervalMetrics(
            time_s=until_s,
            **slo_metrics(self._counts, counts),
            **latency_metrics(ended, completions),
            **resource_metrics(self._status, status, elapsed_s, self.spec.core_unit),
            requested_cores=allocation.cores,
            batch=allocation.batch,
            replicas=allocation.replicas,
            delay_mean_s=self._history.mean_delays_s[-1],
            delay_max_s=float(self._history.delays_s.max()) if arrived else np.nan,
            bandwidth_bytes_per_s=self._history.bandwidths[-1],
            feasible=int(allocation.feasible),
            decision_s=decision_s,
            paused_s=paused_s,
        )
        self._counts, self._status, self._measured_s = counts, status, now_s
        value = reward(metrics, self.spec.cores_max, self.plan.violation_weight)
        return dataclasses.replace(metrics, reward=value)


def check_allocation(allocation: Allocation, spec: SystemSpec) -> None:
    """Check that an allocation lies within the limits.

    Raises:
        ValueError: It does not.
    """
    for name in ("cores", "batch", "replicas"):
        value, limit = getattr(allocation, name), getattr(spec, f"{name}_max")
        if not isinstance(value, int | np.integer) or not 1 <= value <= limit:
            raise ValueError(
                f"allocation.{name} must be a whole number between 1 and {limit}, not {value!r}"
            )
    if allocation.variant != 0:
        raise ValueError(f"there is only model variant 0, not {allocation.variant!r}")


class _History:
    """What the past intervals' arrivals had to say about load and network."""

    def __init__(self) -> None:
        self.arrivals: deque[float] = deque(maxlen=HISTORY)
        self.mean_delays_s: deque[float] = deque(maxlen=HISTORY)
        self.bandwidths: deque[float] = deque(maxlen=HISTORY)
        self.delays_s: FloatArray = np.zeros(0)
        self.budgets_s: FloatArray = np.zeros(0)

    def add(self, arrived: Sequence[Request], base_delay_s: float) -> None:
        """Add one interval."""
        self.arrivals.append(float(len(arrived)))
        self.delays_s = np.array([r.delay_s for r in arrived], dtype=np.float64)
        self.budgets_s = np.array([r.budget_on_arrival_s for r in arrived], dtype=np.float64)
        mean_s = self.mean_delays_s[-1] if self.mean_delays_s else np.nan
        bandwidth = self.bandwidths[-1] if self.bandwidths else np.nan
        if arrived:
            total_s = total(r.delay_s for r in arrived)
            transfer_s = total_s - base_delay_s * len(arrived)
            mean_s = total_s / len(arrived)
            if transfer_s > ROUNDING_S * len(arrived):
                bandwidth = total(r.payload_bytes for r in arrived) / transfer_s
        self.mean_delays_s.append(mean_s)
        self.bandwidths.append(bandwidth)
