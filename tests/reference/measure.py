"""From counters and books to an interval's metrics, under the schema's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reference.ledger import Counts, Entry, Outcome
from reference.summation import total

from sponge_env.interfaces import Completion, WorkerStatus
from sponge_env.latency import quantile


def slo_metrics(before: Counts, after: Counts) -> dict[str, Any]:
    """Return what became of requests between two looks at the ledger."""
    ended = after.ended - before.ended
    violations = after.violations - before.violations
    return {
        "offered": after.offered - before.offered,
        "on_time": after.on_time - before.on_time,
        "late": after.late - before.late,
        "dropped": after.dropped - before.dropped,
        "failed": after.failed - before.failed,
        "violations": violations,
        "avoidable_violations": after.avoidable - before.avoidable,
        "hopeless": after.hopeless - before.hopeless,
        "violation_rate": violations / ended if ended else 0.0,
        "queued": after.queued,
        "running": after.running,
    }


def latency_metrics(ended: Sequence[Entry], completions: Sequence[Completion]) -> dict[str, Any]:
    """Return sizes and times of batches and end-to-end latencies of what ended in the interval."""
    answered = (Outcome.ON_TIME, Outcome.LATE)
    latencies = sorted(
        entry.finished_s - entry.request.sent_s for entry in ended if entry.outcome in answered
    )
    metrics = latency_summary(latencies)
    if completions:
        metrics["batch_mean"] = sum(c.batch.size for c in completions) / len(completions)
    service_s = [c.finished_s - c.started_s for c in completions if c.ok]
    if service_s:
        metrics["service_mean_s"] = total(service_s) / len(service_s)
    return metrics


def latency_summary(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return mean and quantiles of latencies, which ascend; nothing where there are none."""
    if not latencies_s:
        return {}
    return {
        "latency_mean_s": total(latencies_s) / len(latencies_s),
        "latency_p50_s": quantile(latencies_s, 0.5),
        "latency_p99_s": quantile(latencies_s, 0.99),
    }


def resource_metrics(
    before: WorkerStatus, after: WorkerStatus, elapsed_s: float, core_unit: float
) -> dict[str, Any]:
    """Return what was held and used between two looks at the worker, ``elapsed_s`` apart."""
    core_seconds = after.core_seconds - before.core_seconds
    used = after.used_core_seconds - before.used_core_seconds
    stopped = (after.throttled_s - before.throttled_s) * after.effective_cores
    return {
        "cores": core_seconds / elapsed_s,
        "core_seconds": core_seconds,
        "physical_core_seconds": core_seconds * core_unit,
        "effective_cores": after.effective_cores,
        "replicas_ready": after.ready,
        "utilisation": min(1.0, used / core_seconds) if core_seconds > 0 else 0.0,
        "throttled_share": stopped / core_seconds if core_seconds > 0 else 0.0,
        "cpu_s": after.cpu_s - before.cpu_s,
        "actuation_s": after.actuation_s,
        "restarts": after.restarts - before.restarts,
    }
