"""Play a run's recorded allocations again: ``sponge validate RUN``."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sponge_env import cli
from sponge_env.errors import ConfigError, RunDirectoryError
from sponge_env.interfaces import Allocation
from sponge_env.metrics import CELL, summary
from sponge_env.run.executor import Failure
from sponge_env.scenario.config import Initial
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.spec import check_allocation
from sponge_env.utils.console import Progress
from sponge_env.utils.installation import require_extra

OF_CONTROLLERS = ("decision_p50_s", "decision_p99_s", "guarded", "infeasible_decisions")
"""Metrics of an episode that allocations do not determine."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode of a run's suite, and what the run has kept of it."""

    agent: str
    scenario: Scenario  # As the agent began it
    seed: int
    metrics: dict[str, Any]  # Empty if there is no result
    allocations: list[Allocation]  # One for each interval

    def differences(self) -> list[str]:
        """Return in what the replay differs; no code of the run's is needed, or executed."""
        from sponge_env.run.rollout import Replay, Run, run_episode
        from sponge_env.simulation.system import SimulatedSystem

        if not self.metrics:
            return ["there is no result"]
        if (count := len(self.allocations)) != self.scenario.intervals:
            return [f"{count} of {self.scenario.intervals} intervals are there"]
        run = Run.of(self.agent, self.scenario, "sim", self.seed)
        system = SimulatedSystem(self.scenario, self.seed)
        for allocation in self.allocations:
            check_allocation(allocation, system.spec, ready=(1,))  # others may start
        found = summary(run_episode(system, Replay(self.allocations), run).summary)
        return [
            f"{name} is {self.metrics.get(name)} in the run, {value} in the replay"
            for name, value in found.items()
            if name not in OF_CONTROLLERS and not _is_same(self.metrics.get(name), value)
        ]


def _is_same(recorded: Any, found: Any) -> bool:
    numbers = isinstance(recorded, float) and isinstance(found, float)
    return bool(recorded == found or (numbers and math.isclose(recorded, found, abs_tol=1e-12)))


def recorded(path: Path) -> Iterator[Recorded]:
    """Yield all episodes of the suite of a simulated run, those without a result included."""
    # A cold episode begins as the scenario does, a warm one as the run says.
    from sponge_env.run.read import load_intervals
    from sponge_env.run.store import identity, read_result, result_files, whole_episodes
    from sponge_env.run.suite import BOUND_AGENTS, Suite, cells
    from sponge_env.scenario.toml import from_mapping
    from sponge_env.utils.files import read_json

    files, about = result_files(path), read_json(path / "run.json")
    if about.get("backend") != "sim":
        raise ConfigError(f"{str(path)!r} is no simulated run, so there is no replay")
    actual = identity(suite := from_mapping(Suite, about.get("definition", {})))
    if not suite.agents or any(about.get(n) != actual[n] for n in ("seeds", "first_seed", "cells")):
        text = "has other cells or seeds than it says, or a profile or trace has changed since"
        raise RunDirectoryError(f"{str(path)!r} {text}")
    results = {(each["agent"], *(each[n] for n in CELL)): each for each in map(read_result, files)}
    if others := {agent for agent, *_ in results} - {*suite.agents, *BOUND_AGENTS.values()}:
        raise RunDirectoryError(f"{str(path)!r} has results of an unnamed agent, {min(others)!r}")
    intervals = load_intervals(path, ("requested_cores", "batch", "replicas"))
    asked = dict(iter(intervals.groupby(["agent", *CELL, "seed"])))
    for agent, cell in product(suite.agents, cells(suite)):
        if cell.stages:
            raise ConfigError(f"a run with stages has no replay: {'+'.join(cell.cell)}")
        result, scenario = results.get((agent, *cell.cell), {"error": None}), cell
        if cell.start == "warm" and "initial" in result:
            if not isinstance(result["initial"], dict):
                raise RunDirectoryError(f"{str(path)!r} is damaged: it has no initial allocation")
            scenario = cell.starting_with([from_mapping(Initial, result["initial"])])
        episodes = {} if result["error"] else {e["seed"]: e for e in whole_episodes(result)}
        for seed in suite.seed_range:
            own = asked.get((agent, *cell.cell, seed), intervals[:0])
            rows = own[["requested_cores", "batch", "replicas"]].itertuples(index=False, name=None)
            asked_for = [Allocation(*row) for row in rows]
            yield Recorded(agent, scenario, seed, episodes.get(seed, {}), asked_for)


@cli.command
def main(argv: Sequence[str]) -> int:
    """Say whether the run is what the simulator makes of its allocations; 1 if it is not."""
    from sponge_env.run.cluster import executor_of

    parser = cli.Parser(prog="sponge validate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that evaluate.py wrote")
    cli.add_workers(parser)
    arguments = parser.parse_args(argv)
    require_extra("report", "validate")
    episodes, found = list(recorded(arguments.run)), dict[str, list[str]]()
    progress = Progress("replays", len(episodes), "episode")
    results = executor_of(arguments).run(Recorded.differences, episodes)
    with cli.terminate_like_interrupt(), closing(progress), closing(results):
        for done, (e, result) in enumerate(results, start=1):
            lines = [result.message] if isinstance(result, Failure) else result
            found[f"{e.agent}, {'+'.join(e.scenario.cell)}, seed {e.seed}"] = lines
            progress.show(done)
    for name in sorted(found):
        sys.stdout.writelines(f"{name}: {line}\n" for line in found[name])
    differ = sum(map(bool, found.values()))
    sys.stdout.write(f"{differ} of {len(episodes)} episodes differ from their replay\n")
    return int(differ > 0)
