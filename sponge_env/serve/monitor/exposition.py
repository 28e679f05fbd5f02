"""The metrics of a server in Prometheus' format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from types import SimpleNamespace
from typing import Any

import prometheus_client.openmetrics.exposition as openmetrics
from prometheus_client import ProcessCollector, core
from prometheus_client.core import Exemplar
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sponge_env import __version__
from sponge_env.k8s.launcher import Resizes
from sponge_env.serve.interface import Snapshot
from sponge_env.serve.monitor.metrics import Histogram, ServerMetrics

TYPES = CONTENT_TYPE_PLAIN_0_0_4, openmetrics.CONTENT_TYPE_LATEST
_Counter, _Gauge = core.CounterMetricFamily, core.GaugeMetricFamily
_Histogram = core.HistogramMetricFamily


def exposition(metrics: ServerMetrics, open_metrics: bool = False) -> bytes:
    """Return all metrics of a server as text; that of OpenMetrics has exemplars."""
    process = ProcessCollector(registry=None)
    collector: Any = SimpleNamespace(collect=lambda: chain(_families(metrics), process.collect()))
    with metrics.lock:
        return (openmetrics.generate_latest if open_metrics else generate_latest)(collector)


def _families(m: ServerMetrics) -> Iterator[core.Metric]:
    models = {each.served.name: each for each in (m, *m.others)}
    yield from _counted(m, models)
    info = {"version": __version__, "model": ", ".join(models)}
    yield core.InfoMetricFamily("sponge_server", "What serves which model.", value=info)
    slos_s = [([name], each.served.default_slo_s) for name, each in models.items()]
    yield _labelled(_Gauge, "slo_seconds", "SLO of calls that state none.", ["model"], slos_s)
    if m.snapshot is not None:
        stages = [stage for each in models.values() for stage in each.served.stages]
        yield from _snapshot_families(stages, m.snapshot)
    if pods := m.resizes():
        yield from _pod_families(pods)


def _counted(m: ServerMetrics, models: Mapping[str, ServerMetrics]) -> Iterator[core.Metric]:
    outcomes = {name: each.outcomes for name, each in models.items()}
    answers = {n: dict.fromkeys(m.served.variants, 0) | m.answers for n, m in models.items()}
    for name, text, label, by_model in (
        ("requests", "Calls that have ended, by outcome.", "outcome", outcomes),
        ("answers", "Answers by the model variant.", "variant", answers),
    ):
        counts = [([model, key], n) for model, own in by_model.items() for key, n in own.items()]
        yield _labelled(_Counter, name, text, ["model", label], counts)
    latency = "End-to-end latency of answers, from when the client sent the request."
    share = "Latency of answers relative to the SLO of each call; 1 is the deadline."
    for name, text, of in (
        ("latency_seconds", latency, "latency"),
        ("slo_used_ratio", share, "slo_used"),
    ):
        rows = [([model], *_buckets(getattr(each, of))) for model, each in models.items()]
        yield _labelled(_Histogram, name, text, ["model"], rows)
    sizes = [row for each in models.values() for row in _batch_sizes(each)]
    text = "Size of the batches that ended with answers."
    yield _labelled(_Histogram, "batch_size", text, ["stage"], sizes)
    rejected = "Requests that were invalid, not allowed or too many, by HTTP status."
    rejections = [([str(status)], count) for status, count in sorted(m.rejections.items())]
    yield _labelled(_Counter, "rejected_requests", rejected, ["status"], rejections)
    clamped = "Requests with a time of the client's clock that is wrong, or seems to be."
    text, buckets = "Wall time of the controller's decisions.", _buckets(m.decisions)
    yield core.HistogramMetricFamily("sponge_decision_seconds", text, *buckets)
    for name, text, value in (
        ("clamped_clocks", clamped, m.clamped_clocks),
        ("nan_requests", "Requests that hold NaN or infinity.", m.not_finite),
        ("infeasible_decisions", "Decisions that met no budget on paper.", m.infeasible),
        ("restarts", "Replicas restarted after a crash.", m.restarts),
        ("core_seconds", "Core units held, over time.", m.core_s),
        ("used_core_seconds", "Core units in use, over time.", m.used_core_s),
        ("throttled_core_seconds", "Core units stopped by the limit, over time.",
         m.throttled_core_s),
        ("cpu_seconds", "CPU time of the batches.", m.cpu_s),
    ):  # fmt: skip
        yield core.CounterMetricFamily(f"sponge_{name}", text, value)


def _batch_sizes(m: ServerMetrics) -> Iterator[tuple[Any, ...]]:
    largest = m.served.batch_max
    edges = sorted({largest, *(2**power for power in range(largest.bit_length()))})
    for stage, batches in zip(m.served.stages, m.batches(), strict=False):
        histogram = Histogram(edges)
        for each in batches:
            histogram.add(each.size, each.ended)
        yield [stage], *_buckets(histogram)


def _snapshot_families(names: Sequence[str], now: Snapshot) -> Iterator[core.Metric]:
    yield core.InfoMetricFamily("sponge_agent", "Controller in charge.", value={"agent": now.agent})
    yield _gauge("ready", "1 while calls are taken.", now.ready)
    yield _gauge("uptime_seconds", "Time since the server began.", now.now_s)
    if last := now.last:
        yield _gauge("running", "Requests in batches at the last interval's end.", last.running)
        yield _gauge("cores_held", "Mean core units held in the last interval.", last.cores)
        used = last.cores * last.utilisation
        yield _gauge("cores_used", "Core units in use in the last interval.", used)
        yield _gauge("replicas_ready", "Replicas that serve.", last.replicas_ready)
    variants = [{"variant": chosen} for chosen in now.variant]
    for kind, name, text, values in (
        (_Gauge, "queue_length", "Tasks that wait.", now.queued),
        (_Gauge, "cores", "Core units of each replica.", now.cores),
        (_Gauge, "replicas", "Replicas asked for.", now.replicas),
        (_Gauge, "batch_limit", "Largest batch allowed.", now.batch),
        (core.InfoMetricFamily, "variant", "Model variant in charge.", variants),
    ):
        rows = [([stage], value) for stage, value in zip(names, values, strict=False)]
        yield _labelled(kind, name, text, ["stage"], rows)


def _pod_families(pods: Resizes) -> Iterator[core.Metric]:
    yield _gauge("pod_cores_asked", "Physical cores asked for, of all pods.", pods.asked_cores)
    granted = "Physical cores in force as Kubernetes reports them, of all pods."
    yield _gauge("pod_cores_granted", granted, pods.granted_cores)
    text = "Replicas that wait for Kubernetes, by the reason."
    pending = [([reason], count) for reason, count in pods.pending.items()]
    yield _labelled(_Gauge, "pods_pending", text, ["reason"], pending)
    text = "Time from asking for a resize until it was in force."
    yield core.SummaryMetricFamily("sponge_resize_seconds", text, pods.ended, pods.lag_s)


def _gauge(name: str, text: str, value: float) -> core.Metric:
    return core.GaugeMetricFamily(f"sponge_{name}", text, float(value))


def _labelled(
    kind: type[Any], name: str, text: str, labels: list[str], rows: Iterable[tuple[Any, ...]]
) -> Any:
    """Return a family of metrics; rows are the values of the labels, and what they have."""
    family: Any = kind(f"sponge_{name}", text, labels=labels)
    for row in rows:
        family.add_metric(*row)
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[Any, ...]], float]:
    """Return how many values there are up to each edge, with an exemplar, and the sum of all."""
    upper = [*(f"{edge:g}" for edge in histogram.edges), "+Inf"]
    counts, found = accumulate(histogram.counts), histogram.exemplars
    shown = (Exemplar({"trace_id": each[0]}, *each[1:]) if each else None for each in found)
    return list(zip(upper, counts, shown, strict=True)), histogram.total
