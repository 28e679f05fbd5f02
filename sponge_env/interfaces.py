"""The nouns of the system and its seams. Read this file first.

A *controller* looks at a :class:`SystemView` once per interval and answers with an
:class:`Allocation`. The *core* turns arriving requests into batches, earliest deadline first.
A *worker* runs batches and is the only part that knows a clock: the simulated one jumps, the
real one waits. *Sinks* receive the metrics.

Words, one for each thing:

- deadline, budget: when a request must be answered; the time left until then. A deadline is the
  send time plus the SLO, so what the network takes is gone from the budget on arrival.
- hopeless, avoidable: a request whose budget on arrival is shorter than the fastest service, and
  violations of the others.
- batch, replica: requests that run together; what runs one batch at a time under a CPU limit.
- stage, variant: one model of a pipeline, with its queue and replicas; one of several models that
  answer the same question. Most systems have one of each.
- interval, cold start: the time between two decisions; from asking for a replica until it serves.
- scenario, profile, workload: all that defines an experiment but controller and seed; measured
  latency of a model; the requests of an episode.
- cell, suite, unit: scenario, profile and start; cells and agents with their options; one agent
  on one cell. An agent is a controller under its registered name.

Time is in seconds (float64) since the start of the episode, on the worker's clock.
Cores are counted in core units (see :attr:`StageSpec.core_unit`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from sponge_env.arrays import FloatArray as FloatArray
from sponge_env.arrays import IntArray
from sponge_env.packing import most_cores, placed, places

if TYPE_CHECKING:
    from sponge_env.latency import LatencyModel
    from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, StageMetrics

HISTORY = 30  # Past intervals that a view shows

ACCURACY_PRICE = 2.0  # Cores that a percent of accuracy is worth to programs and tuned rivals


class Outcome(IntEnum):
    """Where a request stands. All but the first two are final."""

    QUEUED = 0
    RUNNING = 1
    ON_TIME = 2
    LATE = 3
    DROPPED = 4
    FAILED = 5
    CANCELLED = 6  # Taken back by its client; no violation


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that one replica runs together, earliest deadline first."""

    id: int
    requests: tuple[int, ...]
    """Ids of its requests, as the workload numbers them; in a later stage one for each task."""
    stage: int = 0  # Place of the stage that it belongs to
    variant: int = 0  # Model that runs it

    @property
    def size(self) -> int:
        """Number of requests."""
        return len(self.requests)


@dataclass(frozen=True, slots=True)
class Completion:
    """How one batch ended on a worker."""

    batch: Batch
    replica: int  # Identity of the replica that ran it
    started_s: float
    finished_s: float
    ok: bool = True  # False when the replica died under the batch; its requests were not answered
    cpu_s: float = 0.0  # CPU time of the batch, in physical core-seconds (0 where it is unknown)
    tasks: tuple[int, ...] = ()
    """How many tasks of the next stage each answer leads to; empty where that is drawn."""


BY_SLACK = -1
"""Variant of an allocation that lets each batch choose: the most accurate model that the slack of
its most urgent request allows (SlackFit, of SuperServe: Khare et al., NSDI 2025)."""


GiveUp = Literal["replicas, then cores", "cores", "starting replicas"]
"""What is taken from allocations that do not fit on the machine, in this order."""


class StageAllocation(NamedTuple):
    """What one stage gets until the next decision."""

    cores: int  # Core units of each replica
    batch: int  # Largest batch a replica is given
    replicas: int = 1  # Replicas kept running
    variant: int = 0  # Model variant, or :data:`BY_SLACK`


@dataclass(frozen=True, slots=True, init=False)
class Allocation:
    """What a controller asks for until its next decision: one record for each stage.

    ``Allocation(cores=4, batch=8)`` is that of a system of one stage, and ``cores``, ``batch``,
    ``replicas`` and ``variant`` are those of its first.
    """

    stages: tuple[StageAllocation, ...]
    feasible: bool = field(compare=False)  # False if nothing meets every budget: the least bad
    guarded: bool = field(compare=False)  # True if a guard decided in a learned policy's place

    def __init__(
        self, cores: int = 1, batch: int = 1, replicas: int = 1, variant: int = 0,
        feasible: bool = True, *, guarded: bool = False, stages: tuple[StageAllocation, ...] = (),
    ) -> None:  # fmt: skip
        """Take one stage's allocation, or those of several."""
        stages = stages or (StageAllocation(cores, batch, replicas, variant),)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "feasible", feasible)
        object.__setattr__(self, "guarded", guarded)

    @property
    def cores(self) -> int:
        """Core units of each replica of the first stage."""
        return self.stages[0].cores

    @property
    def batch(self) -> int:
        """Largest batch of the first stage."""
        return self.stages[0].batch

    @property
    def replicas(self) -> int:
        """Replicas of the first stage."""
        return self.stages[0].replicas

    @property
    def variant(self) -> int:
        """Model variant of the first stage."""
        return self.stages[0].variant

    def changed(self, **changes: int) -> Allocation:
        """Return the same with other numbers for the first stage."""
        stages = (self.stages[0]._replace(**changes), *self.stages[1:])
        return Allocation(stages=stages, feasible=self.feasible, guarded=self.guarded)

    @property
    def total_cores(self) -> int:
        """Core units of all replicas of all stages, once all are ready."""
        return cores_held(self.stages)


def cores_held(stages: Sequence[StageAllocation], ready: Sequence[int] = ()) -> int:
    """Return the cores of all replicas; those beyond the ``ready`` ones, if given, hold one."""
    if not ready:
        return sum([each.cores * each.replicas for each in stages])
    held = 0
    for each, count in zip(stages, ready, strict=True):
        serving = min(each.replicas, count)
        held += each.cores * serving + each.replicas - serving
    return held


def fits(
    nodes: Sequence[int], stages: Sequence[StageAllocation], ready: Sequence[int] = ()
) -> bool:
    """Return whether what :func:`cores_held` counts finds room, no replica on two nodes."""
    held, total = cores_held(stages, ready), sum(nodes)
    if len(nodes) == 1 or held > total:
        return held <= total
    counts = ready or [each.replicas for each in stages]
    sizes = [(s.cores, min(s.replicas, count)) for s, count in zip(stages, counts, strict=True)]
    return placed(nodes, sizes)[1]  # and those of one core wherever there is room


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch in flight, as a planner sees it."""

    size: int
    started_s: float
    expected_end_s: float  # By the latency model, on the cores in force; past when it runs late


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What a controller may know about one stage before it starts."""

    name: str
    cores_max: int  # Largest ``StageAllocation.cores``
    batch_max: int  # Largest ``StageAllocation.batch``
    replicas_max: int  # Largest ``StageAllocation.replicas``
    latencies: tuple[LatencyModel, ...]  # Saturated latency of a batch, l(b, c), for each variant
    cold_start_s: float  # Expected time from asking for a replica until it serves
    measured: tuple[LatencyModel, ...] = ()
    """The latencies as they were measured, the fits in between; only the fits if left out."""
    accuracies: tuple[float, ...] = (1.0,)  # Of each variant, ascending
    core_unit: float = 1.0  # Physical cores in one core unit
    cpu_cores: float = math.inf
    """Core units of the CPU that replicas under a quota share; what runs at once has no more."""
    after: tuple[int, ...] = ()  # Places of the stages whose answers lead here; none in the first
    tasks: tuple[float, ...] = (0.0, 1.0)
    """Probabilities that an answer leads to 0, 1, 2, ... tasks in each stage that follows."""
    mean_tasks: float = 1.0  # Tasks of a request in this stage, on average

    def service_s(self, variant: int) -> FloatArray:
        """Return the (cores_max, batch_max) seconds of a batch, as measured if that is known."""
        return (self.measured or self.latencies)[variant].table_s(self.batch_max, self.cores_max).T

    @property
    def latency(self) -> LatencyModel:
        """Saturated latency of a batch with the first variant, the only one in most systems."""
        return self.latencies[0]

    @property
    def percent_lost(self) -> FloatArray:
        """(variants,) how much less accurate each is than the best of them, in percent of that."""
        return 100 * (1 - np.array(self.accuracies) / (max(self.accuracies) or 1.0))

    @property
    def capacity_rps(self) -> float:
        """Largest planned throughput of one replica with the fastest variant."""
        tables_s = [each.table_s(self.batch_max, self.cores_max) for each in self.latencies]
        sizes = np.arange(1, self.batch_max + 1)
        return max(float(np.max(sizes / table_s[:, -1])) for table_s in tables_s)


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """What a controller may know about the system before it starts: limits and its stages."""

    slo_s: float  # End-to-end latency objective of the scenario's requests
    interval_s: float  # Time between two decisions
    stages: tuple[StageSpec, ...]  # All stages, in their order; one in most systems
    initial: Allocation = Allocation(cores=1, batch=1)  # In force before the first decision
    nodes: tuple[int, ...] = (1 << 30,)
    """Core units of each node of the machine, for all replicas, those that start or drain included.
    No replica lies on two nodes; most machines are one."""
    resize_delay_s: float = 0.0  # Time from a decision until its cores and replicas are in force
    drops_early: bool = True  # Whether what must be late is dropped, and batches shrink to fit
    fingerprint: str = ""  # Hash of what observations and actions mean, such as model and limits
    scenario: str = ""  # Name of the scenario, for controllers made for some of them
    models: tuple[SystemSpec, ...] = ()
    """Where the stages are a set of models, each as a system of its own; else empty."""

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.scenario, self.nodes))  # of all it takes long

    @property
    def total_cores(self) -> int:
        """Core units of the machine."""
        return sum(self.nodes)

    @property
    def first(self) -> StageSpec:
        """The first stage, which is the only one in most systems."""
        return self.stages[0]

    @property
    def has_variants(self) -> bool:
        """Whether there is a stage with several variants."""
        return any(len(stage.latencies) > 1 for stage in self.stages)

    @property
    def is_chain(self) -> bool:
        """Whether each stage follows the one before it and no other."""
        return all(each.after == ((k - 1,) if k else ()) for k, each in enumerate(self.stages))

    @property
    def is_one_model(self) -> bool:
        """Whether there is one stage, without variants."""
        return len(self.stages) == 1 and not self.has_variants

    def fitting(self, allocation: Allocation, ready: Sequence[int] = ()) -> Allocation:
        """Return an allocation as far as the machine has room, see :func:`fits`."""
        # What a set of models asks for is fitted later (:mod:`sponge_env.core.sharing`).
        if self.models or fits(self.nodes, allocation.stages, ready):
            return allocation
        return dataclasses.replace(allocation, stages=self.fit_stages(allocation.stages))

    def fit_stages(
        self, stages: Sequence[StageAllocation], give_up: GiveUp = "replicas, then cores",
        ready: Sequence[int] = (),
    ) -> tuple[StageAllocation, ...]:  # fmt: skip
        """Return the stages' allocations as far as they fit on the machine."""
        # One unit after the other is given up: by the stage that holds the most cores, a replica
        # or, if it has only one, a core; by that with the most cores for each replica, a core; or
        # by that with the most replicas beyond the ``ready`` ones, which hold one core, a replica.
        fitted = list(stages)

        def size(k: int) -> int:
            if give_up == "cores":
                return fitted[k].cores
            if give_up == "starting replicas":
                return fitted[k].replicas - ready[k]
            return fitted[k].cores * fitted[k].replicas

        while not fits(self.nodes, fitted, ready):
            k = max(range(len(fitted)), key=size)
            last_one = give_up == "replicas, then cores" and fitted[k].replicas == 1
            part = "cores" if give_up == "cores" or last_one else "replicas"
            fitted[k] = fitted[k]._replace(**{part: getattr(fitted[k], part) - 1})
        return tuple(fitted)

    def with_headroom(self, headroom: float) -> SystemSpec:
        """Return the system as it is planned for: latencies longer than known by a share."""
        stages = []
        for stage in self.stages:
            fits = tuple(model.scaled(1 + headroom) for model in stage.latencies)
            grids = tuple(model.scaled(1 + headroom) for model in stage.measured)
            stages.append(dataclasses.replace(stage, latencies=fits, measured=grids))
        return dataclasses.replace(self, stages=tuple(stages))

    def most_cores(self, replicas: int, starting: int = 0, stage: int = 0) -> int:
        """Return the most cores that each of so many replicas can have beside those that start."""
        return min(self.stages[stage].cores_max, most_cores(self.nodes, replicas, starting))

    def most_replicas(self, cores: int) -> int:
        """Return the most replicas that can have so many cores each."""
        return max(1, min(self.first.replicas_max, places(self.nodes, cores)))


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage as a controller sees it. What queues there are requests, or tasks of such."""

    queued_deadlines_s: FloatArray  # (queued,) absolute deadlines of what waits, ascending
    running: tuple[RunningBatch, ...]  # Batches in flight, at most one per replica
    allocation: StageAllocation  # The last one asked for
    replicas_ready: int  # Replicas that can run a batch now
    arrivals: FloatArray
    """(<= 30,) requests or tasks that came in each past interval, refused or not, newest last."""
    cores_in_force: int  # Core units that each replica has now
    starting_s: tuple[float, ...] = ()  # Expected seconds until each starting one serves, ascending
    pending: tuple[tuple[float, int], ...] = ()
    """Seconds until each earlier decision is in force that is not yet, and its cores."""
    last: StageMetrics | None = None  # Metrics of the last interval; None before the first

    @property
    def queued(self) -> int:
        """How much waits."""
        return self.queued_deadlines_s.size

    @property
    def starting(self) -> int:
        """Replicas that are starting."""
        return len(self.starting_s)


@dataclass(frozen=True, slots=True)
class SystemView:
    """The state a controller decides on, in physical quantities."""

    now_s: float
    stages: tuple[StageView, ...]  # All stages, in their order; one in most systems
    allocation: Allocation  # The last one asked for, in force after ``spec.resize_delay_s``
    arrived_s: FloatArray  # (arrived,) when the last interval's arrivals came, ascending
    delays_s: FloatArray  # (arrived,) communication delays of the last interval's arrivals
    budgets_s: FloatArray  # (arrived,) budgets the last interval's arrivals had when they arrived
    mean_delays_s: FloatArray
    """(<= 30,) mean communication delay of the arrivals of each past interval, newest last. One
    without arrivals repeats the value of the interval before; NaN until there were some."""
    bandwidths_bytes_per_s: FloatArray
    """(<= 30,) bandwidth that these arrivals saw (bytes over transfer time), in the same way."""
    last: IntervalMetrics | None = None  # Metrics of the last interval; None before the first
    enters: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(arrived,) places of the stages that they entered, of a set of models."""

    @property
    def first(self) -> StageView:
        """The first stage, which is the only one in most systems."""
        return self.stages[0]

    @property
    def ready(self) -> tuple[int, ...]:
        """Replicas of each stage that are ready; one where none is, for the first to be has all."""
        return tuple(max(1, stage.replicas_ready) for stage in self.stages)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Replicas now and counters since the start; all counters only grow."""

    ready: int  # Replicas that serve, busy or idle (draining ones not included)
    starting_s: tuple[float, ...]  # Expected seconds until each starting one serves, ascending
    held_cores: float  # Core units held now, cold-starting and draining replicas included
    effective_cores: float  # Core units the limiter grants each replica now
    core_seconds: float  # Core units held, integrated over time
    used_core_seconds: float  # Core units in use, integrated over time
    cpu_s: float  # CPU time of all batches in physical core-seconds (0 where unknown)
    throttled_s: float  # Time that replicas spent stopped by their CPU limit, summed over replicas
    restarts: int  # Replicas restarted after a crash
    actuation_s: float  # Wall time of the last resize call (0 on the simulated worker)


class Worker(Protocol):
    """Runs batches on replicas under a CPU limit, and owns the clock.

    In every implementation (``tests/test_worker_contract.py``) a resize acts at once, also on a
    running batch; new replicas serve after their cold start and hold one core until then, the
    others as many as asked for, as far as the machine has room; a replica that is scaled in
    finishes its batch first; one that dies brings its batch back as a completion not ``ok``.
    """

    @property
    def limiter(self) -> str:
        """What limits the CPU, e.g. ``cgroup-v1``; ``simulated`` where nothing has to."""

    def now(self) -> float:
        """Return the time in seconds since the start of the episode."""

    def idle(self, stage: int = 0) -> int:
        """Return how many replicas of a stage could start a batch right now."""

    def start(self, batch: Batch) -> None:
        """Give a batch to an idle replica of its stage; a RuntimeError if none is idle."""

    def forget(self, requests: Sequence[int]) -> None:
        """Take in that requests have ended, so that nothing need be kept of them."""

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Let time pass until something changes, at the latest until ``until_s``.

        Returns early, possibly with nothing, when a batch ended, a replica became ready
        or :meth:`wake` was called. Completions come in order of their end.
        """

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return now; safe from any thread."""

    def resize(self, allocation: Allocation) -> None:
        """Put an allocation in force (batches and variants are not the worker's business)."""

    def hold(self) -> None:
        """Stop the episode's clock until :meth:`release`: nobody is looking."""

    def release(self) -> float:
        """Let the clock go on; return the wall seconds it stood still."""

    def status(self, stage: int = 0) -> WorkerStatus:
        """Return the state of a stage's replicas and the counters up to now."""

    def close(self) -> None:
        """Stop; leave no process, cgroup or file behind. Safe to call twice."""


class Controller(Protocol):
    """Chooses the allocation once per interval."""

    def reset(self, spec: SystemSpec, seed: int) -> None:
        """Start a new episode on the described system."""

    def decide(self, view: SystemView) -> Allocation:
        """Return the allocation for the next interval."""


class Sink(Protocol):
    """Receives metrics while a run goes on."""

    def interval(self, metrics: IntervalMetrics) -> None:
        """Take one interval's metrics, in ``stages`` those of each stage."""

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Take the summary at the end of the episode."""

    def close(self) -> None:
        """Flush and release what is held."""
