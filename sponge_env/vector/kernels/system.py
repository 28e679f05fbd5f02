"""One interval under an allocation, and its measures. Repeats :mod:`sponge_env.system`."""

from __future__ import annotations

import math

from sponge_env.system import ROUNDING_S
from sponge_env.vector.compiler import compiled
from sponge_env.vector.kernels.arrivals import reset_arrivals
from sponge_env.vector.kernels.network import reset_network
from sponge_env.vector.kernels.queue import last_deadline_s
from sponge_env.vector.kernels.service import advance
from sponge_env.vector.kernels.serving import abandon, any_pending, drive, wait
from sponge_env.vector.kernels.worker import held_core_s, reset_worker, resize
from sponge_env.vector.layout import PAST, RECENT, Replica, World


@compiled
def reset(w: World, seed: int) -> None:
    """Start an episode."""
    env, settings = w.env, w.settings
    env.interval, env.measured_s = 0, 0.0
    env.head, env.tail, env.oldest, env.running, env.ended = 0, 0, 0, 0, 0
    env.requested_cores, env.requested_batch = settings.cores, settings.batch
    env.requested_replicas = settings.replicas
    env.core_seconds = env.used_core_s = env.throttled_s = 0.0
    env.episode_return = 0.0
    reset_network(w, seed)
    reset_arrivals(w, seed)
    reset_worker(w, seed)


@compiled
def step(w: World, cores: int, batch: int, replicas: int) -> None:
    """Put an allocation in force and serve until the interval ends."""
    env = w.env
    _clear_sums(w)
    _resize(w, cores, batch, replicas)
    env.interval += 1
    until_s = env.interval * w.settings.interval_s
    drive(w, batch, until_s)
    _remember_arrivals(w)
    _measure_requests(w)
    _measure_resources(w)
    _measure_rest(w, until_s)
    w.metrics.reward = _reward(w)
    env.episode_return += w.metrics.reward


@compiled
def drain(w: World) -> None:
    """Serve what is left under the allocation in force; no request arrives any more."""
    env, interval_s = w.env, w.settings.interval_s
    env.arrival_s = math.inf
    last_s = last_deadline_s(w)
    while any_pending(env) and env.now_s < last_s:
        drive(w, env.requested_batch, min(last_s, env.now_s + interval_s))
    abandon(w)
    while env.running:
        wait(w, env.now_s + interval_s)


@compiled
def _clear_sums(w: World) -> None:
    env, metrics = w.env, w.metrics
    env.delay_sum_s = env.delay_max_s = env.payload_sum_bytes = 0.0
    env.latency_sum_s = env.service_sum_s = 0.0
    env.batches = env.answered = 0
    metrics.offered = metrics.on_time = metrics.late = metrics.dropped = 0
    metrics.hopeless = metrics.avoidable_violations = metrics.overflowed = 0


@compiled
def _resize(w: World, cores: int, batch: int, replicas: int) -> None:
    env = w.env
    resize(w, cores, replicas)
    for k in range(env.replicas):
        replica = w.replicas[k]
        if replica.size:
            left_s = max(0.0, planned_end_s(w, replica) - env.now_s)
            before_s = _planned_s(w, replica.size, env.requested_cores)
            after_s = _planned_s(w, replica.size, cores)
            replica.planned_end_s = env.now_s + left_s * after_s / before_s
    env.requested_cores, env.requested_batch = cores, batch
    env.requested_replicas = replicas


@compiled
def planned_end_s(w: World, replica: Replica) -> float:
    """Return when the latency model expects a running batch to end."""
    if math.isnan(replica.planned_end_s):
        return replica.started_s + _planned_s(w, replica.size, w.env.requested_cores)
    return replica.planned_end_s


@compiled
def _planned_s(w: World, size: int, cores: int) -> float:
    settings = w.settings
    return w.numbers[settings.planned_at + (size - 1) * settings.cores_max + cores - 1]


@compiled
def _remember_arrivals(w: World) -> None:
    """Add the interval's arrivals to the history."""
    env, offered = w.env, w.metrics.offered
    mean_s = bandwidth = math.nan
    if env.interval > 1:
        mean_s = env.mean_delays_s[(env.interval - 2) & (RECENT - 1)]
        bandwidth = env.bandwidths[(env.interval - 2) & (RECENT - 1)]
    if offered:
        mean_s = env.delay_sum_s / offered
        transfer_s = env.delay_sum_s - w.settings.base_delay_s * offered
        if transfer_s > ROUNDING_S * offered:
            bandwidth = env.payload_sum_bytes / transfer_s
    env.arrivals[(env.interval - 1) & (PAST - 1)] = offered
    env.mean_delays_s[(env.interval - 1) & (RECENT - 1)] = mean_s
    env.bandwidths[(env.interval - 1) & (RECENT - 1)] = bandwidth


@compiled
def _measure_requests(w: World) -> None:
    env, metrics = w.env, w.metrics
    violations = metrics.late + metrics.dropped
    ended = metrics.on_time + violations
    metrics.violations, metrics.failed = violations, 0
    metrics.violation_rate = violations / ended if ended else 0.0
    metrics.queued = env.tail - env.head
    metrics.running = env.running
    metrics.batch_mean = env.answered / env.batches if env.batches else math.nan
    metrics.service_mean_s = env.service_sum_s / env.batches if env.batches else math.nan
    metrics.latency_mean_s = env.latency_sum_s / env.answered if env.answered else math.nan


@compiled
def _measure_resources(w: World) -> None:
    env, metrics = w.env, w.metrics
    elapsed_s = env.now_s - env.measured_s
    used_core_s, throttled_s, ready = 0.0, 0.0, 0
    for k in range(env.replicas):
        replica = w.replicas[k]
        advance(w, replica, env.now_s)
        used_core_s += replica.used_core_s
        throttled_s += replica.throttled_s
        ready += not replica.draining and replica.ready_s <= env.now_s
    used_core_s += env.retired_core_s
    throttled_s += env.retired_throttled_s
    total_core_s = held_core_s(w)
    core_seconds = total_core_s - env.core_seconds
    metrics.core_seconds = core_seconds
    metrics.cores = core_seconds / elapsed_s
    metrics.physical_core_seconds = core_seconds * w.settings.core_unit
    metrics.effective_cores = float(env.cores)
    metrics.replicas_ready = ready
    metrics.utilisation = (
        min(1.0, (used_core_s - env.used_core_s) / core_seconds) if core_seconds > 0 else 0.0
    )
    metrics.throttled_share = (
        (throttled_s - env.throttled_s) * env.cores / core_seconds if core_seconds > 0 else 0.0
    )
    env.core_seconds, env.used_core_s, env.throttled_s = total_core_s, used_core_s, throttled_s
    env.measured_s = env.now_s


@compiled
def _measure_rest(w: World, until_s: float) -> None:
    env, metrics = w.env, w.metrics
    metrics.time_s = until_s
    metrics.requested_cores, metrics.batch = env.requested_cores, env.requested_batch
    metrics.replicas = env.requested_replicas
    metrics.delay_mean_s = env.mean_delays_s[(env.interval - 1) & (RECENT - 1)]
    metrics.delay_max_s = env.delay_max_s if metrics.offered else math.nan
    metrics.bandwidth_bytes_per_s = env.bandwidths[(env.interval - 1) & (RECENT - 1)]
    metrics.feasible = 1
    metrics.cpu_s = metrics.actuation_s = metrics.decision_s = metrics.paused_s = 0.0
    metrics.restarts = 0


@compiled
def _reward(w: World) -> float:
    metrics = w.metrics
    held: float = metrics.cores / w.settings.cores_max
    missed: float = metrics.violations / max(1, metrics.on_time + metrics.violations)
    return -held - w.settings.violation_weight * missed
