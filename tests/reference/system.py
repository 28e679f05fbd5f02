"""The controlled system: one step puts an allocation in force for one interval."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.serving import ArrivalCursor, Counts, Entry, ServingCore, drive
from reference.workload import Request
from sponge_env.arrays import total
from sponge_env.interfaces import (
    HISTORY,
    Allocation,
    Completion,
    FloatArray,
    Outcome,
    RunningBatch,
    StageView,
    SystemSpec,
    SystemView,
    Worker,
    WorkerStatus,
)
from sponge_env.metrics import IntervalMetrics
from sponge_env.scenario.config import Reward
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import check_allocation

ROUNDING_S = 1e-9
"""A shorter transfer is none: delay and base delay differ by rounding only."""


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """How long an episode is, and from when on it counts."""

    intervals: int
    count_from_s: float


class System:
    """Queue, batches, ledger and worker under control."""

    measured_accuracy = math.nan
    """Nobody looks at answers that are none."""

    def __init__(
        self,
        scenario: Scenario,
        spec: SystemSpec,
        requests: Sequence[Request],
        core: ServingCore,
        worker: Worker,
    ) -> None:
        """Start at time 0.

        Args:
            scenario: As long as its traces.
            spec: What controllers know, too.
            requests: Ascending by arrival.
            core: Empty.
            worker: At time 0, with ``spec.initial`` in force.
        """
        self.spec = spec
        self.plan = EpisodePlan(scenario.intervals, scenario.count_from_s)
        self.core = core
        self.worker = worker
        self._scenario = scenario
        self._arrivals = ArrivalCursor(requests)
        self._allocation = spec.initial
        self._interval = 0
        self._history = _History(scenario.network.base_delay_s)
        self._last: IntervalMetrics | None = None
        self._counts = core.counts
        self._status = worker.status()
        self._measured_s = worker.now()

    @property
    def done(self) -> bool:
        return self._interval >= self.plan.intervals

    @property
    def limiter(self) -> str:
        return self.worker.limiter

    def columns(self) -> dict[str, NDArray[np.generic]]:
        return self.core.ledger.columns()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.worker.hold()
        yield
        self.worker.release()

    def close(self) -> None:
        self.worker.close()

    def view(self) -> SystemView:
        """Return what a controller sees now."""
        only = StageView(
            queued_deadlines_s=self.core.queued_deadlines_s(),
            running=tuple(
                RunningBatch(len(requests), started_s, self._planned_end_s(batch_id))
                for batch_id, (requests, started_s) in self.core.running.items()
            ),
            allocation=self._allocation.stages[0],
            replicas_ready=self._status.ready,
            starting_s=self._status.starting_s,
            arrivals=np.array(self._history.arrivals, dtype=np.float64),
            cores_in_force=self.worker.in_force[-1][1],
            pending=tuple(
                (time_s - self.worker.now(), asked.cores) for time_s, asked in self.worker.pending
            ),
            last=None,
        )
        return SystemView(
            now_s=self.worker.now(),
            stages=(only,),
            allocation=self._allocation,
            delays_s=self._history.delays_s,
            budgets_s=self._history.budgets_s,
            mean_delays_s=np.array(self._history.mean_delays_s, dtype=np.float64),
            bandwidths_bytes_per_s=np.array(self._history.bandwidths, dtype=np.float64),
            last=self._last,
        )

    def step(self, allocation: Allocation, decision_s: float = 0.0) -> IntervalMetrics:
        """Put an allocation in force and serve until the interval ends."""
        if self.done:
            raise RuntimeError("the episode is over; start a new one")
        check_allocation(allocation, self.spec)
        self.worker.resize(allocation)
        self._allocation = allocation
        self._interval += 1
        until_s = self._interval * self.spec.interval_s
        drive(self.core, self.worker, self._arrivals, allocation.batch, until_s)
        self._last = self._measure(until_s, allocation, decision_s)
        return self._last

    def drain(self) -> Counts:
        """End the episode: serve what is left under the allocation in force.

        No request arrives any more. Requests that still wait when the last deadline has
        passed are dropped, so that afterwards nothing is queued or running.
        """
        no_arrivals = ArrivalCursor(())
        running_s = [r.deadline_s for requests, _ in self.core.running.values() for r in requests]
        last_s = max([*running_s, *self.core.queued_deadlines_s()[-1:]], default=0.0)
        while self.core.pending and self.worker.now() < last_s:
            until_s = min(last_s, self.worker.now() + self.spec.interval_s)
            batch_max = self._allocation.batch
            drive(self.core, self.worker, no_arrivals, batch_max, until_s)
        self.core.abandon(self.worker.now())
        while self.core.running:
            for completion in self.worker.wait(self.worker.now() + self.spec.interval_s):
                self.core.settle(completion)
        return self.core.counts

    def _planned_end_s(self, batch_id: int) -> float:
        """When the latency model expects a running batch to end, whatever was resized since."""
        requests, started_s = self.core.running[batch_id]
        before = [cores for time_s, cores in self.worker.in_force if time_s <= started_s]
        (latency_s,) = self._latency_s(len(requests), before[-1:])
        end_s, old = started_s + latency_s, before[-1]
        for time_s, new in self.worker.in_force[len(before) :]:
            left_s = max(0.0, end_s - time_s)
            before_s, after_s = self._latency_s(len(requests), [old, new])
            end_s, old = time_s + left_s * after_s / before_s, new
        return end_s

    def _latency_s(self, size: int, cores: list[int]) -> list[float]:
        table_s = self.spec.first.latency.table_s(
            self.spec.first.batch_max, self.spec.first.cores_max
        )
        return [float(table_s[size - 1, c - 1]) for c in cores]

    def _measure(
        self, until_s: float, allocation: Allocation, decision_s: float
    ) -> IntervalMetrics:
        arrived, ended, completions = self.core.take_interval()
        self._history.add(arrived)
        now_s, counts, status = self.worker.now(), self.core.counts, self.worker.status()
        elapsed_s = now_s - self._measured_s
        metrics = IntervalMetrics(
            time_s=until_s,
            **slo_metrics(self._counts, counts),
            **latency_metrics(ended, completions),
            **resource_metrics(self._status, status, elapsed_s, self.spec.first.core_unit),
            requested_cores=allocation.cores,
            batch=allocation.batch,
            replicas=allocation.replicas,
            delay_mean_s=self._history.mean_delays_s[-1],
            delay_max_s=float(self._history.delays_s.max()) if arrived else np.nan,
            bandwidth_bytes_per_s=self._history.bandwidths[-1],
            feasible=int(allocation.feasible),
            decision_s=decision_s,
            paused_s=0.0,
        )
        self._counts, self._status, self._measured_s = counts, status, now_s
        rewarded = reward(metrics, self.spec.total_cores, self._scenario.reward)
        return dataclasses.replace(metrics, reward=rewarded)


class _History:
    """What the past intervals' arrivals had to say about load and network."""

    def __init__(self, base_delay_s: float) -> None:
        self._base_delay_s = base_delay_s
        self.arrivals: deque[float] = deque(maxlen=HISTORY)
        self.mean_delays_s: deque[float] = deque(maxlen=HISTORY)
        self.bandwidths: deque[float] = deque(maxlen=HISTORY)
        self.delays_s: FloatArray = np.zeros(0)
        self.budgets_s: FloatArray = np.zeros(0)

    def add(self, arrived: Sequence[Request]) -> None:
        """Add one interval; without arrivals it repeats the delay and the bandwidth before it."""
        self.arrivals.append(float(len(arrived)))
        self.delays_s = np.array([r.delay_s for r in arrived], dtype=np.float64)
        self.budgets_s = np.array([r.budget_on_arrival_s for r in arrived], dtype=np.float64)
        mean_s = self.mean_delays_s[-1] if self.mean_delays_s else np.nan
        bandwidth = self.bandwidths[-1] if self.bandwidths else np.nan
        if arrived:
            total_s = total(r.delay_s for r in arrived)
            transfer_s = total_s - self._base_delay_s * len(arrived)
            mean_s = total_s / len(arrived)
            if transfer_s > ROUNDING_S * len(arrived):
                bandwidth = total(r.payload_bytes for r in arrived) / transfer_s
        self.mean_delays_s.append(mean_s)
        self.bandwidths.append(bandwidth)


def slo_metrics(before: Counts, after: Counts) -> dict[str, Any]:
    """Return what became of requests between two looks at the ledger."""
    ended = after.ended - before.ended
    violations = after.violations - before.violations
    return {
        **{
            name: getattr(after, name) - getattr(before, name)
            for name in ("offered", "on_time", "late", "dropped", "failed", "hopeless")
        },
        "violations": violations,
        "avoidable_violations": after.avoidable - before.avoidable,
        "violation_rate": violations / ended if ended else 0.0,
        "queued": after.queued,
        "running": after.running,
    }


def latency_metrics(ended: Sequence[Entry], completions: Sequence[Completion]) -> dict[str, Any]:
    """Return sizes and times of batches and end-to-end latencies of what ended in the interval."""
    metrics: dict[str, Any] = {}
    latency_s = sorted(
        entry.finished_s - entry.request.sent_s
        for entry in ended
        if entry.outcome in (Outcome.ON_TIME, Outcome.LATE)
    )
    if latency_s:
        metrics["latency_mean_s"] = total(latency_s) / len(latency_s)
        metrics["accuracy"] = 1.0  # of a model without variants
    if ended:
        in_time = sum(entry.outcome is Outcome.ON_TIME for entry in ended)
        metrics["effective_accuracy"] = in_time / len(ended)
        of_all = latency_s + [math.inf] * (len(ended) - len(latency_s))
        for name, probability in (("latency_p50_s", 0.5), ("latency_p99_s", 0.99)):
            position = probability * (len(of_all) - 1)
            low, high = of_all[math.floor(position)], of_all[math.ceil(position)]
            share = position - math.floor(position)
            metrics[name] = high if math.isinf(high) else low + share * (high - low)
    if completions:
        metrics["batch_mean"] = sum(c.batch.size for c in completions) / len(completions)
    service_s = [c.finished_s - c.started_s for c in completions if c.ok]
    if service_s:
        metrics["service_mean_s"] = total(service_s) / len(service_s)
    return metrics


def resource_metrics(
    before: WorkerStatus, after: WorkerStatus, elapsed_s: float, core_unit: float
) -> dict[str, Any]:
    """Return what was held and used between two looks at the worker, ``elapsed_s`` apart."""
    core_seconds = after.core_seconds - before.core_seconds
    used = after.used_core_seconds - before.used_core_seconds
    stopped = (after.throttled_s - before.throttled_s) * after.effective_cores
    return {
        "cores": core_seconds / elapsed_s,
        "core_seconds": core_seconds,
        "physical_core_seconds": core_seconds * core_unit,
        "effective_cores": after.effective_cores,
        "replicas_ready": after.ready,
        "utilisation": min(1.0, used / core_seconds) if core_seconds > 0 else 0.0,
        "throttled_share": stopped / core_seconds if core_seconds > 0 else 0.0,
        "cpu_s": after.cpu_s - before.cpu_s,
        "actuation_s": after.actuation_s,
        "restarts": after.restarts - before.restarts,
    }


def reward(metrics: IntervalMetrics, total_cores: int, weights: Reward) -> float:
    """Charge the cores held and the requests that missed their deadline.

    ``-(cores / total_cores) - violation_weight * violations / max(1, ended)
    + accuracy_weight * effective_accuracy``, the last where requests ended
    """
    missed = metrics.violations / max(1, metrics.on_time + metrics.violations)
    gained = weights.accuracy_weight * np.nan_to_num(metrics.effective_accuracy)
    return float(-metrics.cores / total_cores - weights.violation_weight * missed + gained)
