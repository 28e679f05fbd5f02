"""The metrics of a server in Prometheus' format."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from types import SimpleNamespace

from prometheus_client import ProcessCollector, core
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sponge_env import __version__
from sponge_env.k8s.launcher import Resizes
from sponge_env.serve.interface import Snapshot
from sponge_env.serve.monitor.metrics import Histogram, ServerMetrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def exposition(metrics: ServerMetrics) -> bytes:
    """Return all metrics of a server as text."""
    with metrics.lock:
        own = generate_latest(SimpleNamespace(collect=lambda: _families(metrics)))
    return own + generate_latest(ProcessCollector(registry=None))


def _families(m: ServerMetrics) -> Iterator[core.Metric]:
    yield from _counted_families(m)
    info = {"version": __version__, "model": m.served.name}
    yield core.InfoMetricFamily("sponge_server", "What serves which model.", value=info)
    yield _gauge("slo_seconds", "SLO of calls that state none.", m.served.default_slo_s)
    if m.snapshot is not None:
        yield from _snapshot_families(m.served.stages, m.snapshot)
    if pods := m.resizes():
        yield from _pod_families(pods)


def _counted_families(m: ServerMetrics) -> Iterator[core.Metric]:
    yield _counters("requests", "Calls that have ended, by outcome.", "outcome", m.outcomes)
    latency = "End-to-end latency of answers, from when the client sent the request."
    yield _histogram("latency_seconds", latency, m.latency)
    share = "Latency of answers relative to the SLO of each call; 1 is the deadline."
    yield _histogram("slo_used_ratio", share, m.slo_used)
    answers = dict.fromkeys(m.served.variants, 0) | m.answers
    yield _counters("answers", "Answers by the model variant.", "variant", answers)
    yield _batch_sizes(m)
    rejected = "Requests that were invalid, not allowed or too many, by HTTP status."
    rejections = {str(status): count for status, count in sorted(m.rejections.items())}
    yield _counters("rejected_requests", rejected, "status", rejections)
    clamped = "Requests with a time of the client's clock that is wrong, or seems to be."
    yield core.CounterMetricFamily("sponge_clamped_clocks", clamped, m.clamped_clocks)
    yield _histogram("decision_seconds", "Wall time of the controller's decisions.", m.decisions)
    for name, text, value in (
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


def _batch_sizes(m: ServerMetrics) -> core.Metric:
    largest = m.served.batch_max
    edges = sorted({largest, *(2**power for power in range(largest.bit_length()))})
    text = "Size of the batches that ended with answers."
    family = core.HistogramMetricFamily("sponge_batch_size", text, labels=["stage"])
    for stage, batches in zip(m.served.stages, m.batches(), strict=False):
        histogram = Histogram(edges)
        for each in batches:
            histogram.add(each.size, each.ended)
        family.add_metric([stage], _buckets(histogram), histogram.total)
    return family


def _snapshot_families(names: tuple[str, ...], now: Snapshot) -> Iterator[core.Metric]:
    yield core.InfoMetricFamily("sponge_agent", "Controller in charge.", value={"agent": now.agent})
    yield _gauge("ready", "1 while calls are taken.", now.ready)
    yield _gauge("uptime_seconds", "Time since the server began.", now.now_s)
    if last := now.last:
        yield _gauge("running", "Requests in batches at the last interval's end.", last.running)
        yield _gauge("cores_held", "Mean core units held in the last interval.", last.cores)
        used = last.cores * last.utilisation
        yield _gauge("cores_used", "Core units in use in the last interval.", used)
        yield _gauge("replicas_ready", "Replicas that serve.", last.replicas_ready)
    for name, text, values in (
        ("queue_length", "Tasks that wait.", now.queued),
        ("cores", "Core units of each replica.", now.cores),
        ("replicas", "Replicas asked for.", now.replicas),
        ("batch_limit", "Largest batch allowed.", now.batch),
    ):
        family = core.GaugeMetricFamily(f"sponge_{name}", text, labels=["stage"])
        for stage, value in zip(names, values, strict=False):
            family.add_metric([stage], value)
        yield family
    variant = core.InfoMetricFamily("sponge_variant", "Model variant in charge.", labels=["stage"])
    for stage, chosen in zip(names, now.variant, strict=False):
        variant.add_metric([stage], {"variant": chosen})
    yield variant


def _pod_families(pods: Resizes) -> Iterator[core.Metric]:
    yield _gauge("pod_cores_asked", "Physical cores asked for, of all pods.", pods.asked_cores)
    granted = "Physical cores in force as Kubernetes reports them, of all pods."
    yield _gauge("pod_cores_granted", granted, pods.granted_cores)
    text = "Replicas that wait for Kubernetes, by the reason."
    pending = core.GaugeMetricFamily("sponge_pods_pending", text, labels=["reason"])
    for reason, count in pods.pending.items():
        pending.add_metric([reason], count)
    yield pending
    text = "Time from asking for a resize until it was in force."
    yield core.SummaryMetricFamily("sponge_resize_seconds", text, pods.ended, pods.lag_s)


def _gauge(name: str, text: str, value: float) -> core.Metric:
    return core.GaugeMetricFamily(f"sponge_{name}", text, float(value))


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> core.Metric:
    family = core.CounterMetricFamily(f"sponge_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> core.Metric:
    buckets, total = _buckets(histogram), histogram.total
    return core.HistogramMetricFamily(f"sponge_{name}", text, buckets=buckets, sum_value=total)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    upper = [*(f"{edge:g}" for edge in histogram.edges), "+Inf"]
    return list(zip(upper, accumulate(histogram.counts), strict=True))
