"""Play a minute at 80 requests/s on replicas here, and on pods of the fake cluster: as root,
``PYTHONPATH=tests python -m fake_cluster``.

A pod's quota follows over periods of 100 ms, 0.16 to 0.4 s after it was asked for.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pods

from sponge_env.app import evaluate
from sponge_env.live.wire import TOKEN

SCENARIO = """
profile = "local:busy_model:Busy"
slo_s = 1.0
duration_s = 60.0
[limits]
cores = 16
batch = 8
replicas = 4
[initial]
cores = 16
[arrivals]
rate_rps = 80.0
[network]
trace = "none"
[simulation]
actuation_delay_s = 0.2
"""
AGENTS = "sponge-ip", "sponge-joint"
SHOWN = "offered", "on_time", "late", "dropped", "failed", "mean_cores"


def play(folder, name, *options):
    """Print what became of the requests of one run of each agent."""
    scenario, found = folder / "scenario.toml", folder / f"{name}.json"
    scenario.write_text(SCENARIO)
    words = ["--backend", "live", "--scenario", str(scenario), "--trust", "--agent", *AGENTS]
    words += ["--run-dir", str(folder / name), "--json", str(found), *options]
    if code := evaluate.main(words):
        sys.exit(code)
    for each in json.loads(found.read_text()):
        sys.stdout.write(f"{name:6}{each['agent']:14}")
        sys.stdout.write(", ".join(f"{key} {each[key]:g}" for key in SHOWN) + "\n")


if __name__ == "__main__":
    os.environ[TOKEN] = pods.TOKEN
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        play(folder, "local")
        with pods.pods(folder, cpu="1", milli=1000, delay_s=(0.16, 0.4)):
            play(folder, "pods", "--replicas", "k8s:sponge-replica")
