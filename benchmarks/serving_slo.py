"""Violations and cores of deadlines over a 4G trace: ours, and Triton at its best static setting.

    python -m benchmarks.serving_slo [--quick] [--triton PYTHON] [--seconds 30] [--seeds 3]

``sponge load`` sends the scenario ``local`` at 80 % of this machine's capacity, open loop. Triton
has the same CPU limit (a control group's quota on its model's processes), dynamic batching, and
each request's own timeout, after which it refuses it; :mod:`benchmarks.triton_search` looks for its
settings, on seeds of their own. The environment's live run of the same requests stands beside ours.
All are measured in turn, seed by seed, so that the machine's drift is shared.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.servers import OTHERS, Server, cpu_locked, keeping_to, sponge
from benchmarks.triton_search import SPACE, best_settings
from benchmarks.triton_server import HOW_TO_MAKE, TritonModel, add_triton, triton
from sponge_env import cli
from sponge_env.env.factory import ensure_profile, make_system, wait_for_machine
from sponge_env.metrics import summary
from sponge_env.models.efficientnet import efficientnet
from sponge_env.results.layout import aligned
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import changed
from sponge_env.scenario.scenario import load_scenario

MODEL, SCENARIO, LOAD = "efficientnet-lite0", "local", 0.8
AGENTS = ("sponge-ip", "sponge-mpc")

Summary = dict[str, Any]
"""Metrics of an episode, under the schema's names."""
Contender = Callable[[int], Summary]
"""Serves the requests of a seed."""


@dataclass(frozen=True)
class Effort:
    """How long it is measured."""

    seconds: float
    seeds: int
    tuning_s: float = 8.0
    """Of each run of the search."""


HEADINGS = [
    *("violated", "min to max", "avoidable", "mean cores of 16", "min to max"),
    "p99 of answers, ms",
]


def row(name: str, summaries: Sequence[Summary]) -> list[str]:
    """Return the means over seeds, and their ranges."""

    def values(key: str) -> list[float]:
        return [math.inf if each[key] is None else float(each[key]) for each in summaries]

    def mean_and_range(key: str, form: str) -> list[str]:
        numbers = values(key)
        return [format(fmean(numbers), form), f"{min(numbers):{form}} to {max(numbers):{form}}"]

    avoidable = f"{fmean(values('avoidable_violation_rate')):.2%}"
    violated = mean_and_range("violation_rate", ".2%")
    cores, p99_s = mean_and_range("mean_cores", ".2f"), fmean(values("latency_p99_s"))
    return [name, *violated, avoidable, *cores, f"{1000 * p99_s:.0f}"]


def load(server: Server, seed: int, seconds: float) -> Summary:
    """Send the scenario to a server; return what the client measured."""
    command = [sys.executable, "-m", "sponge_env", "load"]
    command += ["--url", f"http://127.0.0.1:{server.port}", "--model", server.model]
    command += ["--scenario", SCENARIO, "--load", str(LOAD), "--duration", str(seconds)]
    command += ["--seed", str(seed)]
    if server.name == "triton":
        command += ["--deadlines", "timeout"]
    with keeping_to(OTHERS), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summaries.json"
        command += ["--json", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (summary,) = json.loads(path.read_text())
        return dict(summary)


def ours(agent: str, seconds: float, seed: int) -> Summary:
    """Measure our server."""
    with sponge(MODEL, "--agent", agent, "--scenario", SCENARIO) as server:
        return load(server, seed, seconds)


def environment(agent: str, seconds: float, seed: int) -> Summary:
    """Measure the environment's live run of the same requests."""
    changes = {"arrivals.load": LOAD, "duration_s": seconds, "serving.drop": "expired"}
    scenario = changed(load_scenario(SCENARIO), changes)
    profile = ensure_profile(scenario, "live", "auto")
    controller = make_controller(agent, known_controllers())
    run = Run.of(agent, scenario, "live", seed)
    with closing(make_system(scenario, seed, backend="live", profile=profile)) as system:
        return summary(run_episode(system, controller, run).summary)


def theirs(python: Path, model: TritonModel, seconds: float, seed: int) -> Summary:
    """Measure Triton, which holds its cores all the time."""
    with cpu_locked(), triton(python, model) as server:
        return load(server, seed, seconds) | {"mean_cores": model.cores}


def triton_model() -> TritonModel:
    """Return the same model for Triton, on all cores."""
    model = efficientnet(MODEL)
    outputs = model.outputs
    return TritonModel(MODEL, ("images", model.inputs), ("logits", outputs), onnx_path=model.path)


def searched(python: Path, tuning_s: float) -> list[TritonModel]:
    """Return Triton's best settings."""

    def measure(model: TritonModel, seed: int) -> tuple[float, float]:
        found = theirs(python, model, tuning_s, seed)
        p99_s = found["latency_p99_s"]
        return found["violation_rate"], math.inf if p99_s is None else p99_s

    return best_settings(triton_model(), measure)


def contenders(python: Path | None, effort: Effort) -> dict[str, Contender]:
    """Return who is compared; Triton is tuned first."""
    seconds = effort.seconds
    found: dict[str, Contender] = {
        f"{kind}, {agent}": partial(measure, agent, seconds)
        for kind, measure in (("environment", environment), ("sponge serve", ours))
        for agent in AGENTS
    }
    if python is not None:
        for model in searched(python, effort.tuning_s):
            name = f"Triton (Python backend), {model.settings}"
            found[f"{name}, {model.cores} cores"] = partial(theirs, python, model, seconds)
    return found


def in_turn(compared: dict[str, Contender], seeds: int) -> dict[str, list[Summary]]:
    """Let everybody serve one seed, then the next."""
    found: dict[str, list[Summary]] = {name: [] for name in compared}
    for seed in range(seeds):
        for name, contender in compared.items():
            found[name].append(contender(seed))
            print(f"seed {seed}:", *row(name, found[name][-1:]), file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; what goes wrong is one sentence."""
    return cli.run_script(compare, argv)


def compare(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = cli.Parser(prog="python -m benchmarks.serving_slo", description="Compare deadlines.")
    parser.add_argument("--quick", action="store_true", help="1 seed of 10 s, 3 s for the search")
    add_triton(parser)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (default: 30)")
    parser.add_argument("--seeds", type=cli.at_least(1), default=3, help="runs (default: 3)")
    arguments = parser.parse_args(argv)
    effort = Effort(arguments.seconds, arguments.seeds)
    if arguments.quick:
        effort = Effort(10.0, 1, tuning_s=3.0)
    with cli.terminate_like_interrupt():
        wait_for_machine()
        found = in_turn(contenders(arguments.triton, effort), effort.seeds)
    headings = [f"{effort.seeds} x {effort.seconds:g} s over 4G", *HEADINGS]
    print("\n".join(aligned([headings, *(row(name, each) for name, each in found.items())])))
    print(f"\n{about_triton(arguments.triton, effort)}")
    return 0


def about_triton(python: Path | None, effort: Effort) -> str:
    """Say how Triton came to its settings, or how to have it in the comparison."""
    if python is None:
        return f"Without Triton; {HOW_TO_MAKE}."
    return (
        "Triton runs the model in its Python backend, as the wheel of pytriton has no other. Its "
        f"settings are the best of a search with runs of {effort.tuning_s:g} s, {SPACE}."
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
