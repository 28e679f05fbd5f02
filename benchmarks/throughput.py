"""How fast simulators and evaluations are, beside an earlier version.

It prints the CPU time of one step: of a batch of environments (on one thread unless it says two),
of a single one, and of an evaluation. The earlier version is checked out, and the two are measured
in turn. Times and ratios are medians over the turns. Actions are drawn, but of chains and 10 rps
constant: half of all choices. With ``--at-most`` only a batch of 1,024 is measured, and the exit
code is 1 if this takes more than RATIO times its CPU time.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

BATCHES = {"16": (16, 1), "256": (256, 1), "1,024": (1024, 1), "4,096": (4096, 1),
           "1,024, 2 threads": (1024, 2)}  # fmt: skip
"""Environments and threads of each batch; all play the scenario ``paper``, 20 requests a step."""
CHAINS = ("pipeline-nlp", "pipeline-sentiment", "pipeline-video")
GATE = "1,024"
ONE_CELL = """
starts = ["warm"]
[[cells]]
scenarios = ["paper"]
profiles = ["yolov5s"]
"""
AGENTS = dict.fromkeys(("static-16", "sponge-ip", "fa2"), "")
LATER_AGENTS = {"sponge-joint": "", "ppo-joint": 'options = { policy = "shipped" }'}
STEPS, SEEDS, TURNS = 200_000, 16, {"gate": 36, "all": 12}


def taken_ns(work: Callable[[], object]) -> NDArray[np.float64]:
    """Return the CPU time, with that of processes which have ended, and the wall time of a call."""
    began_s = _clocks_s()
    work()
    return 1e9 * (_clocks_s() - began_s)


def _clocks_s() -> NDArray[np.float64]:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.process_time() + ended.ru_utime + ended.ru_stime, time.perf_counter()])


def measure(which: str) -> dict[str, list[float]]:
    """Return (CPU, wall) nanoseconds of a step of each kind."""
    # Only what every version offers is used, but in "all": this measures the earlier one as well.
    measured = Path(str(importlib.import_module("sponge_env").__file__)).resolve()
    if not measured.is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"there is no sponge_env in {Path.cwd()}")
    found = {}
    for name, (count, threads) in BATCHES.items():
        if name == GATE or which != "gate":
            kind: dict[str, Any] = {"num_envs": count, "scenario": "paper", "threads": threads}
            found[name] = _step_ns(gymnasium.make_vec("Sponge-v0", **kind), count)
    if which != "gate":
        found["one environment"] = _step_ns(gymnasium.make("Sponge-v0"), 1)
        found.update((f"evaluate, {each[0]}", _interval_ns(*each)) for each in AGENTS.items())
    if which == "all":
        found.update(_later())
    return found


def _later() -> Iterator[tuple[str, list[float]]]:
    """Yield what is measured of this version only."""
    load = importlib.import_module("sponge_env").load_scenario
    paper = load("paper")
    slower = replace(paper, name="paper-10rps", arrivals=replace(paper.arrivals, rate_rps=10.0))
    kinds = [(4096, slower, "vertical"), *((1024, load(chain), "pipeline") for chain in CHAINS)]
    for count, scenario, control in kinds:
        options: dict[str, Any] = {"scenario": scenario, "control": control, "threads": 2}
        batch: Any = gymnasium.make_vec("Sponge-v0", num_envs=count, **options)
        held = np.array(batch.single_action_space.nvec) // 2
        yield f"{count:,} {scenario.name}, 2 threads", _step_ns(batch, count, held)
    for each in LATER_AGENTS.items():
        yield f"evaluate, {each[0]}", _interval_ns(*each)


def _step_ns(
    env: gymnasium.Env | gymnasium.vector.VectorEnv, envs: int, held: NDArray[Any] | None = None
) -> list[float]:
    steps = STEPS // 100 if envs == 1 else max(20, STEPS // envs)
    shape = (steps, *(() if envs == 1 else (envs,)))
    if held is None:
        actions = np.random.default_rng(0).integers(0, 16, (*shape, 2))
    else:
        actions = np.broadcast_to(held, (*shape, held.size))

    def play() -> None:
        for action in actions:
            *_, ended, over, _ = env.step(action)
            if envs == 1 and (ended or over):
                env.reset()

    env.reset(seed=1)
    play()
    with contextlib.closing(env):
        return list(taken_ns(play) / (steps * envs))


def _interval_ns(agent: str, options: str) -> list[float]:
    main, intervals, several = importlib.import_module("evaluate").main, 600, SEEDS

    def run(seeds: int) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            suite = Path(folder, "one.toml")
            suite.write_text(f"seeds = {seeds}{ONE_CELL}[agents.{agent}]\n{options}")
            if main(["--suite", str(suite), "--jobs", "1", "--run-dir", f"{folder}/run"]):
                raise RuntimeError(f"{agent} cannot be evaluated")

    run(2)
    # The difference leaves out what it takes to start. A single episode is played in another way.
    few_ns, many_ns = taken_ns(lambda: run(2)), taken_ns(lambda: run(2 + several))
    return list((many_ns - few_ns) / (several * intervals))


def in_turn(folders: list[Path], kinds: list[str]) -> Iterator[list[dict[str, list[float]]]]:
    """Measure checkouts, each in a process that is kept; yield what each turn has found of each."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    with contextlib.ExitStack() as children:
        running = [
            children.enter_context(subprocess.Popen(
                [*command, kind], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            ))
            for folder, kind in zip(folders, kinds, strict=False)
        ]  # fmt: skip
        for _ in range(TURNS[kinds[0]]):
            turn = []
            for child in running:
                print(file=child.stdin)
                turn.append(json.loads((child.stdout or io.StringIO()).readline()))
            yield turn


def check_out(ref: str, folder: Path) -> Path:
    """Return a folder with an earlier version: the one named, or one that is filled with it."""
    if Path(ref).is_dir():
        return Path(ref).resolve()
    archive = subprocess.run(["git", "archive", ref], check=False, stdout=subprocess.PIPE)
    if archive.returncode:
        sys.exit(2)  # git has said why
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--against", metavar="REF", help="earlier version, or its folder")
    parser.add_argument("--at-most", type=float, metavar="RATIO", help="for a batch of 1,024")
    parser.add_argument("--measure", choices=("gate", "shared", "all"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    only_gate = arguments.at_most is not None
    if only_gate and not arguments.against:
        parser.error("--at-most needs --against")
    if arguments.measure:
        for _ in sys.stdin:
            print(json.dumps(measure(arguments.measure)), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(__file__).resolve().parents[1]]
        if arguments.against:
            folders.append(check_out(arguments.against, Path(folder)))
        turns = list(in_turn(folders, ["gate", "gate"] if only_gate else ["all", "shared"]))
    beside = f"{'earlier':>14}{'ratio':>8}" if arguments.against else ""
    print(f"{'':36}{'CPU ns a step':>14}{'steps/s':>12}{beside}")
    ratios = {}
    for name in turns[0][0]:
        times = np.array([[each[name] for each in turn if name in each] for turn in turns])
        (cpu, wall), *then = np.median(times, axis=0)
        row = f"{name:36}{cpu:14,.0f}{1e9 / wall:12,.0f}"
        for earlier, _ in then:
            ratios[name] = float(np.median(times[:, 0, 0] / times[:, 1, 0]))
            row += f"{earlier:14,.0f}{ratios[name]:8.2f}"
        print(row)
    return int(only_gate and ratios[GATE] > arguments.at_most)


if __name__ == "__main__":
    sys.exit(main())
