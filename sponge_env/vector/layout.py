"""What is in memory: one record for each environment, scenario, replica and so on.

All arrays are allocated once. ``n`` is the number of environments; times are in seconds
since the start of the episode.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from sponge_env.encoding import TREND_INTERVALS
from sponge_env.results.schema import IntervalMetrics
from sponge_env.system import HISTORY
from sponge_env.vector.compiler import Position, Records, Words, dtype_of, sources_mark
from sponge_env.vector.settings import Settings

PAST, RECENT = 32, 8
"""Past intervals of which arrivals, and delays and bandwidths, are kept: powers of two, to
find interval k at ``k & (length - 1)``, not below what the observation looks at."""

assert PAST >= HISTORY
assert RECENT > TREND_INTERVALS

Past = Annotated[Records[float], np.float64, PAST]
Recent = Annotated[Records[float], np.float64, RECENT]


class Env:
    """One environment."""

    scenario: int
    """Row of its scenario in ``settings``."""
    interval: int
    """Intervals that are over."""
    now_s: float
    measured_s: float
    """Time of the last measurement."""

    arrivals_rng: Words
    rounding_rng: Words
    """A second reader of the arrivals' stream, for ``RECORDED`` ones."""
    network_rng: Words
    noise_rng: Words

    sent_s: float
    """The next request; infinite after the last."""
    arrival_s: float
    sent: int
    """Requests drawn so far."""
    clock_s: float
    """Time up to which arrivals are drawn."""
    state: int
    """State of ``BURSTY`` arrivals; before, within or after the flash crowd of a stretch of
    ``FLASH_CROWD`` ones: 0, 1, 2."""
    state_ends_s: float
    stretch: int
    """Stretch of ``FLASH_CROWD`` arrivals."""
    day_begins: float
    """Part of the day at which ``DIURNAL`` arrivals begin."""
    group: int
    """Next group of ``RECORDED`` arrivals."""
    group_size: int
    """Requests of the group at hand."""
    group_next: int

    private_at: Position
    """First row of this environment's own part of ``traces``."""
    trace_at: Position
    """First row of the bandwidth trace in ``traces``."""
    trace_end: Position
    """The row that marks its end."""
    lap: float
    """Lap of the trace in which the last transfer began."""
    begins_at: Position
    """Row of the sample in which it began."""
    ends_at: Position
    """Row of the sample in which it ended."""

    ring: Position
    """Capacity of the queue minus 1; position k is row ``k & ring``."""
    head: int
    """Position of the earliest waiting request; positions only grow, until all is empty."""
    tail: int
    """Position after the latest waiting request."""
    oldest: int
    """No running request lies before this position."""
    running: int
    ended: int
    """Rows of the ledger in use."""

    cores: int
    """Core units in force on the worker."""
    requested_cores: int
    """Core units of the allocation in force."""
    requested_batch: int
    requested_replicas: int
    replicas: int
    """Replicas held: rows of ``replicas`` in use, by id."""
    next_replica: int
    pending: int
    """Rows of ``pending`` in use, earliest first."""
    held_cores: float
    held_since_s: float
    held_core_s: float
    """Integral of ``held_cores`` up to ``held_since_s``."""
    retired_core_s: float
    retired_throttled_s: float
    core_seconds: float
    """Counters at the last measurement, as are the next two."""
    used_core_s: float
    throttled_s: float

    delay_sum_s: float
    """Sums over this interval, as are the next five."""
    delay_max_s: float
    payload_sum_bytes: float
    latency_sum_s: float
    service_sum_s: float
    batches: int
    answered: int
    """Requests in these batches."""
    arrivals: Past
    """Arrivals of past intervals."""
    mean_delays_s: Recent
    bandwidths: Recent

    episode_return: float
    """Sum of the rewards."""


class Replica:
    """One replica, its batch and its service model."""

    id: int
    ready_s: float
    draining: bool
    size: int
    """Requests in its batch; 0 when it has none."""
    first: int
    """Position of the batch's first request in the queue; the others follow."""
    started_s: float
    planned_end_s: float
    """When the batch was expected to end at the last resize; NaN if it began later."""

    cores: int
    since_s: float
    finish_s: float
    used_core_s: float
    throttled_s: float
    left_s: float
    """CPU time the batch still needs; this and the rest are for the quota model only."""
    resume_s: float
    share: float
    granted_s: float
    refill_s: float
    pool_s: float
    slice_s: float
    stopped: bool
    end_refill_s: float
    """The books when the work is done, as are the rest."""
    end_pool_s: float
    end_slice_s: float
    end_stopped: bool
    end_used_core_s: float
    end_throttled_s: float


class Sample:
    """A stretch of a bandwidth trace; one more marks its end."""

    start_s: float
    bandwidth: float
    """Bytes per second."""
    cumulative: float
    """Bytes that the trace has delivered before."""


class Given:
    """A request that was made before the episode; after the last comes an endless one."""

    id: int
    sent_s: float
    arrival_s: float
    deadline_s: float
    payload_bytes: float


class Waiting:
    """A request in the queue, running ones included."""

    sent_s: float
    row: Position
    """Its place in the order of arrival."""
    hopeless: bool


class Pending:
    """A resize that has been asked for and is not in force yet."""

    time_s: float
    cores: int
    replicas: int


class Ended:
    """How one request ended; see :class:`sponge_env.serving.ledger.Entry`."""

    row: int
    """Its place in the order of arrival."""
    sent_s: float
    started_s: float
    """NaN if it never ran, as is ``replica`` -1."""
    finished_s: float
    outcome: int
    batch_size: int
    replica: int
    overflowed: bool
    """Whether the queue was full when it arrived."""


class World(NamedTuple):
    """Everything that belongs to one environment."""

    env: Env
    settings: Settings
    replicas: Records[Replica]
    """(slots,)"""
    pending: Records[Pending]
    given: Records[Given]
    """(requests + 1,) those of ``GIVEN`` arrivals, ascending by ``arrival_s``."""
    queue: Records[Waiting]
    """(capacity,) a power of two."""
    group: Records[float]
    """Send times of the group of ``RECORDED`` arrivals at hand, ascending."""
    ledger: Records[Ended]
    """Requests that ended, until it is full."""
    traces: Records[Sample]
    """All bandwidth traces."""
    numbers: Records[float]
    """All tables of all scenarios."""
    metrics: Any
    """The interval's metrics, under the names of :data:`METRICS`."""


class Arrays(NamedTuple):
    """All memory; each :class:`World` is a view of it. The first axis is ``n`` long."""

    envs: NDArray[Any]
    replicas: NDArray[Any]
    pending: NDArray[Any]
    given: NDArray[Any]
    queue: NDArray[Any]
    group: NDArray[np.float64]
    ledger: NDArray[Any]
    settings: NDArray[Any]
    """(scenarios,)"""
    traces: NDArray[Any]
    """(rows,)"""
    numbers: NDArray[np.float64]


ENV = dtype_of(Env, sources_mark())
REPLICA = dtype_of(Replica)
SAMPLE = dtype_of(Sample)
GIVEN_REQUEST = dtype_of(Given)
WAITING = dtype_of(Waiting)
PENDING = dtype_of(Pending)
ENDED = dtype_of(Ended)

UNMEASURED = ("latency_p50_s", "latency_p99_s")
"""Metrics of an interval that would need all its latencies at once."""

_MEASURED = [f.name for f in dataclasses.fields(IntervalMetrics) if f.name not in UNMEASURED]
_TYPES = {int: np.int64, float: np.float64}

METRICS = np.dtype(
    [(name, _TYPES[get_type_hints(IntervalMetrics)[name]]) for name in _MEASURED]
    + [("overflowed", np.int64)]
)
"""The schema's metrics of an interval, and the requests for which no room was left in the
queue (they count as dropped)."""
