"""Workers of several stages on one virtual clock, for tests of the live system."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from reference.worker import SimulatedWorker

from sponge_env.interfaces import Allocation, Batch, Completion, WorkerStatus


class FakeStages:
    """Plain workers side by side, one for each stage; implements ``interfaces.Worker``."""

    limiter = "fake"

    def __init__(
        self,
        workers: Sequence[SimulatedWorker],
        tasks: Callable[[int], int] | None = None,
        crashes: Sequence[tuple[float, int]] = (),
    ) -> None:
        """Start at time 0.

        Args:
            workers: Those of the stages.
            tasks: How many tasks the answer to a request in the first stage leads to; drawn by
                the system if left out.
            crashes: When a replica of which stage dies, if one serves then; ascending.
        """
        self.workers, self._tasks, self._crashes = list(workers), tasks, list(crashes)
        self.batches: list[Batch] = []

    def now(self) -> float:
        return self.workers[0].now()

    def idle(self, stage: int = 0) -> int:
        return self.workers[stage].idle()

    def start(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.workers[batch.stage].start(batch)

    def wait(self, until_s: float) -> Sequence[Completion]:
        crash_s = self._crashes[0][0] if self._crashes else float("inf")
        events_s = [s for worker in self.workers for s in worker.events_s()]
        until_s = min([until_s, crash_s, *events_s])
        ended = []
        for worker in self.workers:
            ended += worker.wait(until_s)
            while worker.now() < until_s:  # it had something to tell before
                ended += worker.wait(until_s)
        if self.now() >= crash_s:
            _, stage = self._crashes.pop(0)
            if self.workers[stage].status().ready:
                self.workers[stage].crash()
        return [self._told(c) for c in sorted(ended, key=lambda c: c.finished_s)]

    def _told(self, completion: Completion) -> Completion:
        if self._tasks is None or completion.batch.stage or not completion.ok:
            return completion
        tasks = tuple(map(self._tasks, completion.batch.requests))
        return dataclasses.replace(completion, tasks=tasks)

    def forget(self, requests: Sequence[int]) -> None:
        """Do nothing: nothing is kept of requests."""

    def wake(self) -> None:
        """Do nothing: virtual time never blocks."""

    def resize(self, allocation: Allocation) -> None:
        for worker, own in zip(self.workers, allocation.stages, strict=True):
            worker.resize(Allocation(stages=(own,)))

    def hold(self) -> None:
        """Do nothing: the virtual clock stands still by itself."""

    def release(self) -> float:
        return 0.0

    def status(self, stage: int = 0) -> WorkerStatus:
        return self.workers[stage].status()

    def close(self) -> None:
        """Do nothing: nothing is held."""
