"""One of each, added to a copy of the project as the documentation says, arrives everywhere."""

import json
import re
import shutil
from pathlib import Path

import arrived
import pytest
from project import ROOT, python

from sponge_env.core.fields import FIELDS
from sponge_env.metrics import IntervalMetrics, names
from sponge_env.scenario.scenario import load_scenario

SOURCES = ("sponge_env", "agents", "baselines", "benchmarks", "traces")


# Each is a patch, as the documentation shows one.
INTERVAL_METRIC = """
--- a/sponge_env/metrics.py
+++ b/sponge_env/metrics.py
 class IntervalMetrics
     replicas_ready: int = metric("resources", "Replicas serving at the interval's end.")
+    answered: int = metric("slo", "Requests answered, in time or late.", "more")
+    moons: int = metric("queue", "Always the same.", default=7)
--- a/sponge_env/core/measure.py
+++ b/sponge_env/core/measure.py
 def measure
     metrics.running = w.stage.running
+    metrics.answered = metrics.on_time + metrics.late
"""
EPISODE_METRIC = """
--- a/sponge_env/metrics.py
+++ b/sponge_env/metrics.py
 class EpisodeMetrics
     reward: float = metric("controller", "Sum of the rewards.", "more")
+    most_queued: int = metric("queue", "Longest queue of an interval.", "less")
--- a/sponge_env/metrics.py
+++ b/sponge_env/metrics.py
 COLUMNS
     Column("latency_mean_s", "mean", "ms", 0),
+    Column("most_queued", "crest", "", 1, ("evaluation", "page", "tensorboard")),
--- a/sponge_env/run/rollout.py
+++ b/sponge_env/run/rollout.py
 def summed_up
         restarts=int(intervals["restarts"].sum()),
+        most_queued=int(intervals["queued"].max()),
"""
OBSERVATION_FIELD = """
--- a/sponge_env/core/fields.py
+++ b/sponge_env/core/fields.py
 the fields
-VERTICAL_FIELDS = _QUEUE + _NETWORK + _ALLOCATION + _OUTCOME + _USE
+_MISSED = (Field("violations", "requests that missed their deadline in it", "100"),)
+VERTICAL_FIELDS = _MISSED + _QUEUE + _NETWORK + _ALLOCATION + _OUTCOME + _USE
--- a/sponge_env/core/observe.py
+++ b/sponge_env/core/observe.py
 def observe
         stage = at(w, k)
+        if not several:
+            _put(observation, field, w.metrics.violations / 100)
+            field += 1
"""
# Two cores are too few for it, so that a queue grows until no answer can be in time.
SCENARIO = """
slo_s = 1.0
duration_s = 5.0
initial = {cores = 2, batch = 4}
arrivals = {load = 0.9}
network = {trace = "none", base_delay_s = 0.1}
serving = {drop = "none", drop_early_s = 0.3}
"""


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
(DROP_RULE,) = re.findall(r"```diff\n(.*?)```", ARCHITECTURE, re.DOTALL)
HUNK = re.compile(r"--- a/(\S+)\n\+\+\+ b/\1\n.*\n((?:[ +-].*\n)+?)(?=---|\Z)")


def apply(patch, folder):
    """Change files; what is to stand before must be there once."""
    hunks = HUNK.findall(patch)
    assert 1 <= len({file for file, _ in hunks}) <= 2, "no addition touches more than two files"
    for file, lines in hunks:
        shown, text = lines.splitlines(keepends=True), (folder / file).read_text()
        old, new = ("".join(x[1:] for x in shown if x[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1, (file, old)
        (folder / file).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what one process finds in a copy of the sources with everything added."""
    copy = tmp_path_factory.mktemp("copy")
    for source in SOURCES:
        shutil.copytree(ROOT / source, copy / source, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in (INTERVAL_METRIC, EPISODE_METRIC, OBSERVATION_FIELD, DROP_RULE):
        apply(patch, copy)
    (copy / "hard.toml").write_text(SCENARIO)
    command = "-W", "error", ROOT / "tests" / "arrived.py", "hard.toml", copy / "out"
    done = python(*command, cwd=copy, NUMBA_DISABLE_JIT="1", PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["interpreted"]
    assert Path(seen["package"]).is_relative_to(copy)
    return seen


def test_an_interval_metric_arrives_wherever_metrics_are(found):
    for where in ("system", "environments", "command"):
        intervals = found[where]["intervals"]
        assert len(intervals) == 5
        assert [i["answered"] for i in intervals] == [i["on_time"] + i["late"] for i in intervals]
        assert all(i["answered"] > 0 for i in intervals)
        assert {i["moons"] for i in intervals} == {7}, "not computed, so its default"
    assert "slo/answered" in found["command"]["events"]
    assert "Requests answered, in time or late." in found["metrics"]["IntervalMetrics"]


def test_an_episode_metric_arrives_in_results_and_tables(found):
    command = found["command"]
    (episode,) = command["results"]["episodes"]
    assert episode["most_queued"] == max(i["queued"] for i in command["intervals"])
    assert "crest" in command["printed"]
    assert "whole_episode/system/queue/most_queued" in command["events"]
    assert "`most_queued`" in found["metrics"]["EpisodeMetrics"]


def test_a_scenario_key_acts_in_every_system(found):
    """The scenario's file has it, or nothing would have run."""
    assert not any(i["dropped"] for i in found["without_key"]["intervals"])
    for where in ("system", "environments", "command"):
        assert sum(i["dropped"] for i in found[where]["intervals"]) > 0


def test_an_observation_field_arrives_in_every_environment(found):
    environments = found["environments"]
    assert found["fields"] == ["violations", *FIELDS]
    assert "requests that missed their deadline in it" in found["observation_table"]
    expected = [0.0, *(i["violations"] / 100 for i in environments["intervals"])]
    assert [o[0] for o in environments["seen"]] == pytest.approx(expected)
    assert expected[-1] > 0
    assert found["system"]["seen"] == environments["seen"][:-1], "a view shows it, too"


def test_everything_else_is_computed_as_before(found, tmp_path):
    """A shipped policy decides as before, too, though its inputs have moved."""
    file = tmp_path / "hard.toml"
    file.write_text(SCENARIO.replace(", drop_early_s = 0.3", ""))
    before, now = arrived.of_system(load_scenario(file)), found["without_key"]
    assert now["decisions"] == before["decisions"]
    assert len({tuple(chosen) for chosen in now["decisions"]}) > 1
    assert [seen[1:] for seen in now["seen"]] == before["seen"]
    for interval, expected in zip(now["intervals"], before["intervals"], strict=True):
        for name in names(IntervalMetrics):
            assert interval[name] == pytest.approx(expected[name], rel=0, nan_ok=True), name
