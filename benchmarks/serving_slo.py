"""Violations and cores of deadlines over a 4G trace: ours, and Triton at its best static setting.

    python -m benchmarks.serving_slo [--quick] [--triton PYTHON] [--seconds 60] [--seeds 1]

``sponge load`` sends the scenario ``local`` at 80 % of this machine's capacity, open loop. Triton
has the same CPU limit (a control group's quota on its model's process), dynamic batching, and each
request's own timeout, after which it refuses it. Its cores, largest batch and delay are those that
did best on another seed. The environment's live run of the same requests stands beside ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.servers import OTHERS, Server, cpu_locked, keeping_to, sponge
from benchmarks.triton_server import HOW_TO_MAKE, TritonModel, triton
from sponge_env import cli
from sponge_env.models.efficientnet import efficientnet
from sponge_env.models.model import TensorSpec
from sponge_env.results.layout import aligned
from sponge_env.seeds import EVALUATION_SEEDS

MODEL, SCENARIO, LOAD = "efficientnet-lite0", "local", "0.8"
AGENTS = ("sponge-ip", "sponge-mpc")
TUNING_SEED = EVALUATION_SEEDS
"""The first that no evaluation uses."""
BATCHES, DELAYS_S = (1, 2, 4, 8, 16), (0.0, 0.01)
"""Triton's settings that are tried on all cores."""
FEWER_CORES, FEWER_BATCHES = (15, 14, 13), (4, 8, 16)
"""What is tried on fewer, with the delay that did best."""


@dataclass(frozen=True)
class Effort:
    """How long it is measured."""

    seconds: float
    seeds: int
    tuning_s: float


@dataclass(frozen=True)
class Seen:
    """Means over seeds."""

    name: str
    violations: float
    """Share of the requests that were offered."""
    avoidable: float
    cores: float
    """Core units that were held."""
    p99_s: float

    @property
    def row(self) -> list[str]:
        """What stands in the table."""
        shares = f"{self.violations:.2%}", f"{self.avoidable:.2%}"
        return [self.name, *shares, f"{self.cores:.2f}", f"{1000 * self.p99_s:.0f}"]


HEADINGS = ["60 s over 4G", "violated", "avoidable", "mean cores of 16", "p99 of answers, ms"]


def seen(name: str, summaries: Sequence[dict[str, Any]], cores: float | None = None) -> Seen:
    """Summarise episodes; a server that does not say which cores it has has ``cores``."""

    def mean(key: str) -> float:
        return fmean(float(each[key] if each[key] is not None else "inf") for each in summaries)

    held = mean("mean_cores") if cores is None else cores
    rates = mean("violation_rate"), mean("avoidable_violation_rate")
    return Seen(name, *rates, held, mean("latency_p99_s"))


def run(*command: str) -> list[dict[str, Any]]:
    """Run a command of this project; return the summaries that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summaries.json"
        whole = [sys.executable, "-m", "sponge_env", *command, "--json", str(path)]
        done = subprocess.run(whole, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(whole)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found


def load(server: Server, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Send the scenario to a server."""
    command = ["load", "--url", f"http://127.0.0.1:{server.port}", "--model", server.model]
    command += ["--scenario", SCENARIO, "--load", LOAD, "--duration", str(seconds)]
    command += ["--seed", str(seed)]
    if server.name == "triton":
        command += ["--deadlines", "timeout"]
    with keeping_to(OTHERS):
        return run(*command)


def ours(agent: str, effort: Effort) -> Seen:
    """Measure our server."""
    with sponge(MODEL, "--agent", agent, "--scenario", SCENARIO) as server:
        found = [load(server, seed, effort.seconds) for seed in range(effort.seeds)]
    return seen(f"sponge serve, {agent}", [each for (each,) in found])


def environment(agent: str, effort: Effort) -> Seen:
    """Measure the environment's live run of the same requests."""
    command = ["evaluate", "--agent", agent, "--scenario", SCENARIO, "--load", LOAD]
    command += ["--backend", "live", "--duration", str(effort.seconds), "--drop", "expired"]
    return seen(f"environment, {agent}", run(*command, "--seeds", str(effort.seeds), "--wait"))


def triton_model() -> TritonModel:
    """Return the same model for Triton, on all cores."""
    model = efficientnet(MODEL)
    outputs = TensorSpec(tuple(model.output_shape))
    return TritonModel(MODEL, ("images", model.inputs), ("logits", outputs), onnx_path=model.path)


def theirs(python: Path, model: TritonModel, seeds: Sequence[int], seconds: float) -> Seen:
    """Measure Triton."""
    with cpu_locked(), triton(python, model) as server:
        found = [load(server, seed, seconds) for seed in seeds]
    said = f"Triton, batch {model.batch_max}, {1000 * model.delay_s:.0f} ms delay"
    return seen(said, [each for (each,) in found], model.cores)


def best_static(python: Path, effort: Effort) -> list[TritonModel]:
    """Return Triton's best setting on all cores, then those on fewer."""

    def violations(model: TritonModel) -> tuple[float, float]:
        found = theirs(python, model, [TUNING_SEED], effort.tuning_s)
        print("tried", *found.row, file=sys.stderr)
        return found.violations, found.p99_s

    tried = [
        replace(triton_model(), batch_max=batch, delay_s=delay_s)
        for batch in BATCHES
        for delay_s in (DELAYS_S if batch > 1 else DELAYS_S[:1])
    ]
    best = min(tried, key=violations)
    fewer = [[replace(best, cores=c, batch_max=b) for b in FEWER_BATCHES] for c in FEWER_CORES]
    return [best, *(min(each, key=violations) for each in fewer)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; what goes wrong is one sentence."""
    return cli.run_script(compare, argv)


def compare(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = cli.Parser(prog="python -m benchmarks.serving_slo", description="Compare deadlines.")
    parser.add_argument("--quick", action="store_true", help="10 s each, and 3 s for the search")
    said = "interpreter whose environment has nvidia-pytriton"
    parser.add_argument("--triton", type=Path, metavar="PYTHON", help=said)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run (default: 60)")
    parser.add_argument("--seeds", type=cli.at_least(1), default=1, help="runs (default: 1)")
    arguments = parser.parse_args(argv)
    effort = Effort(arguments.seconds, arguments.seeds, tuning_s=20.0)
    if arguments.quick:
        effort = Effort(10.0, 1, 3.0)
    with cli.terminate_like_interrupt():
        found = [measured(agent, effort) for measured in (environment, ours) for agent in AGENTS]
        if arguments.triton is not None:
            seeds, python = range(effort.seeds), arguments.triton
            settings = best_static(python, effort)
            found += [theirs(python, model, seeds, effort.seconds) for model in settings]
    headings = [HEADINGS[0].replace("60", f"{effort.seconds:g}"), *HEADINGS[1:]]
    print("\n".join(aligned([headings, *(each.row for each in found)])))
    if arguments.triton is None:
        print(f"\nWithout Triton; {HOW_TO_MAKE}.")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
