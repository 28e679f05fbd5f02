"""What is in memory: one record for each environment, stage, scenario, replica and so on.

All arrays are allocated once. ``n`` is the number of environments; times are in seconds
since the start of the episode. No field is named like a NumPy attribute, such as ``size``:
where kernels are not compiled, the attribute would be read instead.
"""

from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.compiled import Position, Records, Words, dtype_of
from sponge_env.core.fields import TREND_INTERVALS
from sponge_env.core.settings import Settings, StageSettings
from sponge_env.interfaces import HISTORY, WorkerStatus
from sponge_env.metrics import IntervalMetrics, StageMetrics, declared
from sponge_env.scenario.config import MAX_NODES, MAX_STAGES, MAX_VARIANTS

PAST, RECENT = 32, 8
"""For how many intervals arrivals, and delays and bandwidths, are kept: at least as many as the
observation needs, and powers of two, so that interval k is at ``k & (length - 1)``."""

ROOM, HELD, STAYING, STARTING = range(4)
"""Four numbers for each node: cores that other stages do not hold, replicas, those of them that do
not drain, and those that start."""

assert PAST > HISTORY
assert RECENT > TREND_INTERVALS

Past = Annotated[Records[float], np.float64, PAST]
Recent = Annotated[Records[float], np.float64, RECENT]
PerStage = Annotated[Records[float], np.float64, MAX_STAGES]
TasksPerStage = Annotated[Records[int], np.int32, MAX_STAGES]
PerNode = Annotated[Records[int], np.int32, 4 * MAX_NODES]
PerVariant = Annotated[Records[int], np.int64, MAX_VARIANTS]


class Env:
    """One environment."""

    scenario: int  # Row of its scenario in ``settings``
    interval: int
    now_s: float
    measured_s: float

    arrivals_rng: Words
    rounding_rng: Words  # A second reader of the arrivals' stream, for ``RECORDED`` ones
    network_rng: Words
    noise_rng: Words
    fan_out_key: Annotated[int, np.uint64]  # Seeds the draws of fan-outs

    sent_s: float  # When the next request, already drawn, is sent; infinite after the last
    arrival_s: float  # When it reaches the server
    sent: int  # Requests drawn, that one included
    clock_s: float
    state: int  # State of ``BURSTY`` arrivals; before, within or after a ``FLASH_CROWD``: 0, 1, 2
    state_ends_s: float
    stretch: int
    day_begins: float  # Part of the day at which ``DIURNAL`` arrivals begin
    group: int
    group_requests: int
    group_next: int

    private_at: Position  # First row of this environment's own part of ``traces``
    trace_at: Position
    trace_end: Position
    lap: float
    begins_at: Position  # Rows of the samples in which the last transfer began and ended
    ends_at: Position

    ended: int  # Rows of the ledger in use
    opened: int  # Requests in the system, with several stages; below, those with a running task
    opened_running: int
    places: Position  # Places used of ``World.opened``, a power of two, minus 1: a mask

    delay_sum_s: float  # From here on sums over this interval, but for the last two
    delay_max_s: float
    payload_sum_bytes: float
    latency_sum_s: float
    accuracy_sum: float
    accuracy_on_time: float  # The same of those that were in time
    mean_delays_s: Recent
    bandwidths: Recent


class AllocationRow:
    """What a controller asks for; see :class:`sponge_env.interfaces.StageAllocation`."""

    cores: int
    batch: int
    replicas: int
    variant: int


class WorkerState:
    """The replicas of a stage together."""

    planned_cores: int  # Of the resize that took effect last; planned ends of batches assume them
    target_cores: int  # With ``target_replicas``, those once draining replicas leave room
    target_replicas: int
    variant: int  # Model that batches are formed for; negative where each chooses its own
    pace: float
    """Service time of a slow batch over the profile's: mean plus mean deviation, which is known
    when simulated and else measured."""
    cores: int  # Of each replica that is ready
    replicas: int  # Replicas held: rows of ``replicas`` in use, by id
    starting: int  # Those that were not ready when cores were last assigned: they hold one each
    next_replica: int
    pending: int
    held_cores: float
    held_since_s: float
    held_core_s: float  # Integral of ``held_cores`` up to ``held_since_s``
    retired_core_s: float  # Of replicas that are gone, as is the next
    retired_throttled_s: float
    on_nodes: PerNode  # :data:`ROOM` and so on of each node, as they were counted last


class StageState(WorkerState):
    """One model of an environment, with its queue and replicas."""

    ring: Position  # Places of the queue, a power of two, minus 1: position k is row ``k & ring``
    head: int  # Position of the waiting request that is due first
    tail: int  # Position after the one that is due last; both grow until the queue is empty
    oldest: int  # No running request lies before this position
    running: int
    next_s: float  # When a batch ends, a replica is ready or a resize acts next; see ``stale``
    stale: bool  # Whether ``next_s`` and ``idle`` are out of date
    idle: bool  # Whether a replica could start a batch
    arrived: Past  # Requests that had come since the episode began, by the end of each interval
    refused: int  # From here to ``switches`` sums over this interval: those that did not join it
    joined: int  # Those that did
    waited_s: float  # Their waits, each since it joined or, if later, since the interval began
    taken: int
    service_sum_s: float
    batches: int
    batched: int  # Those in these batches
    finished: int  # Batches that did not die with their replica
    answered: int  # Those in them
    answered_by: PerVariant
    dropped: int
    switches: int

    wanted: AllocationRow  # The allocation last asked for
    last_variant: int
    meters: WorkerStatus
    before: WorkerStatus
    measured: StageMetrics  # The interval's metrics


class Account:
    """What a replica has used, and how far its work has come."""

    since_s: float  # Time up to which the account is kept
    used_core_s: float
    throttled_s: float
    left_s: float  # CPU time the batch still needs, or 0; from here on for the quota model only
    refill_s: float
    pool_s: float
    slice_s: float
    stopped: bool


class ReplicaState:
    """One replica, its batch and its service model."""

    id: int
    node: int
    ready_s: float
    draining: bool
    batch_size: int
    first: int  # Position of the batch's first request in the queue; the others follow
    started_s: float
    planned_end_s: float  # Of the batch, at the last resize; NaN if it began later
    variant: int

    cores: int
    finish_s: float
    account: Account
    at_end: Account  # When the work will be done; from here on for the quota model only
    resume_s: float  # CPU time that each pause in the work costs
    share: float  # Share of the CPU in force, in core units
    granted_s: float  # What that grants in a period


class TraceSample:
    """A sample of a bandwidth trace, which one more sample ends."""

    start_s: float
    bandwidth: float
    cumulative: float


class Listed:
    """A request drawn before the episode or from outside; after the last, times are infinite."""

    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float
    tasks: int  # Of each later stage, that the first one's answer leads to; negative if drawn
    cancelled: bool  # Whether it was cancelled while it ran
    enters: int  # Place of the stage that it enters


class Waiting:
    """A request in the queue, running ones included."""

    sent_s: float
    row: Position  # Its place in the order of arrival
    hopeless: bool
    retries: Annotated[int, np.uint8]


class OpenRequest:
    """A request on its way through several stages."""

    request: int  # Its place in the order of arrival, from 1 on; 0 for none
    running: int
    batches: int
    joined: int  # One bit for each stage after several others that has got its task
    left: int
    tasks: TasksPerStage
    done: TasksPerStage
    accuracy: PerStage  # Sum over ``done`` of the accuracies of the models that did them


class PendingResize:
    """A resize that has been asked for and is not in force yet."""

    time_s: float
    cores: int
    replicas: int


class LedgerRow:
    """How one request ended; see :func:`sponge_env.simulation.memory.ledger_columns`."""

    row: int  # Its place in the order of arrival
    sent_s: float
    started_s: float  # NaN if it never ran, as is ``replica`` -1
    finished_s: float
    outcome: int
    batch_size: int
    replica: int
    attempts: int
    stage: int
    accuracy: float  # Of its answer; NaN without
    overflowed: bool
    hopeless: bool


class World(NamedTuple):
    """Everything that belongs to one stage of one environment, and the way to the others."""

    place: int  # Number of the stage, to which the fields down to ``queue`` belong
    stage: StageState
    model: StageSettings
    replicas: Records[ReplicaState]
    pending: Records[PendingResize]
    queue: Records[Waiting]  # (capacity,) a power of two
    env: Env
    settings: Settings
    requests: Records[Listed]  # (requests + 1,) of ``LISTED`` arrivals, by ``arrival_s``
    group: Records[float]  # Send times of the current group of ``RECORDED`` arrivals, ascending
    ledger: Records[LedgerRow]  # Requests that ended, until it is full
    traces: Records[TraceSample]  # All bandwidth traces
    numbers: Records[float]  # All tables of all scenarios
    metrics: Any  # The interval's metrics, under the names of :data:`METRICS`
    opened: Records[OpenRequest]  # (places,) a power of two: requests on their way through stages
    stages: Records[StageState]  # (stages,) all of the environment, as are the rest
    models: Records[StageSettings]
    all_replicas: NDArray[Any]  # (stages, slots)
    all_pending: NDArray[Any]
    all_queues: NDArray[Any]  # (stages, capacity)


class Arrays(NamedTuple):
    """All memory; each :class:`World` is a view of it. The first axis is ``n`` long."""

    envs: NDArray[Any]
    stages: NDArray[Any]  # (n, stages)
    replicas: NDArray[Any]  # (n, stages, slots)
    pending: NDArray[Any]  # (n, stages, slots)
    requests: NDArray[Any]
    queue: NDArray[Any]  # (n, stages, capacity)
    opened: NDArray[Any]  # (n, places)
    group: NDArray[np.float64]
    ledger: NDArray[Any]
    settings: NDArray[Any]  # (scenarios,)
    models: NDArray[Any]  # (scenarios, stages) of :class:`~sponge_env.core.settings.StageSettings`
    traces: NDArray[Any]  # (rows,)
    numbers: NDArray[np.float64]
    blank: NDArray[Any]  # (1,) of :data:`METRICS`, where nothing was measured


ENV = dtype_of(Env)
STAGE = dtype_of(StageState)
ALLOCATION = dtype_of(AllocationRow)
REPLICA = dtype_of(ReplicaState)
SAMPLE = dtype_of(TraceSample)
LISTED_REQUEST = dtype_of(Listed)
WAITING = dtype_of(Waiting)
PENDING = dtype_of(PendingResize)
LEDGER_ROW = dtype_of(LedgerRow)
OPEN_REQUEST = dtype_of(OpenRequest)

UNMEASURED = ("latency_p50_s", "latency_p99_s")
"""Metrics of an interval that would need all its latencies at once."""

_MEASURED = [f for f in declared(IntervalMetrics) if f.name not in UNMEASURED]
_HINTS, _TYPES = get_type_hints(IntervalMetrics), {int: np.int64, float: np.float64}

METRICS = np.dtype([(f.name, _TYPES[_HINTS[f.name]]) for f in _MEASURED] + [("overflowed", int)])
"""The schema's metrics of an interval, and the requests for which no room was left in the
queue (they count as dropped)."""

BLANK = np.array([(*(f.default for f in _MEASURED), 0)], METRICS)
"""(1,) the metrics of an interval in which nothing was measured."""
