"""The live page and what it asks for."""

import base64
import dataclasses
import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest
from fake_engine import FakeEngine
from served_story import ANSWER, SERVED, Story, call, snapshot

from sponge_env.metrics import IntervalMetrics
from sponge_env.serve.interface import Reply, Status
from sponge_env.serve.monitor import page as live
from sponge_env.serve.monitor.metrics import OUTCOMES, VIOLATIONS, ServerMetrics
from sponge_env.serve.monitor.page import KEPT, NEVER, History, page, state

TWO = {"stages": ("detection", "recognition"), "variants": ("v5", "v6")}
OCR = dataclasses.replace(SERVED, name="ocr", default_slo_s=2.5, **TWO)


@pytest.fixture
def history():
    return History(ServerMetrics(SERVED))


def points(history, since_s=0.0):
    return json.loads(orjson.dumps(history.since(since_s)))


def test_a_point_says_what_an_interval_was_like(history):
    history.metrics.observe(call(), ANSWER)
    history.metrics.observe(call(), Reply(Status.EXPIRED))
    latencies = {"latency_p50_s": 0.4, "latency_p99_s": math.inf}
    last = IntervalMetrics(time_s=7.0, cores=8.0, utilisation=0.25, **latencies)
    history.take(snapshot(7.2, last=last))
    (point,) = points(history)
    assert point["t"] == 7.2
    assert dict(zip(OUTCOMES, point["ended"], strict=True))["expired"] == 1
    assert (point["p50"], point["p99"]) == (0.4, NEVER)
    assert (point["held"], point["used"], point["cores"]) == (8, 2, [8])
    assert point["batch"] is None
    history.take(snapshot(8.2, last=IntervalMetrics(time_s=8.0)))
    assert points(history)[1]["ended"] == [0] * len(OUTCOMES)


def test_the_history_is_bounded(history):
    for second in range(1, 2000):
        history.take(snapshot(float(second), last=IntervalMetrics(time_s=float(second))))
    kept = points(history)
    assert (kept[0]["t"], kept[-1]["t"]) == (2000 - KEPT, 1999)
    assert [point["t"] for point in points(history, 1998.0)] == [1998, 1999]
    assert points(history, math.inf) == []


def test_the_state_of_a_pipeline():
    story = Story(OCR, rate_rps=6.0)
    assert json.loads(state(story.engine, History(ServerMetrics(OCR))))["history"] == []
    story.play(30)
    now = json.loads(state(story.engine, story.history))
    assert [stage["name"] for stage in now["stages"]] == ["detection", "recognition"]
    assert (now["server"]["slo_s"], now["server"]["violations"]) == (2.5, list(VIOLATIONS))
    assert len(now["history"]) == 30
    assert all(len(point["cores"]) == 2 for point in now["history"])
    assert sum(now["totals"].values()) == sum(sum(p["ended"]) for p in now["history"])
    assert sum(now["answers"].values()) == now["totals"]["on_time"] + now["totals"]["late"]
    assert now["budgets_s"] == sorted(now["budgets_s"])
    later = json.loads(state(story.engine, story.history, 29.0))
    assert [point["t"] for point in later["history"]] == [29, 30]


def test_a_query_says_from_when_on():
    queries = {"": 0, "since=3.5": 3.5, "since=inf": math.inf, "since=nan": 0, "since=x&a=b": 0}
    assert {query: live.since(query) for query in queries} == queries


def test_a_watch_takes_each_interval_once_and_misses_none(history):
    """Those that follow each other closely are not lost, and the time is the clock's."""
    engine = FakeEngine(SERVED)
    engine.now = snapshot(0.0, last=None)
    with live.watched(engine, history):
        for time_s, counted_s in ((1.0, 1.0), (1.0, 1.0), (4.5, 2.0), (4.6, 3.0), (5.5, 4.0)):
            last = IntervalMetrics(time_s=counted_s, cores=8.0, core_seconds=8.0)
            engine.publish(snapshot(time_s, last=last))
    assert [point["t"] for point in points(history)] == [1.0, 4.5, 4.6, 5.5]
    assert [point["t"] for point in points(history, 4.6)] == [4.6, 5.5]
    assert history.metrics.core_s == 32


def test_the_page_brings_all_that_it_needs():
    text, rules = page().decode(), live.page_headers()["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert not re.findall(r"innerHTML|document.write|import\(|<[^>]+ (?:on\w+|style)=", text)
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    assert rules.startswith("default-src 'none'")
    assert "unsafe" not in rules


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")
@pytest.mark.parametrize("served", [SERVED, OCR, None], ids=["single", "pipeline", "new"])
def test_the_script_of_the_page(served, tmp_path):
    """It runs in Node with a document that only collects what is set."""
    story = Story(served or SERVED)
    if served is None:
        story.engine.now = snapshot(0.0, last=None, budgets_s=(), queued=(0,))
    else:
        story.play(200)
    (script,) = re.findall(r"<script>(.*?)</script>", page().decode(), re.DOTALL)
    stub, program = Path(__file__).with_name("page_document.js").read_text(), tmp_path / "page.js"
    program.write_text(stub.replace("/* the page's script */", script))
    now = state(story.engine, story.history).decode()
    done = subprocess.run(["node", program], input=now, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert shown["state"] == ["ready", "locked", "no answer"]
    assert (shown["model"], len(shown["charts"])) == ((served or SERVED).name, 4)
    if served is None:
        assert shown["charts"][0].endswith("nothing yet ")
        return
    assert f"on time|{story.metrics.counts()['on_time']:,}|" in shown["totals"]
    assert all(stage in shown["stages"] for stage in served.stages)
    assert "a replica restarted" in shown["events"]
