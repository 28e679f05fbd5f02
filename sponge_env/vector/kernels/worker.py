"""Replicas on a virtual clock. Repeats :mod:`sponge_env.workers.simulated`."""

from __future__ import annotations

import math

from sponge_env.vector.compiler import compiled
from sponge_env.vector.kernels.bucket import share
from sponge_env.vector.kernels.rng import NOISE, seed_stream, uniform
from sponge_env.vector.kernels.service import (
    advance,
    load_service,
    new_service,
    resize_service,
    start_service,
)
from sponge_env.vector.layout import Env, Replica, World


@compiled
def reset_worker(w: World, seed: int) -> None:
    """Start at time 0 with the initial replicas warm."""
    env, settings = w.env, w.settings
    seed_stream(env.noise_rng, seed, NOISE)
    env.now_s = 0.0
    env.cores = settings.cores
    env.replicas, env.next_replica, env.pending = 0, 0, 0
    env.retired_core_s = env.retired_throttled_s = 0.0
    env.held_cores = env.held_since_s = env.held_core_s = 0.0
    for _ in range(settings.replicas):
        _add_replica(w)
    update_held(w)


@compiled
def is_idle(env: Env, replica: Replica) -> bool:
    """Return whether a replica could start a batch now."""
    return replica.size == 0 and replica.ready_s <= env.now_s


@compiled
def start_batch(w: World, replica: Replica, size: int) -> None:
    """Give the ``size`` earliest requests of the queue to an idle replica."""
    env = w.env
    replica.size, replica.first = size, env.head
    replica.started_s, replica.planned_end_s = env.now_s, math.nan
    start_service(w, replica, env.now_s, _noise(w))


@compiled
def next_event_s(w: World) -> float:
    """Return when a batch ends, a replica becomes ready or a resize takes effect."""
    env = w.env
    event_s = w.pending[0].time_s if env.pending else math.inf
    for k in range(env.replicas):
        replica = w.replicas[k]
        if replica.size:
            event_s = min(event_s, replica.finish_s)
        elif replica.ready_s > env.now_s:
            event_s = min(event_s, replica.ready_s)
    return event_s


@compiled
def share_cpu(w: World) -> None:
    """Let each replica that serves or loads have an equal part of the CPU, if it needs it."""
    env, settings = w.env, w.settings
    if not settings.quota or settings.replicas_max == 1:
        return
    busy = 0
    for k in range(env.replicas):
        busy += not is_idle(env, w.replicas[k])
    whole = float(env.cores)
    part = min(whole, settings.cpu_cores / max(1, busy))
    for k in range(env.replicas):
        replica = w.replicas[k]
        share(settings, replica, env.now_s, whole if is_idle(env, replica) else part)
        if replica.ready_s > env.now_s:
            replica.ready_s = replica.finish_s


@compiled
def first_ended(w: World) -> int:
    """Return the row of the replica whose batch ended first, by now; -1 if none has."""
    first = -1
    for k in range(w.env.replicas):
        replica = w.replicas[k]
        if _has_ended(w.env, replica) and (
            first < 0 or replica.finish_s < w.replicas[first].finish_s
        ):
            first = k
    return first


@compiled
def _has_ended(env: Env, replica: Replica) -> bool:
    return replica.size > 0 and replica.finish_s <= env.now_s


@compiled
def release(w: World, row: int) -> None:
    """Take the batch from a replica; a draining one goes."""
    replica = w.replicas[row]
    advance(w, replica, replica.finish_s)
    replica.size = 0
    if replica.draining:
        _retire(w, row)


@compiled
def resize(w: World, cores: int, replicas: int) -> None:
    """Put an allocation in force, after the actuation delay if there is one."""
    env, delay_s = w.env, w.settings.actuation_delay_s
    if delay_s > 0:
        row = w.pending[env.pending]
        row.time_s, row.cores, row.replicas = env.now_s + delay_s, cores, replicas
        env.pending += 1
    else:
        _apply(w, cores, replicas)


@compiled
def apply_pending(w: World) -> None:
    """Put in force what is due."""
    env = w.env
    while env.pending and w.pending[0].time_s <= env.now_s:
        _apply(w, w.pending[0].cores, w.pending[0].replicas)
        env.pending -= 1
        for k in range(env.pending):
            w.pending[k] = w.pending[k + 1]


@compiled
def update_held(w: World) -> None:
    """Charge the cores held so far and note what is held from now on."""
    env = w.env
    env.held_core_s = held_core_s(w)
    env.held_since_s = env.now_s
    env.held_cores = float(env.cores * env.replicas)


@compiled
def held_core_s(w: World) -> float:
    """Return the core-seconds held up to now."""
    env = w.env
    return env.held_core_s + env.held_cores * max(0.0, env.now_s - env.held_since_s)


@compiled
def _apply(w: World, cores: int, replicas: int) -> None:
    env = w.env
    if cores != env.cores:
        env.cores = cores
        for k in range(env.replicas):
            replica = w.replicas[k]
            resize_service(w, replica, env.now_s, cores)
            if replica.ready_s > env.now_s:
                replica.ready_s = replica.finish_s
    staying = 0
    for k in range(env.replicas):
        staying += not w.replicas[k].draining
    old = env.replicas
    for _ in range(min(replicas - staying, len(w.replicas) - old)):
        _add_replica(w)
    _load(w, old)
    for _ in range(staying - replicas):
        _drain(w, _next_to_go(w))
    update_held(w)


@compiled
def _next_to_go(w: World) -> int:
    """Cold replicas go first, then idle ones, then busy ones; the youngest first."""
    chosen, chosen_rank = -1, 3
    for k in range(w.env.replicas - 1, -1, -1):
        replica = w.replicas[k]
        if not replica.draining:
            ready = replica.ready_s <= w.env.now_s
            rank = (1 + (replica.size > 0)) if ready else 0
            if rank < chosen_rank:
                chosen, chosen_rank = k, rank
    return chosen


@compiled
def _drain(w: World, row: int) -> None:
    if w.replicas[row].size == 0:
        _retire(w, row)
    else:
        w.replicas[row].draining = True


@compiled
def _add_replica(w: World) -> None:
    """Add a replica that is ready."""
    env = w.env
    replica = w.replicas[env.replicas]
    replica.id, replica.ready_s = env.next_replica, env.now_s
    replica.size, replica.draining = 0, False
    new_service(w, replica, env.cores)
    env.next_replica += 1
    env.replicas += 1


@compiled
def _load(w: World, first: int) -> None:
    """Let the new replicas, from the row ``first`` on, load their model."""
    env = w.env
    crowd = env.replicas - first
    for k in range(first):
        crowd += w.replicas[k].ready_s > env.now_s
    for k in range(first, env.replicas):
        replica = w.replicas[k]
        load_service(w, replica, env.now_s, crowd)
        replica.ready_s = replica.finish_s


@compiled
def _retire(w: World, row: int) -> None:
    env, replica = w.env, w.replicas[row]
    advance(w, replica, env.now_s)
    env.retired_core_s += replica.used_core_s
    env.retired_throttled_s += replica.throttled_s
    env.replicas -= 1
    for k in range(row, env.replicas):
        w.replicas[k] = w.replicas[k + 1]


@compiled
def _noise(w: World) -> float:
    """Draw the work of a batch relative to the usual."""
    settings = w.settings
    last = settings.noise_points - 1
    position = uniform(w.env.noise_rng) * last
    below = min(int(position), last)
    above = min(below + 1, last)
    low = w.numbers[settings.noise_at + below]
    high = w.numbers[settings.noise_at + above]
    return max(0.05, 1.0 + settings.noise * (low + (position - below) * (high - low)))
