"""An episode: its start, one interval under an allocation, and its end."""

from __future__ import annotations

import math

from sponge_env.core.arrivals import reset_arrivals
from sponge_env.core.batching import abandon, any_pending
from sponge_env.core.compiled import Records, compiled
from sponge_env.core.measure import clear_sums, measure, remember_meters
from sponge_env.core.network import reset_network
from sponge_env.core.queue import last_deadline_s
from sponge_env.core.records import ReplicaState, StageAllocation, World
from sponge_env.core.replicas import read_meters, reset_worker, resize
from sponge_env.core.simulate import simulate, wait


@compiled
def reset(w: World, seed: int) -> None:
    """Start an episode."""
    env, stage, initial = w.env, w.stage, w.settings.initial
    env.interval, env.measured_s = 0, 0.0
    env.ended, env.episode_return = 0, 0.0
    stage.head, stage.tail, stage.oldest, stage.running = 0, 0, 0, 0
    wanted = stage.wanted
    wanted.cores, wanted.batch, wanted.replicas = initial.cores, initial.batch, initial.replicas
    wanted.variant = 0
    reset_network(w, seed)
    reset_arrivals(w, seed)
    reset_worker(w, seed)
    read_meters(w)
    remember_meters(stage.meters, stage.before)


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


@compiled
def step(w: World, wanted: Records[StageAllocation]) -> None:
    """Put an allocation in force and serve until the interval ends."""
    resize(w, wanted[0].cores, wanted[0].replicas)
    begin_interval(w, wanted)
    simulate(w, w.stage.wanted.batch, w.env.interval * w.settings.interval_s)
    read_meters(w)
    measure(w)


@compiled
def drain(w: World) -> None:
    """End the episode: serve what is left under the allocation in force.

    No request arrives any more. Requests that still wait when the last deadline has passed
    are dropped, so that afterwards nothing is queued or running.
    """
    env, interval_s = w.env, w.settings.interval_s
    env.arrival_s = math.inf
    last_s = last_deadline_s(w)
    while any_pending(w) and env.now_s < last_s:
        simulate(w, w.stage.wanted.batch, min(last_s, env.now_s + interval_s))
    abandon(w)
    while w.stage.running:
        wait(w, env.now_s + interval_s)


@compiled
def planned_end_s(w: World, replica: ReplicaState) -> float:
    """Return when the latency model expects a running batch to end."""
    if math.isnan(replica.planned_end_s):
        return replica.started_s + _planned_s(w, replica.batch_size, w.stage.wanted.cores)
    return replica.planned_end_s


@compiled
def _planned_s(w: World, count: int, cores: int) -> float:
    settings = w.settings
    return w.numbers[settings.planned_at + (count - 1) * settings.limits.cores + cores - 1]
