"""What a server has counted, as Prometheus, Triton's clients and dashboards read it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_story import ANSWER, SERVED, Story, call, snapshot

from sponge_env.metrics import IntervalMetrics
from sponge_env.serve.interface import Batches, Reply, Status
from sponge_env.serve.monitor.exposition import exposition
from sponge_env.serve.monitor.metrics import OUTCOMES, ServerMetrics

LATE = dataclasses.replace(ANSWER, finished_s=1.5, in_time=False)


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics(SERVED, wall=lambda: 1700000000.25)


def samples(metrics: ServerMetrics) -> dict[str, float]:
    """Read the exposition: ``name{label=value}`` to its value."""
    text = exposition(metrics)
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            name = sample.name
            if name.startswith("nv_"):  # the parser appends what Triton's names have not
                name = name.removesuffix("_total")
            labels = "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items()))
            found[name + labels] = sample.value
    return found


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (ANSWER, "on_time"),
        (dataclasses.replace(ANSWER, finished_s=1.0), "on_time"),
        (dataclasses.replace(ANSWER, finished_s=1.0000001), "on_time"),  # another clock's rounding
        (LATE, "late"),
        (Reply(Status.REFUSED), "refused"),
        (Reply(Status.EXPIRED), "expired"),
        (Reply(Status.FAILED), "failed"),
        (Reply(Status.CANCELLED), "cancelled"),
        (Reply(Status.STOPPED), "stopped"),
    ],
)
def test_every_call_has_one_outcome(metrics: ServerMetrics, reply: Reply, outcome: str) -> None:
    assert metrics.observe(call(), reply) == outcome
    assert metrics.counts() == dict.fromkeys(OUTCOMES, 0) | {outcome: 1}
    found = samples(metrics)
    assert found[f"sponge_requests_total{{outcome={outcome}}}"] == 1
    assert sum(v for k, v in found.items() if k.startswith("sponge_requests_total")) == 1


def test_latencies_have_an_edge_at_the_slo(metrics: ServerMetrics) -> None:
    for finished_s in (0.06, 0.99, 1.0, 1.01, 9.0):
        metrics.observe(call(), dataclasses.replace(ANSWER, finished_s=finished_s))
    metrics.observe(call(), Reply(Status.EXPIRED, finished_s=1.0))
    found = samples(metrics)
    buckets = {k: v for k, v in found.items() if k.startswith("sponge_latency_seconds_bucket")}
    assert buckets["sponge_latency_seconds_bucket{le=0.0625}"] == 1
    assert buckets["sponge_latency_seconds_bucket{le=0.875}"] == 1
    assert buckets["sponge_latency_seconds_bucket{le=1}"] == 3
    assert buckets["sponge_latency_seconds_bucket{le=4}"] == 4
    assert buckets["sponge_latency_seconds_bucket{le=+Inf}"] == 5
    assert list(buckets.values()) == sorted(buckets.values())
    assert found["sponge_latency_seconds_sum"] == pytest.approx(12.06)


def test_a_call_is_measured_by_its_own_slo(metrics: ServerMetrics) -> None:
    metrics.observe(call(slo_s=0.5), dataclasses.replace(ANSWER, finished_s=0.5))
    metrics.observe(call(slo_s=0.0), ANSWER)
    found = samples(metrics)
    assert found["sponge_slo_used_ratio_bucket{le=1}"] == 1
    assert found["sponge_slo_used_ratio_bucket{le=0.875}"] == 0
    assert found["sponge_slo_used_ratio_bucket{le=+Inf}"] == 2


def test_batches_are_counted_by_stage() -> None:
    """A batch of a later stage may hold several tasks of one call, and none of another."""
    first = tuple(Batches(size, ended, 0.5) for size, ended in {1: 3, 2: 2, 5: 1, 16: 1}.items())
    served = dataclasses.replace(SERVED, stages=("detection", "recognition"))
    ended = first, (Batches(16, 4, 0.25),)
    metrics = ServerMetrics(served, batches=lambda: ended)
    metrics.observe(call(), dataclasses.replace(ANSWER, batch=16))
    found = samples(metrics)
    assert found["sponge_batch_size_count{stage=detection}"] == 7
    assert found["sponge_batch_size_sum{stage=detection}"] == 3 + 4 + 5 + 16
    assert found["sponge_batch_size_bucket{le=2}{stage=detection}"] == 5
    assert found["sponge_batch_size_bucket{le=8}{stage=detection}"] == 6
    assert found["sponge_batch_size_count{stage=recognition}"] == 4
    assert found["sponge_batch_size_bucket{le=8}{stage=recognition}"] == 0
    assert found["nv_inference_exec_count{model=lite0}{version=1}"] == 11
    assert found["nv_inference_count{model=lite0}{version=1}"] == 1
    told = metrics.statistics()
    assert told["execution_count"] == 11
    sizes = {each["batch_size"]: each["compute_infer"] for each in told["batch_stats"]}
    assert {size: each["count"] for size, each in sizes.items()} == {1: 3, 2: 2, 5: 1, 16: 5}
    assert sizes[16]["ns"] == 750_000_000


def test_triton_counts_requests_and_microseconds(metrics: ServerMetrics) -> None:
    for row in range(4):
        metrics.observe(call(), ANSWER, counted=row > 0)
    metrics.converted(0.001, 0.0005)
    metrics.observe(call(), Reply(Status.REFUSED))
    metrics.observe(call(), Reply(Status.EXPIRED))
    metrics.observe(call(), Reply(Status.CANCELLED))
    metrics.observe(call(), Reply(Status.FAILED))
    metrics.observe(call(), Reply(Status.FAILED), counted=True)
    metrics.take(snapshot())
    found = samples(metrics)

    def triton(name: str, reason: str = "") -> float:
        labels = "{model=lite0}" + f"{{reason={reason}}}" * bool(reason) + "{version=1}"
        return found[f"nv_inference_{name}{labels}"]

    assert triton("request_success") == 1
    assert triton("request_failure", "REJECTED") == 2
    assert triton("request_failure", "CANCELED") == 1
    assert triton("request_failure", "BACKEND") == 1
    assert triton("request_failure", "OTHER") == 0
    assert triton("count") == 4
    assert triton("pending_request_count") == 3
    assert triton("queue_duration_us") == 4 * 100_000
    assert triton("compute_infer_duration_us") == 4 * 200_000
    assert triton("compute_input_duration_us") == 1000
    assert triton("compute_output_duration_us") == 500
    assert triton("request_duration_us") == 300_000 + 1500


def test_statistics_say_the_same_in_nanoseconds(metrics: ServerMetrics) -> None:
    for _ in range(4):
        metrics.observe(call(), ANSWER)
    metrics.observe(call(), Reply(Status.EXPIRED, queue_s=0.5))
    told = metrics.statistics()
    assert (told["name"], told["version"]) == ("lite0", "1")
    assert told["last_inference"] == 1700000000250
    assert (told["inference_count"], told["execution_count"]) == (4, 0)
    assert told["inference_stats"]["success"] == {"count": 4, "ns": 1_200_000_000}
    assert told["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert told["inference_stats"]["queue"] == {"count": 4, "ns": 400_000_000}
    assert told["batch_stats"] == []


def test_an_interval_counts_once_however_often_one_looks(metrics: ServerMetrics) -> None:
    last = IntervalMetrics(
        time_s=3.0, cores=8.0, core_seconds=16.0, utilisation=0.5, throttled_share=0.25,
        restarts=2, decision_s=0.002, cpu_s=1.5, running=3,
    )  # fmt: skip
    assert not metrics.take(snapshot(2.0, last=None))
    assert metrics.take(snapshot(3.0, last=last))
    assert not metrics.take(snapshot(3.5, last=last))
    assert metrics.take(snapshot(5.0, last=dataclasses.replace(last, time_s=5.0, feasible=1)))
    found = samples(metrics)
    assert found["sponge_core_seconds_total"] == 32
    assert found["sponge_used_core_seconds_total"] == 16
    assert found["sponge_throttled_core_seconds_total"] == 8
    assert found["sponge_restarts_total"] == 4
    assert found["sponge_cpu_seconds_total"] == 3
    assert found["sponge_infeasible_decisions_total"] == 1
    assert found["sponge_decision_seconds_bucket{le=0.001}"] == 0
    assert found["sponge_decision_seconds_bucket{le=0.003}"] == 2
    assert found["sponge_cores_held"] == 8
    assert found["sponge_cores_used"] == 4
    assert found["sponge_uptime_seconds"] == 5


def test_what_is_now_stands_by_stage() -> None:
    served = dataclasses.replace(SERVED, stages=("detection", "recognition"), variants=("v5", "v6"))
    metrics = ServerMetrics(served)
    now = snapshot(
        4.0, served, cores=(6, 3), replicas=(2, 1), queued=(4, 9), variant=("v6", "v5"),
        agent="fa2", ready=False,
    )  # fmt: skip
    metrics.take(now)
    found = samples(metrics)
    assert found["sponge_cores{stage=detection}"] == 6
    assert found["sponge_replicas{stage=recognition}"] == 1
    assert found["sponge_queue_length{stage=recognition}"] == 9
    assert found["sponge_variant_info{stage=detection}{variant=v6}"] == 1
    assert found["sponge_agent_info{agent=fa2}"] == 1
    assert found["sponge_ready"] == 0
    assert found["sponge_answers_total{variant=v5}"] == 0


def test_a_models_name_cannot_break_the_text() -> None:
    name = 'a"b\\c\nd{}'
    metrics = ServerMetrics(dataclasses.replace(SERVED, name=name))
    text = exposition(metrics)
    families = list(text_string_to_metric_families(text.decode()))
    named = {s.labels["model"] for f in families for s in f.samples if "model" in s.labels}
    assert named == {name}


def test_names_and_types_are_declared_once_each() -> None:
    story = Story(SERVED)
    story.play(20)
    text = exposition(story.metrics)
    lines = text.decode().splitlines()
    declared = Counter(line.split()[2] for line in lines if line.startswith("# TYPE"))
    assert set(declared.values()) == {1}
    for line in lines:
        if not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            ends = ("", "_bucket", "_count", "_sum")
            assert any(name.removesuffix(end) in declared for end in ends), name


def test_requests_that_were_not_taken_are_counted(metrics: ServerMetrics) -> None:
    for status in (400, 401, 400, 503):
        metrics.rejected(status)
    found = samples(metrics)
    named = {k: v for k, v in found.items() if k.startswith("sponge_rejected_requests_total")}
    assert {key.split("=")[1]: value for key, value in named.items()} == {
        "400}": 2, "401}": 1, "503}": 1
    }  # fmt: skip
    # Triton counts only what it would have served if there had been room
    assert found["nv_inference_request_failure{model=lite0}{reason=REJECTED}{version=1}"] == 1
    assert found["nv_inference_request_failure{model=lite0}{reason=OTHER}{version=1}"] == 0
    assert metrics.statistics()["inference_stats"]["fail"]["count"] == 0
