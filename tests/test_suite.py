"""Suites as a user runs them: ``evaluate.py --suite``, here and on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from project import ROOT, python

import evaluate
from sponge_env.run import cluster
from sponge_env.run.read import load_failures, load_intervals, load_results

pytestmark = pytest.mark.usefixtures("unpainted")

SUITE = """
seeds = 2
starts = ["cold", "warm"]
[[cells]]
scenarios = ["paper"]
profiles = ["yolov5s", "resnet18"]
changes = { duration_s = 6.0, warmup_s = 2.0 }
[agents.static-8]
[agents.one]
controller = "static"
options = { cores = 1 }
"""

CONTROLLERS = """
import time
from sponge_env.interfaces import Allocation
class Mine:
    def reset(self, spec, seed):
        self.profile = spec.first.latency
    def decide(self, view):
        return Allocation(4, 4)
class Fails(Mine):
    def decide(self, view):
        if self.profile.eta_s > 0.01:  # as YOLOv5s has, and ResNet18 has not
            raise RuntimeError("too slow for me")
        return Allocation(4, 4)
class Hangs(Mine):
    def decide(self, view):
        time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(own_folder, monkeypatch):
    monkeypatch.syspath_prepend(own_folder)
    Path("tiny.toml").write_text(SUITE)
    Path("own_controllers.py").write_text(CONTROLLERS)


def run(line):
    return evaluate.main(line.split())


def test_a_suite_runs_agents_on_cells_and_goes_on_where_it_was(capsys, request):
    assert run("--suite tiny.toml --run-dir run --jobs 2") == 0
    request.getfixturevalue("inline")
    printed = capsys.readouterr().out
    assert printed.count("paper, yolov5s, cold start") == 1
    assert "all scenarios and profiles, warm start" in printed
    assert Path("run/tables.txt").read_text() in printed + "\n"
    frame = load_results(Path("run"))
    assert len(frame) == 2 * 2 * 2 * 2
    assert set(frame["duration_s"]) == {6.0, 4.0}, "a warm start counts after its warm-up"
    assert frame[frame["agent"] == "one"]["mean_cores"].eq(1.0).all()

    files = {path: path.stat().st_mtime_ns for path in Path("run/results").rglob("*.json")}
    next(iter(files)).unlink()
    assert run("--suite tiny.toml --run-dir run") == 0
    assert "7 of 8 results are in run already" in capsys.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in Path("run/results").rglob("*.json")}
    assert sum(again[path] != files[path] for path in files) == 1

    assert run("--suite tiny.toml --run-dir run --seeds 1") == 2
    assert "other seeds" in capsys.readouterr().err

    assert run("--suite tiny.toml --run-dir part --seeds 1-2 --cells *+resnet18+cold") == 0
    part = load_results(Path("part"))
    assert (len(part), set(part["seed"])) == (2 * 2, {1, 2})
    some = ["agent", "profile", "start", "seed", "mean_cores", "violation_rate", "reward"]
    assert len(part[some].merge(frame[some])) == 2, "seed 1 is the same in both"


@pytest.mark.usefixtures("inline")
def test_a_folder_of_traces_is_a_suite(capsys):
    Path("traces").mkdir()
    Path("traces/bus.csv").write_text("time_s,bandwidth_bytes_per_s\n0,3e6\n1,2e6\n")
    Path("traces/load").write_text("9\n11\n4\n")
    Path("traces/notes.txt").write_text("see above\n")
    line = "--suite real --traces traces --agent static-8 --duration 40 --seeds 2 --run-dir run"
    assert run(f"{line} --jobs 1") == 0
    printed = capsys.readouterr().out
    assert "left out: traces/notes.txt is in no known format" in printed
    assert printed.count("bus.csv: bandwidth, CSV") == printed.count("load: arrivals, req") == 1
    assert "load, yolov5s, warm start" in printed
    assert "\noracle-joint " in printed
    assert (set(load_results(Path("run"))["scenario"]), run(line)) == ({"bus.csv", "load"}, 0)
    assert "6 of 6 results are in run already" in capsys.readouterr().out
    Path("traces/load").write_text("9\n12\n4\n")
    assert run(line) == 2
    assert "other cells" in capsys.readouterr().err


@pytest.mark.usefixtures("inline")
def test_an_agent_that_fails_leaves_the_others_alone(capsys):
    line = "--suite tiny.toml --agent static-8 own_controllers:Fails --run-dir run"
    assert run(f"{line} --jobs 1") == 1
    printed = capsys.readouterr().out
    assert printed.count("own_controllers:Fails: failed with ControllerError: ") == 2
    assert printed.count("RuntimeError: too slow for me") == 2
    assert "2 results failed" in printed
    assert len(load_failures(Path("run"))) == 2
    frame = load_results(Path("run"))
    assert len(frame) == 3 * 4
    assert set(frame[frame["agent"] == "own_controllers:Fails"]["profile"]) == {"resnet18"}


def test_an_interrupted_suite_leaves_its_results_and_no_process():
    line = "--suite tiny.toml --agent static-8 own_controllers:Hangs --run-dir run --jobs 2"
    command = [sys.executable, str(ROOT / "evaluate.py"), *line.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    first = Path("run/results/static-8/paper+yolov5s+cold.json")
    while not (first.exists() and json.loads(first.read_text())["complete"]):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate()
    assert process.returncode == 130
    again = "evaluate.py --suite tiny.toml --agent static-8 own_controllers:Hangs --jobs 2"
    assert f"{again} --run-dir run\n" in out
    assert not list(Path("run").rglob("*.partial"))
    with suppress(ProcessLookupError):
        while True:  # what ends last only notices that the others have
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    assert len(load_results(Path("run"))) >= 2


def test_an_interrupted_evaluation_keeps_what_has_ended_and_goes_on():
    """Seed 0 ends, seed 1 is interrupted in its third interval."""
    Path("slow.py").write_text(
        "import os, signal\nfrom sponge_env.interfaces import Allocation\n"
        "class Slow:\n"
        "    def reset(self, spec, seed): self.seed = seed\n"
        "    def decide(self, view):\n"
        "        if self.seed == 1 and view.now_s == 2 and not os.path.exists('again'):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return Allocation(4, 4)\n"
    )
    line = "--agent slow:Slow static-8 --duration 5 --seeds 3 --run-dir run --json out.json"
    assert run(line) == 130
    summaries = json.loads(Path("out.json").read_text())
    assert [(s["seed"], s["partial"]) for s in summaries] == [(0, False), (1, True)]
    assert not list(Path("run").rglob("*.partial"))
    assert list(load_intervals(Path("run")).groupby("seed")["time_s"].max()) == [5.0, 2.0]
    requests = pd.read_parquet("run/requests/slow:Slow/paper+yolov5s+cold-seed1.parquet")
    assert (len(requests), len(load_results(Path("run")))) == (summaries[1]["offered"], 1)

    first = Path("run/intervals/slow:Slow/paper+yolov5s+cold-seed0.parquet").stat().st_mtime_ns
    Path("again").touch()
    assert run(line) == 0
    summaries = json.loads(Path("out.json").read_text())
    assert [(s["agent"], s["seed"], s["partial"]) for s in summaries] == [
        (agent, seed, False) for agent in ("slow:Slow", "static-8") for seed in range(3)
    ]
    again = Path("run/intervals/slow:Slow/paper+yolov5s+cold-seed0.parquet").stat().st_mtime_ns
    assert (again, len(list(Path("run/tensorboard/slow:Slow-seed1").iterdir()))) == (first, 1)
    assert len(load_results(Path("run"))) == 6


def without_times(path):
    result = json.loads(path.read_text())
    for episode in result["episodes"]:
        del episode["decision_p50_s"], episode["decision_p99_s"]
    return result


def test_a_suite_and_a_single_evaluation_leave_the_same_files():
    one = "seeds = 2\nstarts = ['warm']\n[agents.fa2]\ntuned = true\n"
    one += "[[cells]]\nscenarios = ['paper']\n"
    Path("one.toml").write_text(f"{one}profiles = ['resnet18']\nchanges = {{ duration_s = 40.0 }}")
    assert run("--suite one.toml --run-dir suite --requests") == 0
    line = "--agent fa2 --profile resnet18 --start warm --duration 40 --seeds 2"
    assert run(f"{line} --run-dir single") == 0
    cell, kinds = "fa2/paper+resnet18+warm", ("results", "intervals", "requests")
    files = {"suite": {}, "single": {}}
    for name, found in files.items():
        for kind in kinds:
            found |= {str(path.relative_to(name)): path for path in Path(name, kind).glob("*/*")}
    tables = {f"{kind}/{cell}-seed{seed}.parquet" for kind in kinds[1:] for seed in (0, 1)}
    assert set(files["suite"]) == set(files["single"]) == {f"results/{cell}.json", *tables}
    for name, path in files["suite"].items():
        other = files["single"][name]
        if path.suffix == ".json":
            assert without_times(path) == without_times(other)
        else:
            frames = [pd.read_parquet(file) for file in (path, other)]
            ours, theirs = (frame.drop(columns="decision_s", errors="ignore") for frame in frames)
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for name in ("run.json", "command.txt", "versions.json", "host.json", "profiles/resnet18.json"):
        assert Path("suite", name).is_file()
        assert Path("single", name).is_file()


@pytest.mark.parametrize("address", ["head:6379", ""])
def test_the_token_of_a_cluster_is_used_as_ray_itself_does(address, own_folder, monkeypatch):
    ray = SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster.installation, "require_extra", lambda *_: None)
    monkeypatch.setenv("HOME", str(own_folder))
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    cluster._join(address)
    assert "RAY_AUTH_MODE" not in os.environ
    Path(".ray").mkdir()
    Path(".ray/auth_token").write_text("x")
    cluster._join(address)
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if address else None)


CLUSTER = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import evaluate
import sponge_env.run.cluster as ours
local = {"object_store_memory": 10**8}
head = {"num_cpus": 0, "include_dashboard": False, **local}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, **local) for _ in range(2)]
argv = ["--suite", "suite.toml", "--ray", cluster.address, "--run-dir", "there"]
def kill():
    while not list(Path("there").glob("results/*/*.json")):
        time.sleep(0.01)
    cluster.remove_node(nodes[1], allow_graceful=False)
    killed.append(1)
killed = []
killer = threading.Thread(target=kill)
killer.start()
assert evaluate.main([*argv, "--requests"]) == 0
killer.join()
assert killed
ray.shutdown()
ours.code_fingerprint = lambda: "another"
assert evaluate.main([*argv[:-1], "elsewhere"]) == 2
cluster.shutdown()
"""


def episodes_of(run):
    files = Path(run, "results").rglob("*.json")
    return {str(path.relative_to(run)): without_times(path) for path in files}


@pytest.mark.slow
def test_a_suite_is_the_same_though_a_node_dies_and_another_version_is_refused(own_folder, inline):
    Path("suite.toml").write_text(SUITE)
    Path("there.py").write_text(CLUSTER)
    assert evaluate.main(["--suite", "suite.toml", "--run-dir", "here"]) == 0
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # every node is at the loopback address
    done = python("there.py", **variables, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "code " in done.stderr
    assert "install there what this machine has" in done.stderr
    assert episodes_of("there") == episodes_of("here")
    assert len(list(Path("there/requests").rglob("*.parquet"))) == 16
