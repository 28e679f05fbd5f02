"""The clairvoyant bounds of a suite's cells, and those that ship.

    python -m sponge_env.run.bounds [--suite paper]

A bound takes seconds for each episode and is a fact about a scenario, a profile and a seed,
whoever is compared with it. So those of the shipped suites are in :data:`SHIPPED`, made by the
command above. Others are found when they are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sponge_env import cli
from sponge_env.errors import ConfigError, SpongeError
from sponge_env.metrics import NAN, EpisodeMetrics
from sponge_env.run.cluster import executor_of
from sponge_env.run.executor import Executor, Failure
from sponge_env.run.rollout import Run
from sponge_env.run.store import RunStore, fingerprint, scenario_fingerprint
from sponge_env.run.suite import (
    BOUND_AGENTS,
    SIDES,
    SUITE_DIR,
    BoundName,
    Suite,
    cell_name,
    cells,
    load_suite,
    only,
)
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.traffic import capacity_rps, rate_rps
from sponge_env.simulation.workload import draw_workload
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable, replacing

if TYPE_CHECKING:
    from sponge_env.run.unit import Recorder

SHIPPED = SUITE_DIR / "bounds.json"
"""By cell and kind: the fingerprint of the scenario, and each seed's bound."""


@dataclass(frozen=True, slots=True)
class BoundUnit:
    """The bound of one cell; a unit of work like an agent's."""

    control: BoundName
    scenario: Scenario
    seeds: int
    first_seed: int = 0

    @property
    def agent(self) -> str:
        """Name in the results."""
        return BOUND_AGENTS[self.control]

    def fingerprint(self) -> str:
        """Return what stands for everything that the result depends on but the code."""
        parts = {"control": self.control, "seeds": self.seeds, "first": self.first_seed}
        return fingerprint(parts | {"scenario": scenario_fingerprint(self.scenario)})

    def run(self, record: Recorder) -> None:
        """Bound all seeds, or recall what was found before, as ``bounds``."""
        record.facts["bounds"] = [
            {"seed": seed, **dict(zip(SIDES, numbers, strict=True))}
            for seed, numbers in enumerate(self.found(), self.first_seed)
        ]

    def found(self) -> list[tuple[float, ...]]:
        """Return :data:`SIDES` of each seed."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        known = shipped(self.scenario, self.control)[seeds.start : seeds.stop]
        if len(known) < self.seeds:
            return [bound_of(self.scenario, seed, self.control) for seed in seeds]
        return [tuple(numbers) for numbers in known]


def bound_units(suite: Suite) -> list[BoundUnit]:
    """Return the bounds that a suite asks for, but of cells that are overloaded all the time.

    The search has no end in them, and the least violations say nothing. Cells with stages have
    no bound.
    """
    bounded = [cell for cell in cells(suite) if not cell.stages]
    if not (bounded or suite.agents):
        raise ConfigError(f"{suite.name!r} has stages, which have no bound; name agents")
    asked = product(suite.bounds, bounded)
    seeds = suite.seeds, suite.first_seed
    return [BoundUnit(kind, cell, *seeds) for kind, cell in asked if _in_reach(kind, cell)]


def _in_reach(control: BoundName, scenario: Scenario) -> bool:
    """Return whether the mean rate can be served; what cannot be played says so itself."""
    try:
        profile = scenario_profile(scenario)
        most_rps = capacity_rps(scenario, profile, control == "joint")
        return rate_rps(scenario, profile) <= most_rps
    except SpongeError:
        return True


def bound_rows(
    store: RunStore, work: Sequence[Any], episodes: Sequence[EpisodeMetrics]
) -> list[EpisodeMetrics]:
    """Return what each bound attains on each seed, as a row beside agents.

    Which of its violations are avoidable is known where an agent met the same requests.
    """
    hopeless = {episode.seed: episode.hopeless for episode in episodes if not episode.partial}
    rows = []
    for unit in (unit for unit in work if isinstance(unit, BoundUnit)):
        scenario = unit.scenario
        from_s, end_s = scenario.count_from_s, scenario.intervals * scenario.interval_s
        for bound in store.kept(unit).get("bounds", ()):
            run = Run.of(unit.agent, scenario, "sim", bound["seed"])
            arrival_s = draw_workload(scenario, scenario_profile(scenario), run.seed).arrival_s
            offered = max(1, np.count_nonzero((arrival_s >= from_s) & (arrival_s < end_s)))
            violations = bound["violations_upper"]
            measured = {
                "duration_s": end_s - from_s,
                "violation_rate": violations / offered,
                "avoidable_violation_rate": (violations - hopeless.get(run.seed, NAN)) / offered,
                "mean_cores": bound["core_seconds_upper"] / (end_s - from_s),
            }
            rows.append(EpisodeMetrics(**asdict(run), **measured))
    return rows


def bound_of(scenario: Scenario, seed: int, control: BoundName) -> tuple[float, ...]:
    """Return :data:`SIDES` of an episode: what a controller that knows the future can reach."""
    from sponge_env.oracle import bound  # compiled; only bounds need it

    found = bound(scenario, seed, joint=control == "joint")
    return tuple(round(float(getattr(found, side)), 4) for side in SIDES)


def shipped(scenario: Scenario, control: BoundName) -> list[list[float]]:
    """Return :data:`SIDES` of the first seeds as they ship; none for a changed scenario."""
    entry = _shipped().get(cell_name(scenario), {}).get(control)
    if entry is None or entry["scenario"] != scenario_fingerprint(scenario):
        return []
    return cast(list[list[float]], entry["seeds"])


@cache
def _shipped() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(SHIPPED.read_text())) if SHIPPED.exists() else {}


def find_bounds(units: Sequence[BoundUnit], executor: Executor) -> dict[str, dict[str, Any]]:
    """Bound cells in parallel; return what :data:`SHIPPED` holds."""
    progress = Progress("bounds", len(units), "cell")
    found: dict[str, dict[str, Any]] = {}
    with closing(progress), closing(executor.run(BoundUnit.found, units)) as results:
        for done, (unit, result) in enumerate(results, start=1):
            name = cell_name(unit.scenario)
            if isinstance(result, Failure):
                raise ConfigError(f"no {unit.control} bound of {name}: {result.message}")
            entry = {"scenario": scenario_fingerprint(unit.scenario), "seeds": result}
            found.setdefault(name, {})[unit.control] = entry
            progress.show(done)
    return found


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = cli.Parser(
        prog="python -m sponge_env.run.bounds",
        description="Find the clairvoyant bounds that ship with a suite.",
    )
    parser.add_argument("--suite", default="paper", help="shipped suite or TOML file")
    cli.add_cells(parser)
    cli.add_workers(parser)
    parser.add_argument("--out", type=Path, default=SHIPPED, help=argparse.SUPPRESS)
    cli.add_trust(parser)
    arguments = parser.parse_args(argv)
    suite, executor = only(load_suite(arguments.suite), arguments.cells), executor_of(arguments)
    check_writable(arguments.out)
    with cli.terminate_like_interrupt():
        found = find_bounds(bound_units(suite), executor)
    lines = []
    for name, kinds in sorted({**_shipped(), **found}.items()):  # those of other cells stay
        entries = [f'  "{kind}": {json.dumps(entry)}' for kind, entry in sorted(kinds.items())]
        lines.append(f'"{name}": {{\n' + ",\n".join(entries) + "\n}")
    with replacing(arguments.out) as partial:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
