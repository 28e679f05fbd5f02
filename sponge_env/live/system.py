"""The system on real processes: the core's rules, on a worker with a clock of its own."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core import entry
from sponge_env.core.settings import write_table
from sponge_env.interfaces import Allocation, Batch, Completion, SystemSpec, Worker
from sponge_env.live.slowdown import Slowdown
from sponge_env.scenario.config import MAX_TASKS
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.system import SimulatedSystem, System
from sponge_env.simulation.workload import Workload


class LiveSystem(System):
    """The system on a worker that has its own clock, such as the real one."""

    max_tasks = MAX_TASKS  # The scenario does not bound real answers

    def __init__(
        self, scenario: Scenario, seed: int, make_worker: Callable[[SystemSpec], Worker],
        profile: Profile | None = None, workload: Workload | None = None, *,
        hold_between_steps: bool = False, measures: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        """Start an episode; see :class:`System` for the scenario and what belongs to it.

        ``make_worker`` makes a worker at time 0 with ``spec.initial`` in force; it is called last,
        for the worker's clock runs from then on, and the system closes it. With
        ``hold_between_steps`` the clock stands still while no step runs, so that a learner may
        take its time. ``measures`` returns how accurate the worker's answers were.
        """
        simulation = replace(scenario.simulation, actuation_delay_s=0.0)  # the worker has its own
        super().__init__(replace(scenario, simulation=simulation), seed, profile, workload)
        self._profile = profile
        self._batches = 0
        self._slots: dict[int, tuple[int, int]] = {}  # batch id to its stage and row of replicas
        self._steady_cores: dict[int, int] = {}  # Of running batches, if the same since they began
        self._hold, self._measures = hold_between_steps, measures
        self._rehearse()
        self.worker = make_worker(self.spec)
        try:
            if self.worker.limiter.endswith("outside"):  # only its delay is not the worker's own
                delay_s = scenario.simulation.actuation_delay_s
                self.spec = replace(self.spec, resize_delay_s=delay_s)
            self._read_meters()
            self._env["measured_s"] = self.worker.now()
            stages = self._arrays.stages[0]
            stages["before"] = stages["meters"]
            if self._hold:
                self.worker.hold()
        except BaseException:  # until now it is known only here
            self.worker.close()
            raise

    @property
    def limiter(self) -> str:
        """What limits the worker's CPU."""
        return self.worker.limiter

    def counterpart(self, seed: int) -> SimulatedSystem:
        """Return the same system on simulated replicas, at its start, with requests of a seed."""
        return SimulatedSystem(self.plan, seed, self._profile)

    @property
    def measured_accuracy(self) -> float:
        """See :attr:`System.measured_accuracy`."""
        return self._measures() if self._measures is not None else math.nan

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

    def drain(self) -> None:
        """End the episode: serve what is left under the allocation in force."""
        ended = int(self._env["ended"])
        if self._hold:
            self.worker.release()
        self._env["arrival_s"] = math.inf
        interval_s = self.spec.interval_s
        last_s = entry.last_deadline(self._arrays, self._metrics)
        stages = self._arrays.stages[0]
        while self._slots or np.any(stages["head"] < stages["tail"]):
            if (now_s := self.worker.now()) >= last_s:
                break
            self._drive(min(last_s, now_s + interval_s))
        entry.abandon(self._arrays, self._metrics, self.worker.now())
        while self._slots:
            for completion in self.worker.wait(self.worker.now() + interval_s):
                self._end(completion)
            # What these led to is too late as well.
            entry.abandon(self._arrays, self._metrics, self.worker.now())
        self._forget_since(ended)

    def close(self) -> None:
        """Release the worker."""
        self.worker.close()

    def _read_meters(self) -> None:
        stages = self._arrays.stages[0]
        self._status = [self.worker.status(k) for k in range(len(stages))]
        for stage, status in zip(stages, self._status, strict=True):
            write_table(stage["meters"], status)

    def _rehearse(self) -> None:
        """Make every move once, so that none has to be compiled while the clock runs."""
        moves = self._arrays, self._metrics
        entry.begin_live_interval(*moves, self._wanted)
        entry.take_in(*moves, 0.0, -1.0)
        entry.drop_expired(*moves, 0.0)
        entry.form_batch(*moves, 0, 0, 1)
        entry.end_batch(*moves, 0, 0, 0, (0.0, 0.0), True)
        entry.end_live_interval(*moves, 1.0)
        entry.observe_one(*moves, self._observation)  # what learned controllers see
        entry.last_deadline(*moves)
        entry.share(*moves, self._numbers, self._nodes)
        entry.abandon(*moves, 0.0)
        self._run(entry.RESET)
        self._slowdowns = [Slowdown(model, self._arrays) for model in self._arrays.models[0]]
        self._arrays.stages["pace"] = 1.0  # until it is measured
        # From now on rows are batches, whichever replica runs them.
        self._arrays.stages["replicas"][0] = self._arrays.replicas.shape[2]

    def _serve(self, allocation: Allocation) -> dict[str, float]:
        paused_s = self.worker.release() if self._hold else 0.0
        self._env["now_s"] = self.worker.now()
        self.worker.resize(allocation)
        entry.begin_live_interval(self._arrays, self._metrics, self._wanted)
        self._pass_interval()
        ended = int(self._env["ended"])
        self._drive(self._ends_s())
        self._forget_since(ended)
        now_s = self.worker.now()
        self._read_meters()
        entry.end_live_interval(self._arrays, self._metrics, now_s)
        if self._hold:
            self.worker.hold()
        return {"paused_s": paused_s}

    def _pass_interval(self) -> None:
        """Forget which batches were steady if their cores have changed, and let slowdowns age."""
        cores = self._arrays.stages["planned_cores"][0]
        for batch in list(self._steady_cores):
            if self._steady_cores[batch] != cores[self._slots[batch][0]]:
                del self._steady_cores[batch]
        for slowdown in self._slowdowns:
            slowdown.pass_interval()
        self._arrays.stages["pace"][0] = [each.factor for each in self._slowdowns]

    def _ends_s(self) -> float:
        return float(self._env["interval"]) * self.spec.interval_s

    def _is_over(self, now_s: float, until_s: float) -> bool:
        """Return whether there is nothing more to be done until a moment."""
        return now_s >= until_s

    def _read_ledger(self) -> None:
        """Take note of requests that have ended; called before each wait, for subclasses."""

    def _forget_since(self, ended: int) -> None:
        """Let the worker forget the requests that have ended after the first ``ended``."""
        rows = self._arrays.ledger["row"][0, ended : int(self._env["ended"])]
        self.worker.forget(self._arrays.requests["id"][0][rows].tolist())

    def _take_in(self, now_s: float, until_s: float) -> float:
        """Take in what has arrived by ``until_s``, now or past; return when more is to be done."""
        return entry.take_in(self._arrays, self._metrics, now_s, until_s)

    def _drive(self, until_s: float) -> None:
        """Serve until a moment on the worker's clock; nothing is started from then on."""
        while (next_s := self._advance(until_s)) is not None:
            self._wait(next_s)

    def _advance(self, until_s: float) -> float | None:
        """Do what is due now; return when to come back at the latest, or None at the end."""
        # A batch starts as soon as a replica is idle and a task waits.
        now_s = self.worker.now()
        next_s = self._take_in(now_s, min(now_s, until_s))
        if self._is_over(now_s, until_s):
            entry.drop_expired(self._arrays, self._metrics, now_s)
            self._read_ledger()
            return None
        for k in range(len(self.spec.stages)):
            while self.worker.idle(k) and self._start(k):
                pass
        self._read_ledger()
        return min(until_s, next_s)

    def _wait(self, until_s: float) -> None:
        """Wait for the worker, and take in what has ended."""
        for completion in self.worker.wait(until_s):
            self._end(completion)

    def _start(self, k: int) -> bool:
        """Form a batch of a stage and give it to the worker; return False if there is none."""
        # None is formed while batches that hang on draining replicas have all rows.
        arrays, taken, rows = self._arrays, self._slots.values(), range(self._replicas.shape[1])
        if (row := next((row for row in rows if (k, row) not in taken), None)) is None:
            return False
        batch_max = int(arrays.stages["wanted"]["batch"][0, k])
        if count := entry.form_batch(arrays, self._metrics, k, row, batch_max):
            self._batches += 1
            self._slots[self._batches] = k, row
            of_batch = self._rows_of(k, row)
            requests = tuple(arrays.requests["id"][0][of_batch].tolist())
            variant = int(arrays.replicas["variant"][0, k, row])
            self._steady_cores[self._batches] = int(arrays.stages["planned_cores"][0, k])
            self._begin(Batch(self._batches, requests, k, variant), of_batch)
        return bool(count)

    def _begin(self, batch: Batch, rows: NDArray[Any]) -> None:
        self.worker.start(batch)

    def _rows_of(self, k: int, row: int) -> NDArray[Any]:
        batch, ring = self._arrays.replicas[0, k, row], self._arrays.stages["ring"][0, k]
        positions = np.arange(batch["first"], batch["first"] + batch["batch_size"]) & ring
        rows: NDArray[Any] = self._arrays.queue["row"][0, k][positions]
        return rows

    def _end(self, completion: Completion) -> None:
        batch = completion.batch
        k, row = self._slots.pop(batch.id)
        steady_cores = self._steady_cores.pop(batch.id, None)
        if completion.ok and steady_cores:
            took_s = completion.finished_s - completion.started_s
            self._slowdowns[k].add(batch.variant, batch.size, steady_cores, took_s)
            self._arrays.stages["pace"][0, k] = self._slowdowns[k].factor
        if completion.tasks:  # only the first stage's answers say so, of a request each
            self._arrays.requests["tasks"][0, self._rows_of(k, row)] = completion.tasks
        end = completion.replica, (completion.started_s, completion.finished_s), completion.ok
        entry.end_batch(self._arrays, self._metrics, k, row, *end)

    def _now_s(self) -> float:
        return self.worker.now()

    def _replicas_now(self, k: int, now_s: float) -> tuple[int, tuple[float, ...]]:
        return self._status[k].ready, self._status[k].starting_s
