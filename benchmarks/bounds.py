"""Prove how few cores any schedule needs to meet the cells of a suite that has been played.

    python -m benchmarks.bounds RUN

RUN/bounds.csv has the fewest for each cell, over all seeds, when all arrivals are known and service
takes its usual time (docs/oracle.md). A minute for each cell with a CPU quota, seconds for others.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import pandas as pd

from sponge_env import cli
from sponge_env.metrics import CELL, MET
from sponge_env.oracle import least_cores
from sponge_env.results.suite_tables import csv_text
from sponge_env.run.suite import BOUND_AGENTS, arranged, cells, load_suite
from sponge_env.utils.files import read_json, write_all


@cli.command
def main(argv: Sequence[str]) -> int:
    """Write the bounds of a run's cells, two or more at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of evaluate.py --suite")
    run = parser.parse_args(argv).run
    suite = load_suite(read_json(run / "run.json")["suite"])
    seeds = range(suite.first_seed, suite.first_seed + suite.seeds)
    played = cells(suite)
    with ProcessPoolExecutor() as pool:
        cores = [*pool.map(least_cores, played, repeat(seeds), repeat(MET))]
    rows = pd.DataFrame([cell.cell for cell in played], columns=[*CELL])
    rows["group"] = rows["scenario"].map(lambda name: arranged(suite).groups.get(name, ""))
    more = {"agent": BOUND_AGENTS["joint"], "n": suite.seeds, "mean_cores": cores}
    write_all(run, {"bounds.csv": csv_text(rows.assign(**more))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
