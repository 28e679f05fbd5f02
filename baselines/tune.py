"""Tune the baselines for every cell of a suite, on training seeds.

    python -m baselines.tune [--suite standard] [--agents hpa vpa ...] [--seeds 5]

For each scenario and profile, the options of :mod:`baselines.searches` are tried with a warm
start. ``tuned.json`` keeps the best, for cold and warm starts, and says what best means.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.options import TUNED_FILE, cell_key
from baselines.searches import SEARCHES, YARDSTICK, Outcome, search_options
from sponge_env import cli
from sponge_env.console import Progress
from sponge_env.errors import ConfigError
from sponge_env.factory import scenario_profile
from sponge_env.files import check_writable, replacing
from sponge_env.host import describe_versions
from sponge_env.registry import known_controllers, make_controller
from sponge_env.rollout import Run, run_episode
from sponge_env.scenario import Scenario
from sponge_env.seeding import EVALUATION_SEEDS
from sponge_env.suite.definition import cells, load_suite
from sponge_env.suite.pool import Failure, ProcessPool
from sponge_env.suite.warm import warm
from sponge_env.tables import aligned
from sponge_env.vector.system import CompiledSystem

OBJECTIVE = (
    "fewest avoidable violations beyond the tolerance and those of static with all cores "
    "and its best batch size (unsaved), as shares of all requests; of equal ones the fewest "
    "mean cores; of equal ones the first of the grid"
)


@dataclass(frozen=True, slots=True)
class Task:
    """One controller on one cell."""

    agent: str
    scenario: Scenario
    seeds: tuple[int, ...]
    unsaved: float = 0.0
    """Avoidable violations of the yardstick, as a share of all requests."""

    @property
    def cell(self) -> str:
        """Name of the cell in ``tuned.json``."""
        return cell_key(self.scenario.name, self.scenario.profile)

    def try_options(self, options: dict[str, Any]) -> Outcome:
        """Run all seeds.

        Raises:
            SpongeError: The scenario, the profile or the controller cannot be used.
        """
        profile = scenario_profile(self.scenario)
        controller = make_controller(self.agent, known_controllers(), options)
        scenario = warm(self.scenario, controller, profile)
        violations = offered = 0.0
        cores = []
        for seed in self.seeds:
            system = CompiledSystem(scenario, seed, profile)
            run = Run.of(self.agent, scenario, "sim", seed)
            summary = run_episode(system, controller, run).summary
            violations += summary.avoidable_violation_rate * summary.offered
            offered += summary.offered
            cores.append(summary.mean_cores)
        return Outcome(options, violations / max(1.0, offered), sum(cores) / len(cores))


def tune_cell(task: Task) -> Outcome:
    """Search the best options of a task.

    Raises:
        SpongeError: The scenario, the profile or the controller cannot be used.
    """
    search = SEARCHES[task.agent]
    allowed = task.unsaved + search.tolerance
    cores_max = task.scenario.limits.cores
    tried = search_options(search, allowed, cores_max, task.try_options)
    return min(tried, key=lambda outcome: outcome.rank(allowed))


def tune(
    scenarios: Sequence[Scenario], agents: Sequence[str], seeds: Sequence[int], processes: int
) -> dict[str, dict[str, Outcome]]:
    """Tune controllers on cells, in parallel.

    Returns:
        Best outcomes by controller and cell; among the controllers is the yardstick.

    Raises:
        ConfigError: A controller failed on a scenario.
    """
    found: dict[str, dict[str, Outcome]] = {agent: {} for agent in (YARDSTICK, *agents)}
    measures = [Task(YARDSTICK, scenario, tuple(seeds)) for scenario in scenarios]
    searches = len(scenarios) * len(agents)
    progress = Progress("tuning", len(measures) + searches, "task")
    with ProcessPool(tune_cell, processes) as pool:
        _collect(pool.results(measures), found, progress)
        tasks = [
            dataclasses.replace(
                task, agent=agent, unsaved=found[YARDSTICK][task.cell].avoidable_violation_rate
            )
            for task in measures
            for agent in agents
        ]
        _collect(pool.results(tasks), found, progress)
    progress.close()
    return {agent: dict(sorted(cells.items())) for agent, cells in found.items()}


def _collect(
    results: Iterable[tuple[Task, Any]], found: dict[str, dict[str, Outcome]], progress: Progress
) -> None:
    for task, result in results:
        if isinstance(result, Failure):
            raise ConfigError(
                f"{task.agent} failed on {task.cell} ({result.type}: {result.message})"
            )
        found[task.agent][task.cell] = result
        progress.show(sum(map(len, found.values())), f"{task.agent} on {task.cell}")


def save(
    path: Path, found: Mapping[str, Mapping[str, Outcome]], suite: str, seeds: Sequence[int]
) -> None:
    """Put tuned controllers in the place of their old entries in a file.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    data = json.loads(path.read_text()) if path.exists() else {"agents": {}}
    measured = found[YARDSTICK]
    for agent in found.keys() - {YARDSTICK}:
        data["agents"][agent] = {
            "suite": suite,
            "seeds": list(seeds),
            **dataclasses.asdict(SEARCHES[agent]),
            "cells": {
                cell: {
                    **dataclasses.asdict(outcome),
                    "unsaved": measured[cell].avoidable_violation_rate,
                }
                for cell, outcome in found[agent].items()
            },
        }
    data = {
        "objective": OBJECTIVE,
        "versions": describe_versions(),
        "agents": dict(sorted(data["agents"].items())),
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n")


def table(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return a line for each controller and cell."""
    rows = [["agent on scenario/profile", "avoidable %", "cores", "options"]]
    for agent, by_cell in found.items():
        for cell, outcome in by_cell.items():
            options = " ".join(f"{key}={value}" for key, value in outcome.options.items())
            violations = f"{outcome.avoidable_violation_rate:.3%}"[:-1]
            rows.append([f"{agent} on {cell}", violations, f"{outcome.mean_cores:.2f}", options])
    return "\n".join(aligned(rows))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="python -m baselines.tune", description=__doc__.split("\n")[0])
    known = sorted(SEARCHES.keys() - {YARDSTICK})
    parser.add_argument("--suite", default="standard", help="suite whose cells are tuned for")
    parser.add_argument(
        "--agents",
        nargs="+",
        type=cli.one_of("agent", known),
        default=known,
        metavar="NAME",
        help=f"what to tune: {', '.join(known)}; default: all",
    )
    parser.add_argument("--seeds", type=cli.at_least(1), default=5, help="episodes of each try")
    parser.add_argument("--jobs", type=cli.at_least(1), default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=TUNED_FILE, help="default: %(default)s")
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> int:
    """Tune, write the file and print a table."""
    arguments = parse(argv)
    check_writable(arguments.out)
    suite = dataclasses.replace(load_suite(arguments.suite), starts=("warm",))
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + arguments.seeds)
    with cli.terminate_like_interrupt():
        found = tune(cells(suite), arguments.agents, seeds, arguments.jobs)
    save(arguments.out, found, suite.name, seeds)
    sys.stdout.write(f"{table(found)}\n\nwritten to {arguments.out}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
