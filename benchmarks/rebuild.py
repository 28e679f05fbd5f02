"""This tree beside an earlier one, for changes that should only be quicker.

    python -m benchmarks.rebuild [--base REV] [--rounds N]

The earlier commit, by default the last before issue 9, is checked out into a temporary worktree.
Both are measured in turn, each time in a process of its own of the same interpreter, as CPU time.
A ratio above 1 means quicker now; it is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BASE = "e2e7f30"
ROOT = Path(__file__).resolve().parents[1]
STEPS, ENVS, INTERVALS, EPISODE_S = 2_000, 1024, 60, 600


def single_steps_per_s() -> float:
    """Time ``gymnasium.make`` under a fixed action, resets included."""
    import gymnasium

    import sponge_env  # noqa: F401  # registers the environments

    env = gymnasium.make("Sponge-v0", scenario="paper")
    env.reset(seed=0)
    env.step([7, 3])  # compiles, or loads what was
    begin_s = time.process_time()
    for _ in range(STEPS):
        *_, terminated, truncated, _ = env.step([7, 3])
        if terminated or truncated:
            env.reset()
    return STEPS / (time.process_time() - begin_s)


def batch_steps_per_s(name: str, profile: str) -> float:
    """Time the batch simulator on one thread under random allocations, the better of two."""
    import numpy as np

    from sponge_env.encoding import OBS_DIM
    from sponge_env.scenario import load_scenario
    from sponge_env.vector.simulator import BatchSimulator

    scenario = dataclasses.replace(load_scenario(name), profile=profile)
    simulator = BatchSimulator([scenario], np.zeros(ENVS, np.int64), replicas_max=1, threads=1)
    most = [scenario.limits.cores + 1, scenario.limits.batch + 1, 2]
    allocations = np.random.default_rng(0).integers(1, most, (INTERVALS, ENVS, 3))
    observations, everyone = np.zeros((ENVS, OBS_DIM), np.float32), np.ones(ENVS, np.bool_)
    taken_s = []
    for _ in range(3):  # the first one compiles, or loads what was
        begin_s = time.process_time()
        simulator.reset(everyone, np.arange(ENVS), observations)
        for chosen in allocations:
            simulator.step(chosen)
        taken_s.append(time.process_time() - begin_s)
    simulator.close()
    return INTERVALS * ENVS / min(taken_s[1:])


INSIDE: dict[str, Callable[[], float]] = {
    "Sponge-v0, paper [steps/s]": single_steps_per_s,
    f"batch of {ENVS}, paper [steps/s]": lambda: batch_steps_per_s("paper", "yolov5s"),
    f"batch of {ENVS}, local [steps/s]": lambda: batch_steps_per_s("local", "lite0"),
}
EPISODE = f"evaluate.py, local, {EPISODE_S} s [s]"


def child(tree: Path, *argv: str) -> tuple[str, float]:
    """Run Python in a tree; return what it prints and its CPU time."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    before = os.times()
    command = [sys.executable, *argv]
    out = subprocess.check_output(command, cwd=tree, env=environment, stderr=subprocess.DEVNULL)
    after = os.times()
    taken_s = sum(after[2:4]) - sum(before[2:4])  # of children, user and system
    return out.decode(), taken_s


def episode_s(tree: Path) -> float:
    """Time an evaluation, without what a short one takes as well."""
    taken_s = []
    for duration_s in (2, EPISODE_S):
        with tempfile.TemporaryDirectory() as folder:
            told = f"--agent sponge-ip --scenario local --profile lite0 --duration {duration_s}"
            taken_s.append(child(tree, "evaluate.py", *told.split(), "--run-dir", f"{folder}/run"))
    return taken_s[1][1] - taken_s[0][1]


def measured(tree: Path) -> dict[str, float]:
    """Measure everything once."""
    script = str(Path(__file__).resolve())
    found = {name: float(child(tree, script, "--inside", name)[0]) for name in INSIDE}
    return {**found, EPISODE: episode_s(tree)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", default=BASE, metavar="REV", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of measurements")
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.inside:
        print(INSIDE[arguments.inside]())
        return
    from sponge_env.results.layout import aligned  # inside, the earlier tree has none

    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        trees = (Path(folder) / "before", ROOT)
        subprocess.run([*git, "add", "-q", "--detach", trees[0], arguments.base], check=True)
        try:
            for tree in trees:
                episode_s(tree)  # fills the caches
            rounds = [[measured(tree) for tree in trees] for _ in range(arguments.rounds)]
        finally:
            subprocess.run([*git, "remove", "--force", trees[0]], check=True)
    rows = [["", "before", "now", "ratio"]]
    for name in rounds[0][0]:
        pairs = [(before[name], now[name]) for before, now in rounds]
        ratios = [a / b if name == EPISODE else b / a for a, b in pairs]
        medians = map(statistics.median, (*zip(*pairs, strict=True), ratios))
        rows.append([name, *(f"{median:,.6g}" for median in medians)])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
