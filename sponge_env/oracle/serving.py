"""The serving core and its simulated worker, as the search for a schedule drives them.

The same semantics as :mod:`sponge_env.serving` and :mod:`sponge_env.workers.simulated`
without noise, over states that can be copied: the search follows many schedules at once.
``tests/test_oracle.py`` replays what it finds in the real ones.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np

from sponge_env.oracle.problem import MAX_CLASSES, Problem
from sponge_env.vector.compiler import Records, compiled, dtype_of

PerClass = Annotated[Records[int], np.int64, MAX_CLASSES]


class Replica:
    """A replica and its batch."""

    size: int
    """Requests in its batch; 0 where it has none."""
    first: PerClass
    """First request of each class in the batch."""
    end: PerClass
    """Request of each class after the last in the batch."""
    finish_s: float
    ready_s: float
    draining: bool
    since_s: float
    """Up to when the next four are known."""
    left_s: float
    """Work that is left."""
    tokens_s: float
    period_start_s: float
    quota_s: float


class State:
    """What has happened so far on one schedule; its replicas are in an array of their own."""

    served: PerClass
    """Position after the last request of each class that was put into a batch or dropped."""
    cores: int
    replicas: int
    """Replicas held, in the order of their age."""
    held: float
    """Core-windows charged."""
    violations: int


REPLICA, STATE = dtype_of(Replica), dtype_of(State)


class Server(NamedTuple):
    """One state and its replicas, by position in arrays of many."""

    states: Records[State]
    replicas: Records[Replica]
    """(states * room,) those of state ``k`` from ``k * room`` on."""
    room: int


@compiled
def begin(p: Problem, server: Server, k: int, replicas: int) -> None:
    """Start state ``k`` at time 0 with nothing served and warm replicas."""
    state = server.states[k]
    for kind in range(p.classes):
        state.served[kind] = p.first[kind]
    state.cores, state.replicas = p.cores, 0
    state.held, state.violations = 0.0, 0
    for _ in range(replicas):
        _add_replica(p, server, k, 0.0)


@compiled
def serve(
    p: Problem, server: Server, k: int, window: int, cores: int, batch: int, replicas: int
) -> int:
    """Put an allocation in force and serve until the window ends; return the largest batch.

    The last window goes on until all requests have been served, its cores do not.
    """
    start_s = window * p.interval_s
    end_s = math.inf if window == p.windows - 1 else start_s + p.interval_s
    _resize(p, server, k, start_s, cores, replicas)
    now_s, largest = start_s, 0
    while True:
        _settle(p, server, k, now_s, start_s)
        largest = max(largest, _form_batches(p, server, k, window, now_s, batch))
        next_s = _next_event_s(p, server, k, window, now_s)
        if next_s >= end_s:
            break
        now_s = next_s
    if end_s < math.inf:
        _settle(p, server, k, end_s, start_s)
    state = server.states[k]
    state.held += p.price[window] * float(state.cores * state.replicas)
    return largest


@compiled
def _resize(p: Problem, server: Server, k: int, now_s: float, cores: int, replicas: int) -> None:
    state, row = server.states[k], k * server.room
    if cores != state.cores:
        for n in range(state.replicas):
            _set_cores(p, server.replicas[row + n], now_s, state.cores, cores)
        state.cores = cores
    staying = 0
    for n in range(state.replicas):
        staying += not server.replicas[row + n].draining
    for _ in range(replicas - staying):
        _add_replica(p, server, k, now_s + p.cold_start_s)
    for _ in range(staying - replicas):
        _scale_in(server, k, now_s)


@compiled
def _add_replica(p: Problem, server: Server, k: int, ready_s: float) -> None:
    state = server.states[k]
    replica = server.replicas[k * server.room + state.replicas]
    replica.size, replica.draining, replica.ready_s = 0, False, ready_s
    replica.finish_s = replica.since_s = replica.left_s = 0.0
    replica.period_start_s = -math.inf
    replica.quota_s = replica.tokens_s = p.core_unit * state.cores * p.period_s
    state.replicas += 1


@compiled
def _scale_in(server: Server, k: int, now_s: float) -> None:
    """Let a replica go: a cold one first, then an idle one, then a busy one; the youngest."""
    state, row = server.states[k], k * server.room
    chosen, chosen_rank = -1, 3
    for n in range(state.replicas - 1, -1, -1):
        replica = server.replicas[row + n]
        if not replica.draining:
            rank = (1 + (replica.size > 0)) if replica.ready_s <= now_s else 0
            if rank < chosen_rank:
                chosen, chosen_rank = n, rank
    if server.replicas[row + chosen].size:
        server.replicas[row + chosen].draining = True
    else:
        _remove(server, k, chosen)


@compiled
def _remove(server: Server, k: int, n: int) -> None:
    state, row = server.states[k], k * server.room
    state.replicas -= 1
    for later in range(n, state.replicas):
        server.replicas[row + later] = server.replicas[row + later + 1]


@compiled
def _settle(p: Problem, server: Server, k: int, now_s: float, start_s: float) -> None:
    """Take the batches that have ended from their replicas and count who was late.

    A replica that drains is charged for the part of the window until it ends.
    """
    state, row = server.states[k], k * server.room
    for n in range(state.replicas - 1, -1, -1):
        replica = server.replicas[row + n]
        if replica.size and replica.finish_s <= now_s:
            _advance(p, replica, replica.finish_s)
            state.violations += late_in_batch(p, replica, replica.finish_s)
            replica.size = 0
            if replica.draining:
                window = int(start_s / p.interval_s + 0.5)
                part = min(1.0, (replica.finish_s - start_s) / p.interval_s)
                state.held += p.price[window] * state.cores * part
                _remove(server, k, n)


@compiled
def late_in_batch(p: Problem, replica: Replica, finish_s: float) -> int:
    """Count the violations in a replica's batch if it ends at a moment."""
    late = 0
    for kind in range(p.classes):
        for i in range(replica.first[kind], replica.end[kind]):
            late += p.counts[i] * (p.deadline_s[i] < finish_s)
    return late


@compiled
def _next_event_s(p: Problem, server: Server, k: int, window: int, now_s: float) -> float:
    """Return when a batch ends, a replica becomes ready or, if one is idle, a request comes."""
    state, row = server.states[k], k * server.room
    event_s, idle = math.inf, False
    for n in range(state.replicas):
        replica = server.replicas[row + n]
        if replica.size:
            event_s = min(event_s, replica.finish_s)
        elif replica.ready_s > now_s:
            event_s = min(event_s, replica.ready_s)
        else:
            idle = True
    if idle:
        for kind in range(p.classes):
            i = state.served[kind]
            if i < p.arrived[window + 1, kind]:
                event_s = min(event_s, p.release_s[i])
    return event_s


@compiled
def _form_batches(
    p: Problem, server: Server, k: int, window: int, now_s: float, limit: int
) -> int:
    """Give what waits to the idle replicas, the oldest first; return the largest batch."""
    state, row, largest = server.states[k], k * server.room, 0
    for n in range(state.replicas):
        replica = server.replicas[row + n]
        if replica.size == 0 and replica.ready_s <= now_s:
            _drop_expired(p, state, window, now_s)
            for kind in range(p.classes):
                replica.first[kind] = state.served[kind]
            size = 0
            while size < limit and _take_most_urgent(p, state, window, now_s):
                size += 1
            if size == 0:
                break
            for kind in range(p.classes):
                replica.end[kind] = state.served[kind]
            replica.size = size
            _start(p, replica, now_s, p.work_s[size - 1, state.cores - 1])
            largest = max(largest, size)
    return largest


@compiled
def _drop_expired(p: Problem, state: State, window: int, now_s: float) -> None:
    for kind in range(p.classes):
        i = state.served[kind]
        while (
            i < p.arrived[window + 1, kind]
            and p.release_s[i] <= now_s
            and p.deadline_s[i] < now_s - p.drop_grace_s
        ):
            state.violations += p.counts[i]
            i += 1
        state.served[kind] = i


@compiled
def _take_most_urgent(p: Problem, state: State, window: int, now_s: float) -> bool:
    chosen = -1
    for kind in range(p.classes):
        i = state.served[kind]
        if i < p.arrived[window + 1, kind] and p.release_s[i] <= now_s:
            if chosen < 0 or p.urgency[i] < p.urgency[state.served[chosen]]:
                chosen = kind
    if chosen >= 0:
        state.served[chosen] += 1
    return chosen >= 0


@compiled
def _start(p: Problem, replica: Replica, now_s: float, work_s: float) -> None:
    replica.since_s, replica.left_s = now_s + p.dispatch_s, work_s
    if replica.since_s >= replica.period_start_s + p.period_s:
        replica.period_start_s, replica.tokens_s = replica.since_s, replica.quota_s
    _predict(p, replica)


@compiled
def _set_cores(p: Problem, replica: Replica, now_s: float, old: int, new: int) -> None:
    """Change the cores; see ``ProfileService.resize`` and ``QuotaBucket.resize``."""
    if not p.quota:
        if replica.size and replica.finish_s > now_s:
            ratio = p.work_s[replica.size - 1, new - 1] / p.work_s[replica.size - 1, old - 1]
            replica.left_s = (replica.finish_s - now_s) * ratio
            replica.since_s, replica.finish_s = now_s, now_s + replica.left_s
        return
    _advance(p, replica, now_s)
    replica.quota_s = p.core_unit * new * p.period_s
    replica.since_s = max(replica.since_s, now_s)
    replica.period_start_s, replica.tokens_s = replica.since_s, replica.quota_s
    if replica.left_s > 0:
        _predict(p, replica)


@compiled
def _available_s(p: Problem, replica: Replica) -> float:
    return min(replica.tokens_s, replica.period_start_s + p.period_s - replica.since_s)


@compiled
def _predict(p: Problem, replica: Replica) -> None:
    """Set the end of the batch; see ``QuotaBucket._predict``."""
    available_s = _available_s(p, replica)
    if not p.quota or replica.quota_s >= p.period_s or replica.left_s <= available_s:
        replica.finish_s = replica.since_s + replica.left_s
        return
    beyond_s = replica.left_s - available_s
    full_periods = math.ceil(beyond_s / replica.quota_s) - 1
    last_start_s = replica.period_start_s + p.period_s * (1 + full_periods)
    replica.finish_s = last_start_s + (beyond_s - full_periods * replica.quota_s)


@compiled
def _advance(p: Problem, replica: Replica, now_s: float) -> None:
    """Spend the tokens up to a moment; see ``QuotaBucket.advance``."""
    to_s = min(now_s, replica.finish_s)
    if not p.quota or to_s <= replica.since_s:
        return
    done_s = to_s - replica.since_s
    if replica.quota_s < p.period_s:
        done_s = min(_available_s(p, replica), done_s)
        past_s = to_s - (replica.period_start_s + p.period_s)
        if past_s < 0:
            replica.tokens_s -= done_s
        else:
            periods = math.floor(past_s / p.period_s)
            replica.period_start_s += p.period_s * (1 + periods)
            last_s = min(replica.quota_s, to_s - replica.period_start_s)
            replica.tokens_s = replica.quota_s - last_s
            done_s += periods * replica.quota_s + last_s
    replica.left_s = max(0.0, replica.left_s - done_s) if to_s < replica.finish_s else 0.0
    replica.since_s = to_s
