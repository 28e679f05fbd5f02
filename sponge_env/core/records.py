"""What is in memory: one record for each environment, stage, scenario, replica and so on.

All arrays are allocated once. ``n`` is the number of environments; times are in seconds
since the start of the episode. No field bears the name of a NumPy attribute, such as
``size``, for the interpreter could not tell them apart.
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
"""Past intervals of which arrivals, and delays and bandwidths, are kept: powers of two, to
find interval k at ``k & (length - 1)``, not below what the observation looks at."""

ROOM, HELD, STAYING, STARTING = range(4)
"""Four numbers of each node, one after the other: cores that other stages do not hold, replicas,
those of them that do not drain, and those that start."""

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
    fan_out_key: Annotated[int, np.uint64]  # What fan-outs are drawn from, beside the request

    sent_s: float  # When the next request is sent, which is drawn already; infinite after the last
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
    opened: int
    """Requests in the system and those with a task that runs, where there are several stages."""
    opened_running: int
    places: Position
    """Places in use of ``opened``, a power of two, minus 1; a row's place is in these bits."""

    delay_sum_s: float  # Sums over this interval, as are the rest but the last two
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

    planned_cores: int
    """Cores of the resize that came into force last; planned ends reckon with them."""
    target_cores: int
    """What the worker comes to as soon as those that drain leave room on the machine."""
    target_replicas: int
    variant: int  # Model that batches are formed for; negative where each chooses its own
    pace: float
    """Time of batches that are slower than most, relative to the profile's: mean and mean deviation
    together, known when simulated and else measured."""
    cores: int  # Of each replica that is ready
    replicas: int  # Replicas held: rows of ``replicas`` in use, by id
    starting: int  # Those of them that were not ready when cores were given last: these hold one
    next_replica: int
    pending: int
    held_cores: float
    held_since_s: float
    held_core_s: float  # Integral of ``held_cores`` up to ``held_since_s``
    retired_core_s: float  # What replicas that are gone have used, as is the next
    retired_throttled_s: float
    on_nodes: PerNode  # With the replicas that there were when they were counted last


class Stage(WorkerState):
    """One model of an environment, with its queue and replicas."""

    ring: Position
    """Places in use of the queue, a power of two, minus 1; position k is row ``k & ring``."""
    head: int  # Position of the waiting request that is due first
    tail: int  # Position after the one that is due last; both grow until the queue is empty
    oldest: int  # No running request lies before this position
    running: int
    next_s: float
    """When a batch ends, a replica becomes ready or a resize takes effect, unless ``stale``."""
    stale: bool  # Whether something has changed that decides on ``next_s`` or ``idle``
    idle: bool  # Whether a replica could start a batch, unless ``stale``
    arrived: Past
    """Those that had come to the queue by the end of past intervals, since the episode began."""
    refused: int  # Sum over this interval: those of ``arrived`` that did not join the queue
    joined: int  # From here to ``switches`` sums over this interval: those that joined the queue
    waited_s: float  # Their waiting, each from its joining or the interval's beginning on
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
    """What a replica has used, and how far its work is."""

    since_s: float  # Time up to which it says so
    used_core_s: float
    throttled_s: float
    left_s: float
    """CPU time the batch still needs, or 0; this and the rest are for the quota model only."""
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
    planned_end_s: float
    """When the batch was expected to end at the last resize; NaN if it began later."""
    variant: int

    cores: int
    finish_s: float
    account: Account
    at_end: Account
    """As it will be when the work is done, under a quota; the rest is for that only, too."""
    resume_s: float  # CPU time that each pause in the work costs
    share: float  # Part of the CPU in force, in core units, and what it grants in a period
    granted_s: float


class TraceSample:
    """A stretch of a bandwidth trace; one more marks its end."""

    start_s: float
    bandwidth: float
    cumulative: float


class Listed:
    """A request drawn before the episode, the last before an endless one; or one from outside."""

    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float
    tasks: int
    """Tasks that the first stage's answer leads to in each that follows; below 0 if drawn."""
    cancelled: bool  # Whether it was taken back while it ran
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
    joined: int  # Bit for each stage in which several meet, once its task is there
    left: int
    tasks: TasksPerStage
    done: TasksPerStage
    accuracy: PerStage  # Of these the sum of the accuracies of the models that did them


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

    place: int  # That of the stage, to which the fields down to ``queue`` belong
    stage: Stage
    model: StageSettings
    replicas: Records[ReplicaState]
    pending: Records[PendingResize]
    queue: Records[Waiting]  # (capacity,) a power of two
    env: Env
    settings: Settings
    requests: Records[Listed]
    """(requests + 1,) those of ``LISTED`` arrivals, ascending by ``arrival_s``."""
    group: Records[float]  # Send times of the group of ``RECORDED`` arrivals at hand, ascending
    ledger: Records[LedgerRow]  # Requests that ended, until it is full
    traces: Records[TraceSample]  # All bandwidth traces
    numbers: Records[float]  # All tables of all scenarios
    metrics: Any  # The interval's metrics, under the names of :data:`METRICS`
    opened: Records[OpenRequest]
    """(places,) a power of two: requests in the system where there are several stages."""
    stages: Records[Stage]  # (stages,) all of the environment, as are the rest
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
STAGE = dtype_of(Stage)
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
