"""The observation of a view, field by field in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.fields import (
    BANDWIDTH_SCALE_BYTES_PER_S,
    BUDGET_QUANTILES,
    CLIP,
    DUE_BINS,
    JOINT_OBS_DIM,
    STARTING_SLOTS,
    TREND_INTERVALS,
)
from sponge_env.interfaces import FloatArray, SystemSpec, SystemView


def encode(view: SystemView, spec: SystemSpec, length: int = JOINT_OBS_DIM) -> NDArray[np.float32]:
    """Return the first ``length`` entries, float32 in [-CLIP, CLIP], that a view has."""
    latency_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)[:, -1]
    rate_scale = float(np.max(np.arange(1, spec.first.batch_max + 1) / latency_s))
    count_scale = rate_scale * spec.slo_s
    budgets = (view.first.queued_deadlines_s - view.now_s) / spec.slo_s
    values = [
        len(budgets) / count_scale,
        *_budget_quantiles(budgets),
        *_due_counts(budgets) / count_scale,
        *_arrival_rates(view.first.arrivals, spec.interval_s) / rate_scale,
        *_network(view, spec.slo_s),
        *_allocation(view, spec),
        *_last_interval(view, rate_scale * spec.interval_s),
        *_starting(view, spec),
    ]
    observation = np.array(values[:length], dtype=np.float32)
    observation[np.isnan(observation)] = 0.0
    return np.minimum(np.maximum(observation, np.float32(-CLIP)), np.float32(CLIP))


def _budget_quantiles(budgets: FloatArray) -> FloatArray:
    """Quantiles of ascending budgets; a full SLO when nothing waits."""
    if not len(budgets):
        return np.ones(len(BUDGET_QUANTILES))
    position = np.array(BUDGET_QUANTILES) * (len(budgets) - 1)
    below = position.astype(np.int64)
    above = np.minimum(below + 1, len(budgets) - 1)
    return budgets[below] + (position - below) * (budgets[above] - budgets[below])


def _due_counts(budgets: FloatArray) -> FloatArray:
    """Count the requests due in each eighth of the SLO; overdue ones in the first."""
    bins = np.minimum(np.maximum(budgets * DUE_BINS, 0.0), DUE_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=DUE_BINS).astype(np.float64)


def _arrival_rates(arrivals: FloatArray, interval_s: float) -> FloatArray:
    """Mean rates over the last interval and the last 1, 5 and 30 s, in requests per second."""
    if not len(arrivals):
        return np.zeros(4)
    spans = [1, *(max(1, round(span_s / interval_s)) for span_s in (1, 5, 30))]
    means = [float(np.add.reduce(part)) / len(part) for part in (arrivals[-s:] for s in spans)]
    return np.array(means) / interval_s


def _network(view: SystemView, slo_s: float) -> list[float]:
    if not len(view.mean_delays_s):
        return [0.0] * 5
    delays, bandwidths = view.mean_delays_s, view.bandwidths_bytes_per_s
    return [
        delays[-1] / slo_s,
        view.delays_s.max() / slo_s if len(view.delays_s) else 0.0,
        _trend(delays) / slo_s,
        bandwidths[-1] / BANDWIDTH_SCALE_BYTES_PER_S,
        _trend(bandwidths) / BANDWIDTH_SCALE_BYTES_PER_S,
    ]


def _trend(history: FloatArray) -> float:
    """Last value against the mean of the few before it; 0 where there are none."""
    before = history[-1 - TREND_INTERVALS : -1]
    return float(history[-1] - np.add.reduce(before) / len(before)) if len(before) else 0.0


def _allocation(view: SystemView, spec: SystemSpec) -> list[float]:
    left_s = max((r.expected_end_s - view.now_s for r in view.first.running), default=0.0)
    return [
        view.allocation.cores / spec.first.cores_max,
        view.allocation.batch / spec.first.batch_max,
        view.allocation.replicas / spec.first.replicas_max,
        view.first.replicas_ready / spec.first.replicas_max,
        sum(r.size for r in view.first.running) / spec.first.batch_max,
        max(0.0, left_s) / spec.slo_s,
    ]


def _last_interval(view: SystemView, count_scale: float) -> list[float]:
    last = view.last
    if last is None:
        return [0.0] * 5
    return [
        last.on_time / count_scale,
        last.late / count_scale,
        last.dropped / count_scale,
        last.utilisation,
        last.throttled_share,
    ]


def _starting(view: SystemView, spec: SystemSpec) -> list[float]:
    """How many replicas start, and when each will serve, in cold starts; 0 where there is none."""
    slots = np.zeros(STARTING_SLOTS)
    first_s = view.first.starting_s[:STARTING_SLOTS]
    slots[: len(first_s)] = first_s
    scale_s = spec.first.cold_start_s or 1.0
    return [len(view.first.starting_s) / spec.first.replicas_max, *(slots / scale_s)]
