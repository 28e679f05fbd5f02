"""Violations and cores of deadlines over a 4G trace: ours, and Triton at static settings.

    python -m benchmarks.serving_slo [--triton PYTHON] [--seeds 5]

``sponge load`` sends the scenario ``local`` at 80 % of this machine's capacity, open loop. Triton
has the same CPU limit (a control group's quota on its model's processes), dynamic batching, each
request's own timeout, after which it refuses it, and the best settings of a search on other seeds.
All are measured in turn, seed by seed, so that a drift of the machine's speed meets all alike.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t

from benchmarks.servers import MODEL_CPU, OTHERS, Server, keeping_to, sponge
from benchmarks.triton_server import HOW_TO_MAKE, TritonModel, add_triton, triton
from sponge_env import cli
from sponge_env.env.factory import prepare_machine
from sponge_env.live.cpus import lock_cpu

MODEL, SCENARIO, LOAD = "efficientnet-lite0", "local", 0.8
AGENTS = ("sponge-joint", "sponge-mpc")
SECONDS = 60.0  # Of each run
TRITON = {  # The best static settings that were found for each number of core units
    "all cores, batches of 16, 10 ms delay": {"delay_s": 0.01},
    "15 cores, batches of 32, two instances": {"cores": 15, "batch_max": 32, "instances": 2},
    "13 cores, batches of 16": {"cores": 13},
}
Summary = dict[str, Any]  # Metrics of an episode, under the schema's names
Contender = Callable[[int], Summary]  # Serves the requests of a seed


def load(server: Server, seed: int) -> Summary:
    """Send the scenario to a server; return what the client measured."""
    command = [sys.executable, "-m", "sponge_env", "load"]
    command += ["--url", f"http://127.0.0.1:{server.port}", "--model", server.model]
    command += ["--scenario", SCENARIO, "--load", str(LOAD), "--duration", str(SECONDS)]
    command += ["--deadlines", "timeout"] * (server.name == "triton")
    with keeping_to(OTHERS), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summaries.json"
        command += ["--seed", str(seed), "--json", str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (found,) = json.loads(path.read_text())
        return dict(found)


def ours(agent: str, seed: int) -> Summary:
    """Measure our server."""
    with sponge(MODEL, "--agent", agent, "--scenario", SCENARIO) as server:
        return load(server, seed)


def theirs(python: Path, settings: dict[str, Any], seed: int) -> Summary:
    """Measure Triton, which holds its cores all the time."""
    # Our server has the model's CPU to itself, too.
    model, lock = TritonModel(MODEL, **settings), lock_cpu(MODEL_CPU, wait=True)
    with lock or nullcontext(), triton(python, model) as server:
        return load(server, seed) | {"mean_cores": model.cores}


def in_turn(compared: dict[str, Contender], seeds: int) -> pd.DataFrame:
    """Let everybody serve one seed, then the next; return a row of metrics for each run."""
    rows = []
    for seed in range(seeds):
        for name, contender in compared.items():
            print(f"seed {seed}: {name}", file=sys.stderr)
            rows.append({"name": name} | contender(seed))
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> str:
    """Return means over seeds, 95 % intervals (t) and ranges; a p99 of few answers is infinite."""
    shown = {
        "violated [%]": 100 * found["violation_rate"],
        "avoidable [%]": 100 * found["avoidable_violation_rate"],
        "cores of 16": found["mean_cores"],
        "p99 of answers [ms]": 1000 * found["latency_p99_s"].astype(float).fillna(math.inf),
    }

    def half(values: "pd.Series[float]") -> float:
        return float(t.ppf(0.975, len(values) - 1) * values.sem())

    by_name = pd.DataFrame(shown).groupby(found["name"], sort=False)
    return by_name.agg(["mean", ("+-", half), "min", "max"]).to_string(float_format="%.2f")


@cli.command
def compare(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = cli.Parser(prog="python -m benchmarks.serving_slo", description="Compare deadlines.")
    add_triton(parser)
    parser.add_argument("--seeds", type=cli.at_least(1), default=5, help="runs (default: 5)")
    arguments = parser.parse_args(argv)
    compared: dict[str, Contender] = {f"sponge serve, {a}": partial(ours, a) for a in AGENTS}
    for name, settings in TRITON.items() if arguments.triton else ():
        compared[f"Triton (Python backend), {name}"] = partial(theirs, arguments.triton, settings)
    with cli.terminate_like_interrupt():
        prepare_machine(wait=True, cpus=None)
        found = in_turn(compared, arguments.seeds)
    print(f"{arguments.seeds} x {SECONDS:g} s over 4G:\n\n{table(found)}")
    if arguments.triton is None:
        print(f"\nWithout Triton; {HOW_TO_MAKE}.")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(compare())
