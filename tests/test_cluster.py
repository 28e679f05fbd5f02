"""Suites on a Ray cluster of two nodes, one of which dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

from test_suite import ROOT, SUITE

import evaluate

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
    """Return the summaries of a run by file, but for what decisions took."""
    found = {}
    for path in sorted(Path(run, "results").rglob("*.json")):
        result = json.loads(path.read_text())
        for episode in result.get("episodes", ()):
            del episode["decision_p50_s"], episode["decision_p99_s"]
        found[str(path.relative_to(run))] = result
    return found


def test_a_suite_is_the_same_there_though_a_node_dies_and_another_version_is_refused(
    tmp_path, monkeypatch, inline
):
    monkeypatch.chdir(tmp_path)
    Path("suite.toml").write_text(SUITE)
    Path("there.py").write_text(CLUSTER)
    assert evaluate.main(["--suite", "suite.toml", "--run-dir", "here"]) == 0
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # every node is at the loopback address
    done = subprocess.run(
        [sys.executable, "there.py"], capture_output=True, text=True, check=False,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "code " in done.stderr
    assert "install there what this machine has" in done.stderr
    assert episodes_of("there") == episodes_of("here")
    assert len(list(Path("there/requests").rglob("*.parquet"))) == 16
