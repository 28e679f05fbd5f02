"""An episode: its start, one interval under an allocation, and its end."""

from __future__ import annotations

import math

from sponge_env.core.arrivals import first_listed, reset_arrivals
from sponge_env.core.batching import abandon, any_pending
from sponge_env.core.compiled import Records, compiled, inlined
from sponge_env.core.measure import clear_sums, measure, remember_meters
from sponge_env.core.network import reset_network
from sponge_env.core.queue import last_deadline_s
from sponge_env.core.records import ReplicaState, StageAllocation, World
from sponge_env.core.replicas import read_meters, reset_worker, resize
from sponge_env.core.settings import LISTED
from sponge_env.core.simulate import simulate


@inlined
def reset(w: World, seed: int) -> None:
    """Start an episode; :func:`begin_traffic` comes before where requests are not listed."""
    env, stage, initial = w.env, w.stage, w.settings.initial
    env.interval, env.measured_s = 0, 0.0
    env.ended, env.episode_return = 0, 0.0
    stage.head, stage.tail, stage.oldest, stage.running = 0, 0, 0, 0
    wanted = stage.wanted
    wanted.cores, wanted.batch, wanted.replicas = initial.cores, initial.batch, initial.replicas
    wanted.variant = 0
    if w.settings.arrival_kind == LISTED:
        first_listed(w)
    reset_worker(w, seed)
    read_meters(w)
    remember_meters(stage.meters, stage.before)


@inlined
def begin_traffic(w: World, seed: int) -> None:
    """Choose or make the bandwidth of an episode and draw its first request."""
    reset_network(w, seed)
    reset_arrivals(w, seed)


@compiled
def begin_interval(w: World, wanted: Records[StageAllocation]) -> None:
    """Note what is asked for, stage by stage; the worker has its allocation from elsewhere."""
    clear_sums(w)
    asked, before = wanted[0], w.stage.wanted
    for k in range(w.stage.replicas):
        replica = w.replicas[k]
        if replica.batch_size:
            left_s = max(0.0, planned_end_s(w, replica) - w.env.now_s)
            before_s = _planned_s(w, replica.batch_size, before.cores)
            after_s = _planned_s(w, replica.batch_size, asked.cores)
            replica.planned_end_s = w.env.now_s + left_s * after_s / before_s
    before.cores, before.batch = asked.cores, asked.batch
    before.replicas, before.variant = asked.replicas, asked.variant
    w.env.interval += 1


@inlined
def step(w: World, wanted: Records[StageAllocation], draining: bool) -> None:
    """Put an allocation in force and serve until the interval ends, or drain.

    To drain is to end the episode: no request arrives any more, and what is left is served
    under the allocation in force. Requests that still wait when the last deadline has passed
    are dropped, so that afterwards nothing is queued or running.
    """
    if draining:
        w.env.arrival_s = math.inf
    else:
        resize(w, wanted[0].cores, wanted[0].replicas)
        begin_interval(w, wanted)
    _serve(w, draining)
    if not draining:
        read_meters(w)
        measure(w)


@inlined
def _serve(w: World, draining: bool) -> None:
    """Serve until the interval ends, or until nothing is left to be served."""
    env, interval_s = w.env, w.settings.interval_s
    last_s = last_deadline_s(w) if draining else env.interval * interval_s
    going = not draining or any_pending(w)
    while going:
        until_s = last_s
        if draining and env.now_s >= last_s:
            abandon(w)
            until_s = env.now_s + interval_s
        elif draining:
            until_s = min(last_s, env.now_s + interval_s)
        simulate(w, w.stage.wanted.batch, until_s)
        going = draining and any_pending(w)


@compiled
def planned_end_s(w: World, replica: ReplicaState) -> float:
    """Return when the latency model expects a running batch to end."""
    if math.isnan(replica.planned_end_s):
        return replica.started_s + _planned_s(w, replica.batch_size, w.stage.wanted.cores)
    return replica.planned_end_s


@inlined
def _planned_s(w: World, count: int, cores: int) -> float:
    settings = w.settings
    return w.numbers[settings.planned_at + (count - 1) * settings.limits.cores + cores - 1]
