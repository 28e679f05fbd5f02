"""What a server has counted, as Prometheus, Triton's clients and dashboards read it."""

import dataclasses
from collections import Counter

import prometheus_client.openmetrics.parser as openmetrics
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_story import ANSWER, SERVED, Story, call, snapshot

from sponge_env.k8s.launcher import Resizes
from sponge_env.metrics import IntervalMetrics
from sponge_env.serve.interface import Batches, Reply, Status
from sponge_env.serve.monitor.exposition import exposition
from sponge_env.serve.monitor.metrics import OUTCOMES, ServerMetrics


@pytest.fixture
def metrics():
    return ServerMetrics(SERVED, wall=lambda: 1700000000.25)


def samples(metrics):
    values = {}
    for family in text_string_to_metric_families(exposition(metrics).decode()):
        for sample in family.samples:
            name = sample.name
            if name.startswith("nv_"):  # the parser appends what Triton's names have not
                name = name.removesuffix("_total")
            left_out = "" if name.endswith("_info") else "model"  # there is one here
            shown = sorted(pair for pair in sample.labels.items() if pair[0] != left_out)
            values[name + "".join(f"{{{k}={v}}}" for k, v in shown)] = sample.value
    return values


def has(metrics, expected):
    values = samples(metrics)
    assert {name: values[f"sponge_{name}"] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "outcome"), [*((dataclasses.replace(ANSWER, finished_s=end_s), "on_time")
       for end_s in (0.4, 1.0, 1.0000001)),  # another clock's rounding
     (dataclasses.replace(ANSWER, finished_s=1.5, in_time=False), "late"),
     *((Reply(Status[name.upper()]), name)
       for name in ("refused", "expired", "failed", "cancelled", "stopped"))],
)  # fmt: skip
def test_every_call_has_one_outcome(metrics, reply, outcome):
    metrics.observe(call(), reply)
    assert (reply.outcome, metrics.counts()) == (outcome, dict.fromkeys(OUTCOMES, 0) | {outcome: 1})
    found = samples(metrics)
    assert found[f"sponge_requests_total{{outcome={outcome}}}"] == 1
    assert sum(v for k, v in found.items() if k.startswith("sponge_requests_total")) == 1


def test_latencies_have_an_edge_at_the_slo_and_calls_at_their_own(metrics):
    for finished_s in (0.06, 0.99, 1.0, 1.01, 9.0):
        metrics.observe(call(), dataclasses.replace(ANSWER, finished_s=finished_s))
    metrics.observe(call(), Reply(Status.EXPIRED, finished_s=1.0))
    counts = {"0.0625": 1, "0.875": 1, "1": 3, "4": 4, "+Inf": 5}
    buckets = {f"latency_seconds_bucket{{le={edge}}}": n for edge, n in counts.items()}
    has(metrics, buckets | {"latency_seconds_sum": 12.06})
    own = ServerMetrics(SERVED)
    own.observe(call(slo_s=0.5), dataclasses.replace(ANSWER, finished_s=0.5))
    own.observe(call(slo_s=0.0), ANSWER)
    used = {"0.875": 0, "1": 1, "+Inf": 2}
    has(own, {f"slo_used_ratio_bucket{{le={edge}}}": n for edge, n in used.items()})


def test_batches_are_counted_by_stage():
    """A batch of a later stage may hold several tasks of one call, and none of another."""
    first = tuple(Batches(size, ended, 0.5) for size, ended in {1: 3, 2: 2, 5: 1, 16: 1}.items())
    served = dataclasses.replace(SERVED, stages=("detection", "recognition"))
    metrics = ServerMetrics(served, batches=lambda: (first, (Batches(16, 4, 0.25),)))
    metrics.observe(call(), dataclasses.replace(ANSWER, batch=16))
    expected = {
        "count{stage=detection}": 7, "sum{stage=detection}": 3 + 4 + 5 + 16,
        "bucket{le=2}{stage=detection}": 5, "bucket{le=8}{stage=detection}": 6,
        "count{stage=recognition}": 4, "bucket{le=8}{stage=recognition}": 0,
    }  # fmt: skip
    has(metrics, {f"batch_size_{name}": value for name, value in expected.items()})
    statistics = metrics.statistics()
    assert statistics["execution_count"] == 11
    sizes = {each["batch_size"]: each["compute_infer"] for each in statistics["batch_stats"]}
    assert {size: each["count"] for size, each in sizes.items()} == {1: 3, 2: 2, 5: 1, 16: 5}
    assert sizes[16]["ns"] == 750_000_000


def test_the_statistics_count_requests_and_durations(metrics):
    for row in range(4):
        metrics.observe(call(), ANSWER, counted=row > 0)
    metrics.converted(0.001, 0.0005)
    for status in (Status.REFUSED, Status.EXPIRED, Status.CANCELLED, Status.FAILED):
        metrics.observe(call(), Reply(status, queue_s=0.125))
    metrics.observe(call(), Reply(Status.FAILED), counted=True)
    for rejected in (400, 401, 400, 503):
        metrics.rejected(rejected)
    statistics = metrics.statistics()
    assert statistics["last_inference"] == 1700000000250
    assert (statistics["inference_count"], statistics["execution_count"]) == (4, 0)
    durations = statistics["inference_stats"]
    expected = {
        "success": (1, 301_500_000), "fail": (4, 500_000_000), "queue": (4, 400_000_000),
        "compute_infer": (4, 800_000_000), "compute_input": (1, 1_000_000),
        "compute_output": (1, 500_000),
    }  # fmt: skip
    for name, (count, ns) in expected.items():
        assert durations[name] == {"count": count, "ns": ns}, name
    rejected = "rejected_requests_total{{status={}}}".format
    has(metrics, {rejected(400): 2, rejected(401): 1, rejected(503): 1})


def test_an_interval_counts_once_however_often_one_looks(metrics):
    last = IntervalMetrics(
        time_s=3.0, cores=8.0, core_seconds=16.0, utilisation=0.5, throttled_share=0.25,
        restarts=2, decision_s=0.002, cpu_s=1.5, running=3,
    )  # fmt: skip
    assert not metrics.take(snapshot(2.0, last=None))
    assert metrics.take(snapshot(3.0, last=last))
    assert not metrics.take(snapshot(3.5, last=last))
    assert metrics.take(snapshot(5.0, last=dataclasses.replace(last, time_s=5.0, feasible=1)))
    has(metrics, {
        "core_seconds_total": 32, "used_core_seconds_total": 16, "cpu_seconds_total": 3,
        "throttled_core_seconds_total": 8, "restarts_total": 4, "infeasible_decisions_total": 1,
        "decision_seconds_bucket{le=0.001}": 0, "decision_seconds_bucket{le=0.003}": 2,
        "cores_held": 8, "cores_used": 4, "uptime_seconds": 5,
    })  # fmt: skip


def test_what_is_now_stands_by_stage():
    served = dataclasses.replace(SERVED, stages=("detection", "recognition"), variants=("v5", "v6"))
    (metrics := ServerMetrics(served)).take(snapshot(
        4.0, served, cores=(6, 3), replicas=(2, 1), queued=(4, 9), variant=("v6", "v5"),
        agent="fa2", ready=False,
    ))  # fmt: skip
    has(metrics, {
        "cores{stage=detection}": 6, "replicas{stage=recognition}": 1,
        "queue_length{stage=recognition}": 9, "variant_info{stage=detection}{variant=v6}": 1,
        "agent_info{agent=fa2}": 1, "ready": 0, "answers_total{variant=v5}": 0,
    })  # fmt: skip


def test_names_and_types_are_declared_once_each_whatever_the_models_name():
    name = 'a"b\\c\nd{}'
    story = Story(dataclasses.replace(SERVED, name=name))
    story.play(20)
    text = exposition(story.metrics).decode()
    declared = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
    assert set(declared.values()) == {1}
    families = list(text_string_to_metric_families(text))
    assert len(families) == len(declared)
    labels = [sample.labels for family in families for sample in family.samples]
    assert {each["model"] for each in labels if "model" in each} == {name}


def test_buckets_have_an_exemplar_where_the_client_asks(metrics):
    for finished_s, trace in ((0.4, "a1"), (0.41, "b2"), (0.42, "")):
        metrics.observe(call(), dataclasses.replace(ANSWER, finished_s=finished_s), trace=trace)
    found = openmetrics.text_string_to_metric_families(exposition(metrics, True).decode())
    shown = [s.exemplar for f in found for s in f.samples if s.exemplar and "latency" in s.name]
    assert [(e.labels, e.value) for e in shown] == [({"trace_id": "b2"}, 0.41)]
    assert float(shown[0].timestamp) == 1700000000.25


def test_pods_are_shown_as_kubernetes_has_them():
    pods = Resizes(1.5, 1.25, {"NoPod": 1, "Deferred": 2}, ended=4, lag_s=0.8)
    metrics = ServerMetrics(SERVED, resizes=lambda: pods)
    has(metrics, {
        "pod_cores_asked": 1.5, "pod_cores_granted": 1.25, "pods_pending{reason=NoPod}": 1,
        "pods_pending{reason=Deferred}": 2, "resize_seconds_count": 4, "resize_seconds_sum": 0.8,
    })  # fmt: skip
