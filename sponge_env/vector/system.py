"""A system whose queue, batches and worker are compiled: for controllers that run for long.

It is the only environment of its kernels. The requests are made before the episode, as the
reference makes them, so whatever a view says of past arrivals is a stretch of their columns.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.encoding import OBS_DIM
from sponge_env.factory import make_plan
from sponge_env.interfaces import Allocation, FloatArray, RunningBatch, SystemSpec, SystemView
from sponge_env.measure import latency_summary
from sponge_env.profile import Profile
from sponge_env.results.schema import IntervalMetrics
from sponge_env.scenario import Scenario
from sponge_env.serving.ledger import Outcome
from sponge_env.system import HISTORY, check_allocation
from sponge_env.vector.books import RequestList, ledger_columns
from sponge_env.vector.configuration import Configuration
from sponge_env.vector.kernels.entry import drain_one, reset_range, step_range
from sponge_env.vector.layout import METRICS
from sponge_env.vector.memory import allocate, give
from sponge_env.workload import Workload

_ONE = np.ones(1, np.bool_)
_SCENARIO = np.zeros(1, np.int64)
_MEASURED = (METRICS.names or ())[:-1]
"""Metrics of the schema among those that the kernels measure."""
_DROPPED = int(Outcome.DROPPED)
_BATCH_FIELDS = ["ready_s", "draining", "size", "started_s", "planned_end_s"]


class CompiledSystem:
    """What :class:`~sponge_env.system.System` is on the simulated worker, bit for bit."""

    limiter = "simulated"

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        profile: Profile | None = None,
        workload: Workload | None = None,
    ) -> None:
        """Start an episode.

        Args:
            scenario: The experiment.
            seed: Seed of arrivals, bandwidth and noise.
            profile: Latency profile; the scenario's if left out.
            workload: Requests; those of scenario and seed if left out.

        Raises:
            SpongeError: The scenario or profile cannot be used.
        """
        configuration = Configuration(
            [scenario], scenario.limits.replicas, profile=profile, given=True
        )
        self.spec: SystemSpec = configuration.specs[0]
        self._workload = workload or configuration.workload(0, seed)
        requests = RequestList(self._workload)
        self.plan = make_plan(configuration.scenarios[0], requests)
        # With room for all of its requests the queue never wraps around.
        room = max(1, len(requests))
        self._arrays = give(allocate(configuration, 1, room, room), 0, self._workload)
        self._delays_s = self._workload.arrival_s - self._workload.sent_s
        self._budgets_s = self._workload.deadline_s - self._workload.arrival_s
        self._env: Any = self._arrays.envs[0]
        self._queued_rows = self._arrays.queue["row"][0]
        self._replicas = self._arrays.replicas[0][_BATCH_FIELDS]
        self._wanted = np.zeros((1, 3), np.int64)
        self._observation = np.zeros((1, OBS_DIM), np.float32)
        self._metrics = np.zeros(1, METRICS)
        self._over = np.zeros(1, np.bool_)
        self._allocation = self.spec.initial
        self._interval = 0
        self._arrived = (0, 0)
        self._history = np.zeros((3, self.plan.intervals))
        self._last: IntervalMetrics | None = None
        seeds = np.array([seed], np.int64)
        out = self._observation, self._metrics, self._over
        reset_range(self._arrays, 0, 1, _ONE, _SCENARIO, seeds, *out)

    @property
    def done(self) -> bool:
        """Whether the last interval is over."""
        return self._interval >= self.plan.intervals

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: the virtual clock stands still by itself."""
        return nullcontext()

    def view(self) -> SystemView:
        """Return what a controller sees now."""
        now_s = float(self._env["now_s"])
        replicas = self._replicas[: self._env["replicas"]].tolist()
        waits_s = sorted(r[0] - now_s for r in replicas if not r[1] and r[0] > now_s)
        serving = sum(not draining for _, draining, *_ in replicas) - len(waits_s)
        waiting = self._queued_rows[self._env["head"] : self._env["tail"]]
        arrived = slice(*self._arrived)
        recent = self._history[:, max(0, self._interval - HISTORY) : self._interval]
        return SystemView(
            now_s=now_s,
            queued_deadlines_s=self._workload.deadline_s[waiting],
            running=self._running(replicas),
            allocation=self._allocation,
            replicas_ready=serving,
            starting_s=tuple(waits_s),
            arrivals=recent[0].copy(),
            delays_s=self._delays_s[arrived].copy(),
            budgets_s=self._budgets_s[arrived].copy(),
            mean_delays_s=recent[1].copy(),
            bandwidths_bytes_per_s=recent[2].copy(),
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
        ended = int(self._env["ended"])
        self._allocation = allocation
        self._wanted[0] = allocation.cores, allocation.batch, allocation.replicas
        out = self._observation, self._metrics, self._over
        step_range(self._arrays, 0, 1, self._wanted, *out)
        self._last = self._read(ended, int(allocation.feasible), decision_s)
        self._remember(self._last)
        return self._last

    def drain(self) -> None:
        """End the episode: serve what is left under the allocation in force.

        See :meth:`sponge_env.system.System.drain`.
        """
        drain_one(self._arrays, 0, self._metrics)

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the ledger; see :meth:`sponge_env.serving.ledger.Ledger.columns`."""
        return ledger_columns(self._arrays, self._workload, self._arrived[1])

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _running(self, replicas: list[tuple[Any, ...]]) -> tuple[RunningBatch, ...]:
        """Return the running batches in the order in which they were formed."""
        table_s = self.spec.latency.table_s(self.spec.batch_max, self.spec.cores_max)
        latency_s: FloatArray = table_s[:, self._allocation.cores - 1]
        batches = [
            RunningBatch(
                size,
                started_s,
                float(started_s + latency_s[size - 1]) if math.isnan(planned_s) else planned_s,
            )
            for _, _, size, started_s, planned_s in replicas
            if size
        ]
        return tuple(sorted(batches, key=lambda batch: batch.started_s))

    def _read(self, ended: int, feasible: int, decision_s: float) -> IntervalMetrics:
        """Return the interval's metrics; the ledger's rows from ``ended`` on belong to it."""
        measured: dict[str, Any] = dict(zip(_MEASURED, self._metrics.item(), strict=False))
        rows = self._arrays.ledger[0, ended : self._env["ended"]]
        latency_s = rows["finished_s"] - rows["sent_s"]
        answered_s = np.sort(latency_s[rows["outcome"] != _DROPPED])
        measured |= latency_summary(answered_s.tolist())
        measured |= {"feasible": feasible, "decision_s": decision_s}
        return IntervalMetrics(**measured)

    def _remember(self, metrics: IntervalMetrics) -> None:
        """Add the interval to the history."""
        past = metrics.offered, metrics.delay_mean_s, metrics.bandwidth_bytes_per_s
        self._history[:, self._interval] = past
        self._arrived = self._arrived[1], self._arrived[1] + metrics.offered
        self._interval += 1
