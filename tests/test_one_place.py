"""One of each, added to a copy of the project as the documentation says, arrives everywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import arrived
import pytest

from sponge_env.core.fields import FIELDS
from sponge_env.metrics import IntervalMetrics, names
from sponge_env.scenario.scenario import load_scenario

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sponge_env", "agents", "baselines", "benchmarks", "traces")


def after(anchor, added):
    """Return what stands in a file, and what stands there afterwards."""
    return anchor, anchor + added


INTERVAL_METRIC = {
    "sponge_env/metrics.py": [
        after(
            '    replicas_ready: int = metric("resources", '
            '"Replicas serving at the interval\'s end.")\n',
            '    answered: int = metric("slo", "Requests answered, in time or late.", "more")\n'
            '    moons: int = metric("queue", "Always the same.", default=7)\n',
        )
    ],
    "sponge_env/core/measure.py": [
        after(
            "    metrics.running = w.stage.running\n",
            "    metrics.answered = metrics.on_time + metrics.late\n",
        )
    ],
}

EPISODE_METRIC = {
    "sponge_env/metrics.py": [
        after(
            '    reward: float = metric("controller", "Sum of the rewards.", "more")\n',
            '    most_queued: int = metric("queue", "Longest queue of an interval.", "less")\n',
        ),
        after(
            '    Column("latency_mean_s", "mean", "ms", 0),\n',
            '    Column("most_queued", "crest", "", 1, ("evaluation", "page", "tensorboard")),\n',
        ),
    ],
    "sponge_env/run/rollout.py": [
        after(
            '        restarts=int(intervals["restarts"].sum()),\n',
            '        most_queued=int(intervals["queued"].max()),\n',
        )
    ],
}

OBSERVATION_FIELD = {
    "sponge_env/core/fields.py": [
        after(
            "VERTICAL_FIELDS = ",
            '(Field("violations", "requests that missed their deadline in it", "100"),) + ',
        )
    ],
    "sponge_env/core/observe.py": [
        after(
            "        stage = at(w, k)\n",
            "        if not several:\n"
            "            _put(observation, field, w.metrics.violations / 100)\n"
            "            field += 1\n",
        )
    ],
}

# Two cores are too few for it, so that a queue grows until no answer can be in time.
SCENARIO = """
slo_s = 1.0
duration_s = 5.0
initial = {cores = 2, batch = 4}
arrivals = {load = 0.9}
network = {trace = "none", base_delay_s = 0.1}
serving = {drop = "none", drop_early_s = 0.3}
"""


def drop_rule():
    """Read the patch that the documentation shows."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (patch,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    insertions = {}
    for file, lines in re.findall(
        r"--- a/(\S+)\n\+\+\+ b/\1\n.*\n((?:[ +-].*\n)+?)(?=---|\Z)", patch
    ):
        shown = lines.splitlines(keepends=True)
        old = "".join(line[1:] for line in shown if line[0] in " -")
        insertions[file] = [(old, "".join(line[1:] for line in shown if line[0] in " +"))]
    return insertions


ADDITIONS = {
    "interval metric": INTERVAL_METRIC,
    "episode metric": EPISODE_METRIC,
    "observation field": OBSERVATION_FIELD,
    "drop rule": drop_rule(),
}


def insert(folder, insertions):
    """Change files; what is to stand before must be there once."""
    for file, changes in insertions.items():
        text = (folder / file).read_text()
        for old, new in changes:
            assert text.count(old) == 1, (file, old)
            text = text.replace(old, new)
        (folder / file).write_text(text)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what one process finds in a copy of the sources with everything added."""
    copy = tmp_path_factory.mktemp("copy")
    for source in SOURCES:
        shutil.copytree(ROOT / source, copy / source, ignore=shutil.ignore_patterns("__pycache__"))
    for insertions in ADDITIONS.values():
        assert 1 <= len(insertions) <= 2, "no addition touches more than two files"
        insert(copy, insertions)
    (copy / "hard.toml").write_text(SCENARIO)
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(copy)}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "arrived.py"), "hard.toml"]
    done = subprocess.run(
        [*command, str(copy / "out")], cwd=copy, env=environment, capture_output=True, text=True
    )
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
