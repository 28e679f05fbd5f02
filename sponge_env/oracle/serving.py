"""The serving core as the search for a schedule drives it, on the compiled simulated worker.

The core's own rules, over states that are small enough to be copied, for the search follows many
schedules at once: which requests wait is one position per class of requests. When something
happens, what has expired, who is late and what a resize does is :mod:`sponge_env.core`'s to say.
"""

import math
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.core import batching, records
from sponge_env.core import replicas as worker
from sponge_env.core.compiled import Records, Words, called, compiled, dtype_of, inlined
from sponge_env.core.overload import size_in_time
from sponge_env.core.rng import NOISE, seed_stream
from sponge_env.core.service import advance, start_service
from sponge_env.core.settings import Settings, StageSettings
from sponge_env.core.step import jump
from sponge_env.oracle.episode import MAX_CLASSES, KnownEpisode

_is_on_time = inlined(batching.is_on_time)

PerClass = Annotated[Records[int], np.int64, MAX_CLASSES]


class _Members:
    """Which requests are in a batch."""

    begin: PerClass  # First request of each class in the batch
    end: PerClass  # Request of each class after the last in the batch


# The members come first in memory: a record that begins like the simulator's would pass for one
# with numba, which could then call what it has compiled for the shorter one.
class PlannedReplica(records.ReplicaState, _Members):
    """A replica and what it runs."""


class ScheduleState(records.WorkerState):
    """What has happened so far on one schedule; what the core needs has its names."""

    now_s: float
    noise_rng: Words
    head: int

    # Position after the last request of each class that was put into a batch or dropped
    served: PerClass
    counted_core_s: float  # Core-seconds that count
    violations: int


REPLICA, STATE = dtype_of(PlannedReplica), dtype_of(ScheduleState)


class Branch(NamedTuple):
    """One schedule: what the worker's kernels see of a :class:`~sponge_env.core.records.World`."""

    env: ScheduleState
    stage: ScheduleState
    settings: Settings
    model: StageSettings
    replicas: Records[PlannedReplica]
    pending: Records[records.PendingResize]
    numbers: Records[float]


class Branches(NamedTuple):
    """Many schedules."""

    states: NDArray[Any]  # (schedules,) of :class:`ScheduleState`
    replicas: NDArray[Any]  # (schedules, slots) of :class:`PlannedReplica`


@inlined
def branch(e: KnownEpisode, branches: Branches, k: int) -> Branch:
    """Return one of many schedules."""
    state, replicas, settings = branches.states[k], branches.replicas[k], e.settings[0]
    return Branch(state, state, settings, e.models[0], replicas, e.pending, e.numbers)


@inlined
def _world(w: Branch) -> records.World:
    """Return a branch as what the worker's kernels take; they read no other fields."""
    return w  # type: ignore[return-value]


@inlined
def begin(e: KnownEpisode, w: Branch) -> None:
    """Start at time 0 with nothing served and the initial replicas warm."""
    w.env.now_s = 0.0
    seed_stream(w.env.noise_rng, e.seed, NOISE)
    worker.reset_worker(_world(w))
    for kind in range(e.classes):
        w.env.served[kind] = e.first[kind]
    w.env.pace = w.model.pace
    w.env.counted_core_s, w.env.violations = 0.0, 0


@called
def serve(e: KnownEpisode, w: Branch, interval: int, cores: int, batch: int, replicas: int) -> int:
    """Serve an interval, after the last one what is left, too; return the largest batch's size."""
    held_core_s, w.env.planned_cores = worker.held_core_s(_world(w)), cores
    worker.resize(_world(w), cores, replicas)
    largest, until_s = 0, (interval + 1) * e.interval_s
    while until_s > 0.0:
        largest = max(largest, _serve_until(e, w, interval, batch, until_s))
        if until_s == math.inf:
            return largest
        for n in range(w.env.replicas):  # as the core does when it reads the meters
            advance(_world(w), w.replicas[n], w.env.now_s)
        held_core_s = worker.held_core_s(_world(w)) - held_core_s
        w.env.counted_core_s += e.cores_count[interval] * held_core_s
        until_s = math.inf if interval == e.intervals - 1 else 0.0
    return largest


@inlined
def _serve_until(e: KnownEpisode, w: Branch, interval: int, batch: int, until_s: float) -> int:
    """Serve until a moment, at which no batch is formed any more; return the largest batch."""
    largest = 0
    while w.env.now_s < until_s:
        largest = max(largest, _form_batches(e, w, interval, batch))
        arrival_s = _next_arrival_s(e, w, interval)
        worker.share_cpu(_world(w))
        event_s = worker.next_event_s(_world(w))
        if min(until_s, arrival_s, event_s) == math.inf:
            break
        if jump(_world(w).env, event_s, min(until_s, arrival_s)):
            _settle(e, w)
    return largest


@inlined
def _next_arrival_s(e: KnownEpisode, w: Branch, interval: int) -> float:
    """Return when a request comes for which a replica is idle."""
    for n in range(w.env.replicas):
        if worker.is_idle(_world(w).env, _world(w).replicas[n]):
            arrival_s = math.inf
            for kind in range(e.classes):
                i = w.env.served[kind]
                if i < e.arrived[interval + 1, kind]:
                    arrival_s = min(arrival_s, e.release_s[i])
            return arrival_s
    return math.inf


@inlined
def _settle(e: KnownEpisode, w: Branch) -> None:
    """Take the batches that have ended from their replicas, and count who was late."""
    row = worker.first_ended(_world(w))
    while row >= 0:
        replica = w.replicas[row]
        w.env.violations += late_in_batch(e, replica, replica.finish_s)
        worker.release(_world(w), row)
        worker.update_held(_world(w))
        row = worker.first_ended(_world(w))
    if w.env.starting:
        worker.fit_target(_world(w))


@compiled
def late_in_batch(e: KnownEpisode, replica: PlannedReplica, finish_s: float) -> int:
    """Count the violations in a replica's batch if it ends at a moment."""
    late = 0
    for kind in range(e.classes):
        for i in range(replica.begin[kind], replica.end[kind]):
            late += e.counts[i] * (not _is_on_time(e.deadline_s[i], finish_s))
    return late


@inlined
def _form_batches(e: KnownEpisode, w: Branch, interval: int, limit: int) -> int:
    """Give what waits to the idle replicas; return the largest batch."""
    largest = 0
    for n in range(w.env.replicas):
        replica = w.replicas[n]
        if worker.is_idle(_world(w).env, _world(w).replicas[n]):
            _drop_expired(e, w, interval)
            for kind in range(e.classes):
                replica.begin[kind] = w.env.served[kind]
            size, most = 0, _batch_limit(e, w, interval, limit)
            chosen = _most_urgent(e, w.env, interval)
            while size < most and chosen >= 0:
                w.env.served[chosen] += 1
                size += 1
                chosen = _most_urgent(e, w.env, interval)
            if size == 0:
                break
            for kind in range(e.classes):
                replica.end[kind] = w.env.served[kind]
            replica.batch_size, replica.started_s = size, w.env.now_s
            start_service(_world(w), _world(w).replicas[n], w.env.now_s)
            largest = max(largest, size)
    return largest


@compiled
def _drop_expired(e: KnownEpisode, w: Branch, interval: int) -> None:
    for kind in range(e.classes):
        i = w.env.served[kind]
        while _waits(e, w.env, interval, kind, i) and batching.is_expired(
            _world(w), e.deadline_s[i]
        ):
            w.env.violations += e.counts[i]
            i += 1
        w.env.served[kind] = i


@inlined
def _batch_limit(e: KnownEpisode, w: Branch, interval: int, limit: int) -> int:
    """Return how large a batch may be; drop what it would answer late, as the core does."""
    size = limit
    if w.settings.sheds:
        size, chosen = 0, _most_urgent(e, w.env, interval)
        while size == 0 and chosen >= 0:
            first, waiting = w.env.served[chosen], 0
            for kind in range(e.classes):
                i = w.env.served[kind]
                while waiting <= limit and _waits(e, w.env, interval, kind, i):
                    waiting, i = waiting + 1, i + 1
            size = size_in_time(_world(w), e.deadline_s[first], limit, waiting)
            if size == 0:
                w.env.violations += e.counts[first]
                w.env.served[chosen] += 1
                chosen = _most_urgent(e, w.env, interval)
    return size


@compiled
def _waits(e: KnownEpisode, state: ScheduleState, interval: int, kind: int, i: int) -> bool:
    return bool(i < e.arrived[interval + 1, kind] and e.release_s[i] <= state.now_s)


@compiled
def _most_urgent(e: KnownEpisode, state: ScheduleState, interval: int) -> int:
    """Return the class of the most urgent request that waits; -1 if none does."""
    chosen = -1
    for kind in range(e.classes):
        i = state.served[kind]
        waits = _waits(e, state, interval, kind, i)
        if waits and (chosen < 0 or e.urgency[i] < e.urgency[state.served[chosen]]):
            chosen = kind
    return chosen
