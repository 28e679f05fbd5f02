"""What each ingredient of ``sponge-mpc`` contributes: take one away, and look.

    python -m benchmarks.ablations [--seeds N] [--variants NAME ...] [--quick]

All play the same episodes: the cells of the suite ``standard``, cold, on training seeds. Cores are
the geometric mean over the cells, so that each cell weighs alike; violations are the avoidable
ones, as a plain mean and as the mean of the worst cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sponge_env.results.layout import aligned
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import cell_name, cells, load_suite
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.simulation.system import SimulatedSystem

VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "no forecast": {"forecast": False},
    "expected future only": {"risk": False},
    "largest batch always": {"batching": False},
    "fitted service times": {"learning": False},
    "no look-ahead": {"look_ahead": 0},
    "look-ahead of 2": {"look_ahead": 2},
    "no guard": {"guard": 0.001},
    "backlog is free": {"backlog_price": 0.0},
    "hysteresis 0.1": {"release_price": 0.1},
    "hysteresis 0.2": {"release_price": 0.2},
}
"""Options of the controller."""


def cores_and_violations(
    scenario: Scenario, seeds: Sequence[int], options: dict[str, Any]
) -> tuple[float, float]:
    """Return mean cores and the avoidable violation rate in percent over some episodes."""
    rows = []
    for seed in seeds:
        controller = make_controller("sponge-mpc", known_controllers(), options)
        run = Run.of("sponge-mpc", scenario, "sim", seed)
        summary = run_episode(SimulatedSystem(scenario, seed), controller, run).summary
        rows.append((summary.mean_cores, 100 * summary.avoidable_violation_rate))
    cores, violations = np.mean(rows, axis=0)
    return float(cores), float(violations)


def row_of(name: str, grid: Sequence[Scenario], seeds: Sequence[int]) -> list[str]:
    """Play one variant on all cells."""
    results = [cores_and_violations(scenario, seeds, VARIANTS[name]) for scenario in grid]
    cores, violations = (np.array(column) for column in zip(*results, strict=True))
    worst = int(violations.argmax())
    row = [
        name,
        f"{np.exp(np.log(cores).mean()):.3f}",
        f"{violations.mean():.3f}",
        f"{violations[worst]:.2f}",
        cell_name(grid[worst]).removesuffix("+cold"),
        f"{int((violations <= 0.1).sum())}/{len(grid)}",
    ]
    print(" | ".join(row), file=sys.stderr, flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="episodes of a cell (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a look at some cells")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args(argv)
    grid = cells(replace(load_suite("standard"), starts=("cold",)))
    grid, count = (grid[::5], 1) if arguments.quick else (grid, arguments.seeds)
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + count)
    headings = ["variant", "cores", "violations [%]", "worst [%]", "worst cell", "<= 0.1 %"]
    rows = [row_of(name, grid, seeds) for name in arguments.variants]
    print("\n".join(aligned([headings, *rows])))


if __name__ == "__main__":
    main()
