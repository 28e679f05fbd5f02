"""From counters and sums to an interval's metrics, under the schema's names."""

import math
from typing import Any

from sponge_env.core.compiled import compiled, inlined
from sponge_env.core.pipeline import at, staged
from sponge_env.core.records import PAST, RECENT, StageState, World

ROUNDING_S = 1e-9  # Delay and base delay that differ by less do so by rounding: no transfer


@inlined
def clear_sums(w: World) -> None:
    """Begin an interval's sums at 0; the metrics are blank already."""
    env = w.env
    env.delay_sum_s = env.delay_max_s = env.payload_sum_bytes = 0.0
    env.latency_sum_s = env.accuracy_sum = env.accuracy_on_time = 0.0
    for k in range(len(w.stages)):
        stage = w.stages[k]
        stage.joined = stage.refused = stage.taken = stage.dropped = stage.switches = 0
        stage.batches = stage.batched = stage.finished = stage.answered = 0
        stage.service_sum_s = 0.0
        stage.waited_s = -(stage.tail - stage.head) * env.now_s
        for variant in range(w.models[k].variants):
            stage.answered_by[variant] = 0


@compiled
def measure(w: World) -> None:
    """Write the metrics of the interval that is over; the worker's meters are read."""
    metrics, wanted = w.metrics, w.stage.wanted
    _remember_arrivals(w)
    _measure_requests(w)
    _measure_stages(w)
    metrics.time_s = w.env.interval * w.settings.interval_s
    metrics.requested_cores, metrics.batch = wanted.cores, wanted.batch
    metrics.replicas, metrics.feasible = wanted.replicas, 1
    metrics.reward = _reward(w)


@inlined
def _remember_arrivals(w: World) -> None:
    env, offered = w.env, w.metrics.offered
    mean_s = bandwidth = math.nan
    if env.interval > 1:
        mean_s = env.mean_delays_s[(env.interval - 2) & (RECENT - 1)]
        bandwidth = env.bandwidths[(env.interval - 2) & (RECENT - 1)]
    if offered:
        mean_s, w.metrics.delay_max_s = env.delay_sum_s / offered, env.delay_max_s
        transfer_s = env.delay_sum_s - w.settings.network.base_delay_s * offered
        if transfer_s > ROUNDING_S * offered:
            bandwidth = env.payload_sum_bytes / transfer_s
    for k in range(len(w.stages)):
        stage, arrived = w.stages[k], w.stages[k].arrived
        before = arrived[(env.interval - 2) & (PAST - 1)]
        arrived[(env.interval - 1) & (PAST - 1)] = before + stage.joined + stage.refused
    env.mean_delays_s[(env.interval - 1) & (RECENT - 1)] = w.metrics.delay_mean_s = mean_s
    env.bandwidths[(env.interval - 1) & (RECENT - 1)] = bandwidth
    w.metrics.bandwidth_bytes_per_s = bandwidth


@inlined
def _measure_requests(w: World) -> None:
    env, metrics = w.env, w.metrics
    violations = metrics.late + metrics.dropped + metrics.failed
    ended = metrics.on_time + violations
    metrics.violations = violations
    metrics.violation_rate = violations / ended if ended else 0.0
    metrics.queued = w.stage.tail - w.stage.head
    metrics.running = w.stage.running
    if staged(w):
        metrics.queued, metrics.running = env.opened - env.opened_running, env.opened_running
    answered = metrics.on_time + metrics.late
    if answered:
        metrics.latency_mean_s = env.latency_sum_s / answered
        metrics.accuracy = env.accuracy_sum / answered
    if ended:
        metrics.effective_accuracy = env.accuracy_on_time / ended


@inlined
def _measure_stages(w: World) -> None:
    metrics, batches, batched, finished, service_sum_s = w.metrics, 0, 0, 0, 0.0
    used_core_s, stopped_core_s = 0.0, 0.0
    for k in range(len(w.stages)):
        stage = w.stages[k]
        _measure_queue(stage, w.env.now_s)
        batches += stage.batches
        batched += stage.batched
        finished += stage.finished
        service_sum_s += stage.service_sum_s
        used, stopped = _measure_resources(at(w, k))
        used_core_s += used
        stopped_core_s += stopped
    if batches:
        metrics.batch_mean = batched / batches
    if finished:
        metrics.service_mean_s = service_sum_s / finished
    metrics.cores = metrics.core_seconds / (w.env.now_s - w.env.measured_s)
    if metrics.core_seconds > 0:
        metrics.utilisation = min(1.0, used_core_s / metrics.core_seconds)
        metrics.throttled_share = stopped_core_s / metrics.core_seconds
    w.env.measured_s = w.env.now_s


@inlined
def _measure_queue(stage: StageState, now_s: float) -> None:
    m: Any = stage.measured
    m.queued, m.running = stage.tail - stage.head, stage.running
    m.joined, m.answered, m.dropped = stage.joined, stage.answered, stage.dropped
    m.taken, m.batches, m.switches = stage.taken, stage.batches, stage.switches
    m.waited_s = stage.waited_s + m.queued * now_s
    m.waiting_mean_s = m.batch_mean = m.service_mean_s = math.nan
    if stage.taken:
        m.waiting_mean_s = m.waited_s / stage.taken
    if stage.batches:
        m.batch_mean = stage.batched / stage.batches
    if stage.finished:
        m.service_mean_s = stage.service_sum_s / stage.finished
    m.requested_cores, m.batch = stage.wanted.cores, stage.wanted.batch
    m.replicas, m.variant = stage.wanted.replicas, stage.wanted.variant


@inlined
def _measure_resources(w: World) -> tuple[float, float]:
    """Measure a stage's cores, add them to the whole; return those in use and those stopped."""
    metrics, now, before = w.metrics, w.stage.meters, w.stage.before
    m: Any = w.stage.measured
    core_seconds = now.core_seconds - before.core_seconds
    used_core_s = now.used_core_seconds - before.used_core_seconds
    stopped_core_s = (now.throttled_s - before.throttled_s) * now.effective_cores
    m.core_seconds = core_seconds
    m.cores = core_seconds / (w.env.now_s - w.env.measured_s)
    m.replicas_ready, m.utilisation, m.throttled_share = now.ready, 0.0, 0.0
    if core_seconds > 0:
        m.utilisation = min(1.0, used_core_s / core_seconds)
        m.throttled_share = stopped_core_s / core_seconds
    metrics.core_seconds += core_seconds
    metrics.physical_core_seconds += core_seconds * w.model.core_unit
    metrics.effective_cores += now.effective_cores
    metrics.replicas_ready += now.ready
    metrics.cpu_s += now.cpu_s - before.cpu_s
    metrics.restarts += now.restarts - before.restarts
    metrics.actuation_s += now.actuation_s
    w.stage.before = now
    return used_core_s, stopped_core_s


@inlined
def _reward(w: World) -> float:
    """Charge the cores held and the requests that missed their deadline; credit the accuracy.

    ``-(cores / total_cores) - violation_weight * violations / max(1, ended)
    + accuracy_weight * effective_accuracy``

    The last is 0 where no request ended; see docs/environment.md.
    """
    metrics, settings, gained = w.metrics, w.settings, 0.0
    ended = metrics.on_time + metrics.violations
    if ended:
        gained = settings.reward.accuracy_weight * metrics.effective_accuracy
    held: float = metrics.cores / settings.total_cores
    missed: float = metrics.violations / max(1, ended)
    return -held - settings.reward.violation_weight * missed + gained
