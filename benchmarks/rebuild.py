"""This tree beside an earlier one, for changes that should only be quicker.

    python -m benchmarks.rebuild [--base REV] [--rounds N]

The earlier commit is checked out into a temporary worktree. Times are CPU times.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np

from sponge_env.scenario.scenario import load_scenario
from sponge_env.simulation.batch import BatchSimulator
from sponge_env.simulation.encoding import OBS_DIM

BASE = "e2e7f30"
ROOT = Path(__file__).resolve().parents[1]
STEPS, ENVS, EPISODE_S, SEEDS = 500, 1024, 600, 8
SHAPE = (60, ENVS, 3)  # intervals, environments, and what an allocation consists of


def single_steps_per_s() -> float:
    """Time ``gymnasium.make`` under a fixed action, within one episode."""
    env = gymnasium.make("Sponge-v0", scenario="paper")
    env.reset(seed=0)
    env.step([7, 3])  # compiles, or loads what was
    begin_s = time.process_time()
    for _ in range(STEPS):
        env.step([7, 3])
    return STEPS / (time.process_time() - begin_s)


def batch_steps_per_s(name: str, profile: str) -> float:
    """Time the batch simulator on one thread under random allocations, the better of two."""
    scenario = dataclasses.replace(load_scenario(name), profile=profile)
    simulator = BatchSimulator([scenario], np.zeros(ENVS, np.int64), replicas_max=1, threads=1)
    most = [scenario.limits.cores, scenario.limits.batch, 1]
    allocations = np.random.default_rng(0).integers(1, most, SHAPE, endpoint=True)
    observations, everyone = np.zeros((ENVS, OBS_DIM), np.float32), np.ones(ENVS, np.bool_)
    taken_s = []
    for _ in range(3):  # the first one compiles, or loads what was
        begin_s = time.process_time()
        simulator.reset(everyone, np.arange(ENVS), observations)
        for chosen in allocations:
            simulator.step(chosen)
        taken_s.append(time.process_time() - begin_s)
    return SHAPE[0] * ENVS / min(taken_s[1:])


INSIDE = {
    "Sponge-v0, paper [steps/s]": "import rebuild as r; print(r.single_steps_per_s())",
    "batch, paper [steps/s]": "import rebuild as r; print(r.batch_steps_per_s('paper', 'yolov5s'))",
    "batch, local [steps/s]": "import rebuild as r; print(r.batch_steps_per_s('local', 'lite0'))",
}
EPISODE = f"evaluate.py, local, {EPISODE_S} s [s]"


def child(tree: Path, *argv: str) -> bytes:
    """Run Python in a tree, which finds this module too; return what it prints."""
    own = {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    settings = {"cwd": tree, "env": {**os.environ, **own}, "stderr": subprocess.DEVNULL}
    return subprocess.check_output([sys.executable, *argv], **settings)


def episode_s(tree: Path) -> float:
    """Time an episode of evaluate.py, without what a short one takes as well."""
    ends_s = []
    for duration_s in (2, 2, EPISODE_S):  # the first one warms up
        with tempfile.TemporaryDirectory() as folder:
            told = f"--agent sponge-ip --scenario local --profile lite0 --duration {duration_s}"
            told += f" --seeds {SEEDS} --run-dir {folder}/run"
            child(tree, "evaluate.py", *told.split())
        ends_s.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))
    return (ends_s[2] - 2 * ends_s[1] + ends_s[0]) / SEEDS


def measured(tree: Path) -> dict[str, float]:
    """Measure everything once."""
    found = {name: float(child(tree, "-c", code)) for name, code in INSIDE.items()}
    return {**found, EPISODE: episode_s(tree)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default=BASE, metavar="REV", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of measurements")
    arguments = parser.parse_args()
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        trees = (Path(folder) / "before", ROOT)
        subprocess.run([*git, "add", "-q", "--detach", trees[0], arguments.base], check=True)
        try:
            rounds = [[measured(tree) for tree in trees] for _ in range(arguments.rounds)]
        finally:
            subprocess.run([*git, "remove", "--force", trees[0]], check=True)
    print(f"{'':34}{'before':>12}{'now':>12}{'ratio':>8}")
    for name in rounds[0][0]:
        pairs = [(before[name], now[name]) for before, now in rounds]
        ratios = [a / b if name == EPISODE else b / a for a, b in pairs]
        before, now = map(statistics.median, zip(*pairs, strict=True))
        print(f"{name:34}{before:>12,.6g}{now:>12,.6g}{statistics.median(ratios):>8.3f}")


if __name__ == "__main__":
    main()
