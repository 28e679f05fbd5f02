"""The metrics of a server in Prometheus' format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    models = {each.served.name: each for each in (m, *m.others)}
    yield from _counted_families(m, models)
    info = {"version": __version__, "model": ", ".join(models)}
    yield core.InfoMetricFamily("sponge_server", "What serves which model.", value=info)
    slo = core.GaugeMetricFamily(
        "sponge_slo_seconds", "SLO of calls that state none.", labels=["model"]
    )
    for name, each in models.items():
        slo.add_metric([name], each.served.default_slo_s)
    yield slo
    if m.snapshot is not None:
        stages = [stage for each in models.values() for stage in each.served.stages]
        yield from _snapshot_families(stages, m.snapshot)
    if pods := m.resizes():
        yield from _pod_families(pods)


def _counted_families(
    m: ServerMetrics, models: Mapping[str, ServerMetrics]
) -> Iterator[core.Metric]:
    outcomes = {name: each.outcomes for name, each in models.items()}
    yield _counters("requests", "Calls that have ended, by outcome.", "outcome", outcomes)
    latency = "End-to-end latency of answers, from when the client sent the request."
    yield _histograms("latency_seconds", latency, {n: each.latency for n, each in models.items()})
    share = "Latency of answers relative to the SLO of each call; 1 is the deadline."
    yield _histograms("slo_used_ratio", share, {n: each.slo_used for n, each in models.items()})
    answers = {n: dict.fromkeys(m.served.variants, 0) | m.answers for n, m in models.items()}
    yield _counters("answers", "Answers by the model variant.", "variant", answers)
    yield _batch_sizes(models.values())
    rejected = "Requests that were invalid, not allowed or too many, by HTTP status."
    rejections = core.CounterMetricFamily("sponge_rejected_requests", rejected, labels=["status"])
    for status, count in sorted(m.rejections.items()):
        rejections.add_metric([str(status)], count)
    yield rejections
    clamped = "Requests with a time of the client's clock that is wrong, or seems to be."
    yield core.CounterMetricFamily("sponge_clamped_clocks", clamped, m.clamped_clocks)
    decisions = "Wall time of the controller's decisions."
    buckets, total = _buckets(m.decisions), m.decisions.total
    yield core.HistogramMetricFamily("sponge_decision_seconds", decisions, buckets, total)
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


def _batch_sizes(models: Iterable[ServerMetrics]) -> core.Metric:
    text = "Size of the batches that ended with answers."
    family = core.HistogramMetricFamily("sponge_batch_size", text, labels=["stage"])
    for m in models:
        largest = m.served.batch_max
        edges = sorted({largest, *(2**power for power in range(largest.bit_length()))})
        for stage, batches in zip(m.served.stages, m.batches(), strict=False):
            histogram = Histogram(edges)
            for each in batches:
                histogram.add(each.size, each.ended)
            family.add_metric([stage], _buckets(histogram), histogram.total)
    return family


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


def _counters(
    name: str, text: str, label: str, by_model: Mapping[str, Mapping[str, int]]
) -> core.Metric:
    family = core.CounterMetricFamily(f"sponge_{name}", text, labels=["model", label])
    for model, values in by_model.items():
        for value, count in values.items():
            family.add_metric([model, value], count)
    return family


def _histograms(name: str, text: str, by_model: Mapping[str, Histogram]) -> core.Metric:
    family = core.HistogramMetricFamily(f"sponge_{name}", text, labels=["model"])
    for model, histogram in by_model.items():
        family.add_metric([model], _buckets(histogram), histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    upper = [*(f"{edge:g}" for edge in histogram.edges), "+Inf"]
    return list(zip(upper, accumulate(histogram.counts), strict=True))
