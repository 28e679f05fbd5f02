"""The observation of a reference view, field by field in NumPy."""

import numpy as np

from sponge_env.core.fields import (
    BANDWIDTH_SCALE_BYTES_PER_S,
    BUDGET_QUANTILES,
    CLIP,
    DUE_BINS,
    STARTING_SLOTS,
    TREND_INTERVALS,
)


def encode(view, last, spec):
    """Return the joint observation in [-CLIP, CLIP]; ``last`` are the last interval's metrics."""
    own, limits = view.stage, spec.first
    latency_s = limits.latencies[0].table_s(limits.batch_max, limits.cores_max)[:, -1]
    rate_scale = float(np.max(np.arange(1, limits.batch_max + 1) / latency_s))
    budgets = (own.queued_deadlines_s - view.now_s) / spec.slo_s
    bins = np.clip(np.floor(budgets * DUE_BINS), 0, DUE_BINS - 1).astype(int)
    due = np.bincount(bins, minlength=DUE_BINS)
    quantiles = np.quantile(budgets, BUDGET_QUANTILES) if len(budgets) else 1.0
    left_s = max((r.expected_end_s - view.now_s for r in own.running), default=0.0)
    ended = [0.0] * 5
    if last is not None:
        counts = [last[name] for name in ("on_time", "late", "dropped")]
        ended = [each / (rate_scale * spec.interval_s) for each in counts]
        ended += [last["utilisation"], last["throttled_share"]]
    starting, first_s = np.zeros(STARTING_SLOTS), own.starting_s[:STARTING_SLOTS]
    starting[: len(first_s)] = first_s
    parts = (
        [len(budgets) / (rate_scale * spec.slo_s)],
        np.broadcast_to(quantiles, len(BUDGET_QUANTILES)), due / (rate_scale * spec.slo_s),
        _rates(own.arrivals, spec.interval_s) / rate_scale, _network(view, spec.slo_s),
        [own.allocation.cores / limits.cores_max, own.allocation.batch / limits.batch_max],
        [own.allocation.replicas / limits.replicas_max, own.replicas_ready / limits.replicas_max],
        [sum(r.size for r in own.running) / limits.batch_max, max(0.0, left_s) / spec.slo_s], ended,
        [len(own.starting_s) / limits.replicas_max], starting / (limits.cold_start_s or 1.0),
    )  # fmt: skip
    return np.clip(np.nan_to_num(np.concatenate(parts)), -CLIP, CLIP).astype(np.float32)


def _rates(arrivals, interval_s):
    """Mean rates over the last interval and the last 1, 5 and 30 s, in requests per second."""
    if not len(arrivals):
        return np.zeros(4)
    spans = [1, *(max(1, round(span_s / interval_s)) for span_s in (1, 5, 30))]
    return np.array([np.mean(arrivals[-span:]) for span in spans]) / interval_s


def _network(view, slo_s):
    delays_s, bandwidths = view.mean_delays_s, view.bandwidths_bytes_per_s
    if not len(delays_s):
        return [0.0] * 5
    return [
        delays_s[-1] / slo_s, np.max(view.delays_s, initial=0.0) / slo_s, _trend(delays_s) / slo_s,
        bandwidths[-1] / BANDWIDTH_SCALE_BYTES_PER_S,
        _trend(bandwidths) / BANDWIDTH_SCALE_BYTES_PER_S,
    ]  # fmt: skip


def _trend(history):
    """Last value against the mean of the few before it; 0 where there are none."""
    before = history[-1 - TREND_INTERVALS : -1]
    return float(history[-1] - np.mean(before)) if len(before) else 0.0
