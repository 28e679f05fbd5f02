"""The controlled system: one step puts an allocation in force for one interval.

Simulated and live alike, queue, batches, ledger, measures and view are the core's; only who
runs the batches and knows the time differs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray, total
from sponge_env.core import batching, entry
from sponge_env.core.fields import JOINT_OBS_DIM
from sponge_env.core.records import PAST, UNMEASURED, Arrays
from sponge_env.interfaces import HISTORY, Allocation, RunningBatch, StageView, SystemView
from sponge_env.latency import latency_quantile_s
from sponge_env.metrics import SHARE, IntervalMetrics, StageMetrics, names
from sponge_env.scenario.option import require
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import check_allocation
from sponge_env.simulation.configuration import Configuration
from sponge_env.simulation.encoding import Control, encode
from sponge_env.simulation.memory import allocations, asked_for, blank_metrics, ledger_columns
from sponge_env.simulation.workload import Workload, list_requests

_UNMEASURED_AT = names(IntervalMetrics).index(UNMEASURED[0])
_OF_STAGE = names(StageMetrics)
_STAGE_FIELDS = ["ring", "head", "tail", "pending", "planned_cores", "measured"]
_BATCH_FIELDS = ["ready_s", "draining", "batch_size", "started_s", "planned_end_s", "variant"]


class System(ABC):
    """Queue, batches, ledger and worker under control."""

    max_tasks = 1  # That an answer may lead to where the scenario says fewer

    def __init__(
        self, scenario: Scenario, seed: int, profile: Profile | None = None,
        workload: Workload | None = None, measured_work: Sequence[FloatArray] = (),
    ) -> None:  # fmt: skip
        """Start an episode, by default with the scenario's and seed's own profile and workload."""
        # ``measured_work`` is a table of the work of each stage's simulated batches, see
        # :mod:`sponge_env.core.service`. What cannot be used is a SpongeError.
        setup = Configuration([scenario], profile=profile, listed=True, measured_work=measured_work)
        self.spec = setup.specs[0]
        self.plan = setup.scenarios[0]  # As it is played: with its duration and warm-up
        self._arrays = self._make_memory(setup, seed, workload)
        self._numbers, _ = allocations(1, len(self.spec.stages))
        self._look_up()
        self._nodes = np.array([self.spec.nodes] * 2)  # and memory
        self._observation = np.zeros((1, JOINT_OBS_DIM), np.float32)
        self._metrics = blank_metrics(1)
        self._over = np.zeros(1, np.bool_)
        self.allocation = self.spec.initial  # In force, or after ``resize_delay_s``
        self._interval = 0
        self._history = np.zeros((2, HISTORY))
        self._last: IntervalMetrics | None = None
        self._ready: tuple[int, ...] = ()
        """Ready replicas in the last view: a decision on it must fit with these."""
        self.waited_s = 0.0  # Longest, of a request given up in the last interval
        require(seed >= 0, "the seed", seed, "at least 0")
        self._seed = np.array([seed], np.int64)
        self._run(entry.RESET)

    def _look_up(self) -> None:
        # A field of records costs more to look up than to read.
        self._env: Any = self._arrays.envs[0]
        self._replicas = self._arrays.replicas[0][_BATCH_FIELDS]
        self._queue_row = self._arrays.queue["row"][0]
        self._stage_fields = self._arrays.stages[0][_STAGE_FIELDS]
        self._deadline_s = self._arrays.requests["deadline_s"][0]
        self._wanted = asked_for(self._numbers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._look_up()  # Copies of views share no memory

    def _make_memory(self, setup: Configuration, seed: int, workload: Workload | None) -> Arrays:
        """Return all memory, the requests of the episode in it."""
        self._workload = workload or setup.workload(0, seed)
        self._delays_s = self._workload.arrival_s - self._workload.sent_s
        self._budgets_s = self._workload.deadline_s - self._workload.arrival_s
        self._arrived = (0, 0)
        # With room for all requests, those that return included, the queue never overflows.
        setup.room.hold(self.spec, 2 * max(1, self._workload.id.size), self.max_tasks)
        return list_requests(setup.allocate(1), 0, self._workload)

    def _last_arrivals(self) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
        """Return when they came, delays, budgets and stages entered, (arrived,) each."""
        own, seen = slice(*self._arrived), self._workload
        delays_s, budgets_s = self._delays_s[own].copy(), self._budgets_s[own].copy()
        return seen.arrival_s[own].copy(), delays_s, budgets_s, seen.enters[own]

    def _next_arrivals(self, offered: int) -> None:
        """Note how many have arrived in the interval that is over."""
        self._arrived = self._arrived[1], self._arrived[1] + offered

    @property
    @abstractmethod
    def limiter(self) -> str:
        """What limits the worker's CPU."""

    @property
    def measured_accuracy(self) -> float:
        """Accuracy of the answers up to now, if it is measured, else NaN."""
        return math.nan

    def counterpart(self, seed: int) -> "SimulatedSystem | None":
        """Return a live system's copy on simulated replicas, at its start; None if simulated."""
        return None

    @abstractmethod
    def paused(self) -> AbstractContextManager[None]:
        """Let no time pass for requests and worker meanwhile."""

    @abstractmethod
    def drain(self) -> None:
        """End the episode: serve what is left under the allocation in force."""
        # No request arrives any more. Requests that still wait when the last deadline has
        # passed are dropped, so that afterwards nothing is queued or running.

    @abstractmethod
    def close(self) -> None:
        """Release the worker."""

    @abstractmethod
    def _serve(self, allocation: Allocation) -> dict[str, float]:
        """Serve an interval under an allocation; return what only the worker can measure."""

    @abstractmethod
    def _now_s(self) -> float:
        """Return the time."""

    @abstractmethod
    def _replicas_now(self, k: int, now_s: float) -> tuple[int, tuple[float, ...]]:
        """Return a stage's ready replicas, and seconds until others are, ascending."""

    @property
    def done(self) -> bool:
        """Whether the last interval is over."""
        return self._interval >= self.plan.intervals

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the ledger; see :func:`sponge_env.simulation.memory.ledger_columns`."""
        return ledger_columns(self._arrays, self._workload.first(int(self._env["sent"]) - 1))

    def view(self) -> SystemView:
        """Return what a controller sees now."""
        now_s = self._now_s()
        stages = tuple(self._stage_view(k, now_s) for k in range(len(self.allocation.stages)))
        mean_delays_s, bandwidths = self._history[:, max(0, HISTORY - self._interval) :].copy()
        arrived_s, delays_s, budgets_s, enters = self._last_arrivals()
        past = arrived_s, delays_s, budgets_s, mean_delays_s, bandwidths, self._last
        view = SystemView(now_s, stages, self.allocation, *past, enters)
        self._ready = view.ready
        return view

    def _stage_view(self, k: int, now_s: float) -> StageView:
        ring, head, tail, pending, planned_cores, measured = self._stage_fields[k].item()
        rows = self._queue_row[k, : ring + 1]
        waiting = rows[head & ring :][: tail - head]
        if waiting.size < tail - head:  # the ring's end is in between
            waiting = np.append(waiting, rows[: tail - head - waiting.size])
        past = np.arange(max(0, self._interval - HISTORY) - 1, self._interval) & (PAST - 1)
        resizes = self._arrays.pending[0, k, :pending]
        ready, starting_s = self._replicas_now(k, now_s)
        return StageView(
            queued_deadlines_s=self._deadline_s[waiting], running=self._running(k),
            allocation=self.allocation.stages[k], replicas_ready=ready, starting_s=starting_s,
            arrivals=np.diff(self._arrays.stages["arrived"][0, k, past]),
            cores_in_force=planned_cores,
            pending=tuple((time_s - now_s, cores) for time_s, cores, _ in resizes.tolist()),
            last=StageMetrics(*measured) if self._interval else None,
        )  # fmt: skip

    def observe(self, control: Control) -> NDArray[np.float32]:
        """Return what a learner sees now, (control.obs_dim,)."""
        return encode(self.view(), self.spec, control)

    def step(self, allocation: Allocation, decision_s: float = 0.0) -> IntervalMetrics:
        """Serve an interval under an allocation whose decision took so long; return its metrics.

        An allocation outside the limits is a ConfigError, a step after the end a RuntimeError.
        """
        if self.done:
            raise RuntimeError("the episode is over; start a new one")
        check_allocation(allocation, self.spec, self._ready)
        ended = int(self._env["ended"])
        self._numbers[0] = allocation.stages
        if self.spec.models:
            entry.share(self._arrays, self._metrics, self._numbers, self._nodes)
            one, given = type(allocation.stages[0]), self._numbers[0].tolist()
            allocation = replace(allocation, stages=tuple(map(one._make, given)))
        only_worker = self._serve(allocation)
        self.allocation = allocation
        feasible, guarded = int(allocation.feasible), int(allocation.guarded)
        extra = {**only_worker, "feasible": feasible, "guarded": guarded, "decision_s": decision_s}
        self._next_arrivals(int(self._metrics["offered"][0]))
        self._last = last = self._read(ended, extra)
        delays_s, bandwidths = self._history
        self._history[:, :-1] = self._history[:, 1:]
        delays_s[-1], bandwidths[-1] = last.delay_mean_s, last.bandwidth_bytes_per_s
        self._interval += 1
        return last

    def _run(self, move: int) -> None:
        out = self._observation, self._metrics, self._over
        entry.run_range(self._arrays, 0, 1, move, self._seed, self._wanted, *out)

    def _running(self, k: int) -> tuple[RunningBatch, ...]:
        """Return a stage's running batches in the order in which they were formed."""
        spec, cores = self.spec.stages[k], self._arrays.stages["planned_cores"][0, k]
        most, batches = (spec.batch_max, spec.cores_max), []
        columns = [latency.table_s(*most)[:, cores - 1] for latency in spec.latencies]
        for _, _, count, started_s, planned_s, variant in self._rows(k):
            if count:
                if math.isnan(planned_s):
                    planned_s = started_s + float(columns[variant][count - 1])
                batches.append(RunningBatch(count, started_s, planned_s))
        return tuple(sorted(batches, key=lambda batch: batch.started_s))

    def _rows(self, k: int = 0) -> list[tuple[Any, ...]]:
        held = self._arrays.stages["replicas"][0, k]
        rows: list[tuple[Any, ...]] = self._replicas[k, :held].tolist()
        return rows

    def _read(self, ended: int, extra: Mapping[str, float]) -> IntervalMetrics:
        """Return the interval's metrics, with those that the core does not measure."""
        # The ledger's rows from ``ended`` on belong to it.
        rows = self._ended_since(ended)
        took_s = rows["finished_s"] - rows["sent_s"]
        lost = rows["outcome"] > batching.LATE  # all rows are of requests that have ended
        self.waited_s = 0.0
        if np.count_nonzero(lost):
            self.waited_s, took_s = max(took_s[lost].tolist()), took_s[~lost]
        took_s.sort()
        latencies_s = took_s.tolist()
        of_all = partial(latency_quantile_s, latencies_s, len(rows) - len(latencies_s))
        values = list(self._metrics[0].item()[:-1])
        values[_UNMEASURED_AT:_UNMEASURED_AT] = of_all(0.5), of_all(0.99)
        found = IntervalMetrics(*values)
        if latencies_s:
            found.latency_mean_s = total(latencies_s) / len(latencies_s)
        for name, value in extra.items():
            setattr(found, name, value)
        found.stages = self._measured_stages(rows)
        return found

    def _ended_since(self, ended: int) -> NDArray[Any]:
        """Return the ledger's rows of the interval that is over, which began at one of them."""
        return self._arrays.ledger[0, ended : self._env["ended"]]

    def _measured_stages(self, ended: NDArray[Any]) -> dict[str, dict[str, float]]:
        """Return what was measured of each stage; nothing where one model is all there is."""
        # Of a set of models, those ``ended`` in the interval are of the stage where they did.
        if self.spec.is_one_model:
            return {}
        found = {}
        for stage, row in zip(self.plan.stages, self._arrays.stages[0], strict=True):
            values = found[stage.name] = dict(zip(_OF_STAGE, row["measured"].item(), strict=True))
            if len(stage.variants) > 1:
                for variant, answered in zip(stage.variants, row["answered_by"], strict=False):
                    share = answered / values["answered"] if values["answered"] else math.nan
                    values[SHARE + variant.called] = float(share)
        if self.spec.models:
            _, _, budgets_s, enters = self._last_arrivals()
            hopeless = budgets_s < self._arrays.models[0]["hopeless_below_s"][enters]
            for k, values in enumerate(found.values()):
                came, own = enters == k, ended[ended["stage"] == k]
                lost = np.isin(own["outcome"], (batching.LATE, batching.DROPPED, batching.FAILED))
                counted = {"offered": came, "hopeless": came & hopeless, "violations": lost}
                counted |= {"avoidable_violations": lost & ~own["hopeless"]}
                for name in ("on_time", "late", "failed"):
                    counted[name] = own["outcome"] == getattr(batching, name.upper())
                values |= {name: int(which.sum()) for name, which in counted.items()}
        return found


class SimulatedSystem(System):
    """The system on simulated replicas: the clock jumps inside compiled code."""

    limiter = "simulated"

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: the virtual clock stands still by itself."""
        return nullcontext()

    def observe(self, control: Control) -> NDArray[np.float32]:
        """Return what a learner sees now, (control.obs_dim,)."""
        if not control.sees_stages:
            return self._observation[0, : control.obs_dim].copy()
        observations = np.zeros((1, control.obs_dim), np.float32)
        entry.observe_one(self._arrays, self._metrics, observations)
        seen: NDArray[np.float32] = observations[0]
        return seen

    def tell(self, tasks: Mapping[int, int]) -> None:
        """Set how many tasks the first stage leads to, by request id; the others are drawn."""
        counts = [tasks.get(request, -1) for request in self._workload.id.tolist()]
        self._arrays.requests["tasks"][0, : len(counts)] = counts

    def drain(self) -> None:
        """End the episode: serve what is left under the allocation in force."""
        self._run(entry.DRAIN)

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _serve(self, allocation: Allocation) -> dict[str, float]:
        self._run(entry.STEP)
        return {}

    def _now_s(self) -> float:
        return float(self._env["now_s"])

    def _replicas_now(self, k: int, now_s: float) -> tuple[int, tuple[float, ...]]:
        replicas = self._rows(k)
        starting_s = sorted(r[0] - now_s for r in replicas if not r[1] and r[0] > now_s)
        serving = sum(not draining for _, draining, *_ in replicas) - len(starting_s)
        return serving, tuple(starting_s)
