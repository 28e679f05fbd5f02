"""The numbers of a server as Prometheus reads them, and under Triton's names as well.

Names and units of the latter are those of Triton's user guide ("Metrics"): counters without the
suffix ``_total``, durations in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from sponge_env import __version__
from sponge_env.serve.monitor.metrics import Histogram
from sponge_env.serve.wire.protocol import VERSION

if TYPE_CHECKING:
    from sponge_env.serve.interface import Snapshot
    from sponge_env.serve.monitor.metrics import ServerMetrics


def expose(metrics: ServerMetrics) -> tuple[str, bytes]:
    """Return the content type and the text of what a server has counted."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(metrics))
    ProcessCollector(registry=registry)
    text = generate_latest(registry) + _as_triton(metrics).encode()
    return CONTENT_TYPE_PLAIN_0_0_4, text


class _Families(Collector):
    """What of a server has names of our own."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return every family with its samples."""
        yield from _of_calls(self._metrics)
        yield from _of_intervals(self._metrics)
        yield from _of_now(self._metrics)


def _of_calls(m: ServerMetrics) -> Iterator[Metric]:
    yield _counters("requests", "Calls that have ended, by outcome.", "outcome", m.outcomes)
    said = "End-to-end latency of answers, from when the client sent the request."
    yield _histogram("latency_seconds", said, m.latency)
    said = "The same relative to the SLO of each call; 1 is the deadline."
    yield _histogram("slo_used_ratio", said, m.slo_used)
    said = "Answers by the model variant that gave them."
    yield _counters("answers", said, "variant", dict.fromkeys(m.served.variants, 0) | m.answers)
    yield _batches(m)
    said = "Requests that were not understood, not allowed or too many, by HTTP status."
    rejections = {str(status): count for status, count in sorted(m.rejections.items())}
    yield _counters("rejected_requests", said, "status", rejections)
    said = "Clocks of clients that cannot be right and were clamped."
    yield CounterMetricFamily("sponge_clamped_clocks", said, m.clamped_clocks)


def _batches(m: ServerMetrics) -> Metric:
    """Return the histograms of the batches' sizes, one for each stage."""
    most = m.served.batch_max
    edges = sorted({most, *(2**power for power in range(most.bit_length()))})
    said = "Size of the batches that ended with answers."
    family = HistogramMetricFamily("sponge_batch_size", said, labels=["stage"])
    for stage, ended in zip(m.served.stages, m.batches(), strict=False):
        found = Histogram(edges)
        for each in ended:
            found.add(each.size, each.ended)
        family.add_metric([stage], _buckets(found), found.total)
    return family


def _of_intervals(m: ServerMetrics) -> Iterator[Metric]:
    said = "Wall time of the controller's decisions."
    yield _histogram("decision_seconds", said, m.decisions)
    counted = {
        "infeasible_decisions": ("Decisions that met no budget on paper.", m.infeasible),
        "restarts": ("Replicas restarted after a crash.", m.restarts),
        "core_seconds": ("Core units held, over time.", m.core_s),
        "used_core_seconds": ("Core units in use, over time.", m.used_core_s),
        "throttled_core_seconds": ("Core units stopped by the limit, over time.",
                                   m.throttled_core_s),
        "cpu_seconds": ("CPU time of the batches.", m.cpu_s),
    }  # fmt: skip
    for name, (said, value) in counted.items():
        yield CounterMetricFamily(f"sponge_{name}", said, value)


def _of_now(m: ServerMetrics) -> Iterator[Metric]:
    served, now = m.served, m.snapshot
    info = {"version": __version__, "model": served.name}
    yield InfoMetricFamily("sponge_server", "What serves which model.", value=info)
    yield _gauge("slo_seconds", "SLO of who says none.", served.default_slo_s)
    if now is None:
        return
    agent = InfoMetricFamily("sponge_agent", "The controller in charge.")
    agent.add_metric([], {"agent": now.agent})
    yield agent
    yield _gauge("ready", "1 while calls are taken.", now.ready)
    yield _gauge("uptime_seconds", "Time since the server began.", now.now_s)
    if last := now.last:
        yield _gauge("running", "Requests in batches at the last interval's end.", last.running)
        yield _gauge("cores_held", "Mean core units held in the last interval.", last.cores)
        said = "Core units in use in the last interval."
        yield _gauge("cores_used", said, last.cores * last.utilisation)
        yield _gauge("replicas_ready", "Replicas that serve.", last.replicas_ready)
    yield from _of_stages(served.stages, now)


def _of_stages(names: Iterable[str], now: Snapshot) -> Iterator[Metric]:
    gauges = {
        "queue_length": ("Tasks that wait.", now.queued),
        "cores": ("Core units of each replica.", now.cores),
        "replicas": ("Replicas asked for.", now.replicas),
        "batch_limit": ("Largest batch allowed.", now.batch),
    }
    for name, (said, values) in gauges.items():
        family = GaugeMetricFamily(f"sponge_{name}", said, labels=["stage"])
        for stage, value in zip(names, values, strict=False):
            family.add_metric([stage], value)
        yield family
    chosen = InfoMetricFamily("sponge_variant", "Model variant in charge.", labels=["stage"])
    for stage, variant in zip(names, now.variant, strict=False):
        chosen.add_metric([stage], {"variant": variant})
    yield chosen


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sponge_{name}", said, float(value))


def _counters(name: str, said: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"sponge_{name}", said, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, said: str, found: Histogram) -> Metric:
    return HistogramMetricFamily(
        f"sponge_{name}", said, buckets=_buckets(found), sum_value=found.total
    )


def _buckets(found: Histogram) -> list[tuple[str, float]]:
    upper = [*(f"{edge:g}" for edge in found.edges), "+Inf"]
    return list(zip(upper, accumulate(found.counts), strict=True))


def _as_triton(m: ServerMetrics) -> str:
    """Write what Triton's dashboards read; the library would append ``_total`` to counters."""
    labels = f'model="{_escaped(m.served.name)}",version="{VERSION}"'
    now = m.snapshot
    failed = {
        f'{labels},reason="{reason}"': count
        for reason, count in m.requests.items()
        if reason != "success"
    }
    # Triton counts tasks that have not begun; of a pipeline, those in the first stage.
    pending = {labels: now.queued[0] if now and now.queued else 0}
    families: list[tuple[str, str, str, Mapping[str, float]]] = [
        ("request_success", "Number of successful inference requests, all batch sizes", "counter",
         {labels: m.requests["success"]}),
        ("request_failure", "Number of failed inference requests, all batch sizes", "counter",
         failed),
        ("count", "Number of inferences performed", "counter", {labels: m.queue.count}),
        ("exec_count", "Number of model executions performed", "counter", {labels: m.executions}),
        ("pending_request_count", "Number of requests awaiting execution", "gauge", pending),
    ]  # fmt: skip
    durations = {
        "request": ("request handling", m.handling_ns),
        "queue": ("queuing", m.queue.ns),
        "compute_input": ("compute input", m.input.ns),
        "compute_infer": ("compute inference", m.infer.ns),
        "compute_output": ("inference output", m.output.ns),
    }
    for name, (what, found_ns) in durations.items():
        said = f"Cumulative {what} duration in microseconds"
        families.append((f"{name}_duration_us", said, "counter", {labels: found_ns // 1000}))
    return "".join(
        _family(f"nv_inference_{name}", said, kind, samples)
        for name, said, kind, samples in families
    )


def _family(name: str, said: str, kind: str, samples: Mapping[str, float]) -> str:
    lines = [f"{name}{{{labels}}} {value}\n" for labels, value in samples.items()]
    return f"# HELP {name} {said}\n# TYPE {name} {kind}\n" + "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
