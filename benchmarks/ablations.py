"""What each ingredient of ``sponge-mpc`` is worth: take one away, and look.

    python -m benchmarks.ablations [--seeds N] [--quick]

All variants play the same episodes: the cells of the suite ``standard``, cold, on training
seeds. Cores are the geometric mean over the cells, so that each cell weighs alike; violations
are those that are avoidable, as a plain mean and as the mean of the worst cell.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.simulator import print_table
from sponge_env.run.controllers import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import cell_name, cells, load_suite
from sponge_env.scenario import Scenario
from sponge_env.seeding import EVALUATION_SEEDS
from sponge_env.vector.system import CompiledSystem

AGENT = "sponge-mpc"
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
BASELINE = "sponge-ip"


def cores_and_violations(
    agent: str, options: dict[str, Any], scenario: Scenario, seeds: Sequence[int]
) -> tuple[float, float]:
    """Return mean cores and the avoidable violation rate in percent over some episodes."""
    rows = []
    for seed in seeds:
        controller = make_controller(agent, known_controllers(), options)
        run = Run.of(agent, scenario, "sim", seed)
        summary = run_episode(CompiledSystem(scenario, seed), controller, run).summary
        rows.append((summary.mean_cores, 100 * summary.avoidable_violation_rate))
    cores, violations = np.mean(rows, axis=0)
    return float(cores), float(violations)


def row(
    name: str, agent: str, options: dict[str, Any], grid: Sequence[Scenario], seeds: Sequence[int]
) -> list[str]:
    """Play one variant on all cells."""
    results = [cores_and_violations(agent, options, scenario, seeds) for scenario in grid]
    cores, violations = (np.array(column) for column in zip(*results, strict=True))
    worst = int(violations.argmax())
    return [
        name,
        f"{np.exp(np.log(cores).mean()):.3f}",
        f"{violations.mean():.3f}",
        f"{violations[worst]:.2f}",
        cell_name(grid[worst]).removesuffix("+cold"),
        f"{int((violations <= 0.1).sum())}/{len(grid)}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Take ingredients of sponge-mpc away.")
    parser.add_argument("--seeds", type=int, default=3, help="episodes of each cell")
    parser.add_argument("--quick", action="store_true", help="every fifth cell, one seed")
    options = parser.parse_args(argv)
    grid = cells(dataclasses.replace(load_suite("standard"), starts=("cold",)))
    grid, count = (grid[::5], 1) if options.quick else (grid, options.seeds)
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + count)
    rows = [row(name, AGENT, changes, grid, seeds) for name, changes in VARIANTS.items()]
    rows.append(row(BASELINE, BASELINE, {}, grid, seeds))
    headings = ["variant", "cores", "violations [%]", "worst [%]", "worst cell", "<= 0.1 %"]
    print_table(headings, rows)


if __name__ == "__main__":
    main()
