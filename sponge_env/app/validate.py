"""Play a run's recorded allocations again: ``sponge validate RUN``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sponge_env import cli
from sponge_env.errors import ConfigError, RunDirectoryError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView
from sponge_env.metrics import CELL, summary
from sponge_env.run.executor import Failure
from sponge_env.scenario.config import Initial
from sponge_env.scenario.scenario import Scenario
from sponge_env.utils.console import Progress
from sponge_env.utils.installation import require_extra

OF_CONTROLLERS = ("decision_p50_s", "decision_p99_s", "guarded", "infeasible_decisions")
"""Metrics of an episode that allocations do not determine."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode that a run has kept."""

    scenario: Scenario
    """As the agent began it."""
    metrics: dict[str, Any]
    allocations: list[tuple[int, int, int]]
    """Cores, batch and replicas of each interval."""

    def differences(self) -> list[str]:
        """Return in what the replay differs; no code of the run's is needed, or executed."""
        from sponge_env.run.rollout import Run, run_episode
        from sponge_env.simulation.system import SimulatedSystem

        agent, seed = self.metrics["agent"], self.metrics["seed"]
        named = f"{agent}, {'+'.join(self.scenario.cell)}, seed {seed}"
        if len(self.allocations) != self.scenario.intervals:
            return [f"{named}: {len(self.allocations)} of {self.scenario.intervals} intervals"]
        run = Run.of(agent, self.scenario, "sim", seed)
        system = SimulatedSystem(self.scenario, seed)
        found = summary(run_episode(system, _Replay(self.allocations), run).summary)
        return [
            f"{named}: {name} is {self.metrics.get(name)} in the run, {value} in the replay"
            for name, value in found.items()
            if name not in OF_CONTROLLERS and not _is_same(self.metrics.get(name), value)
        ]


class _Replay:
    def __init__(self, allocations: Sequence[tuple[int, int, int]]) -> None:
        self._allocations = allocations

    def reset(self, spec: SystemSpec, seed: int) -> None:
        self._next = iter(self._allocations)

    def decide(self, view: SystemView) -> Allocation:
        return Allocation(*next(self._next))


def _is_same(recorded: Any, found: Any) -> bool:
    numbers = isinstance(recorded, float) and isinstance(found, float)
    return bool(recorded == found or (numbers and math.isclose(recorded, found, abs_tol=1e-12)))


def recorded(path: Path) -> Iterator[Recorded]:
    """Yield the episodes of a simulated run.

    A ConfigError says of which there is no replay, a RunDirectoryError what is damaged.
    """
    from sponge_env.run.read import load_intervals
    from sponge_env.run.store import read_result, result_files, whole_episodes
    from sponge_env.run.suite import Suite, cells, changed
    from sponge_env.scenario.toml import from_mapping
    from sponge_env.utils.files import read_json

    files, about = result_files(path), read_json(path / "run.json")
    if about.get("backend") != "sim":
        raise ConfigError(f"{str(path)!r} is no simulated run, so there is no replay")
    suite = from_mapping(Suite, about.get("definition", {}))
    played = {scenario.cell: scenario for scenario in cells(suite)}
    intervals = load_intervals(path, ("requested_cores", "batch", "replicas"))
    asked = dict(iter(intervals.groupby(["agent", *CELL, "seed"])))
    for result in map(read_result, files):
        for metrics in whole_episodes(result):
            of_cell = tuple(metrics[name] for name in CELL)
            if of_cell not in played or metrics["agent"] not in suite.agents:
                raise RunDirectoryError(f"{str(path)!r} has {of_cell}, which its suite has not")
            scenario = changed(played[of_cell], suite.agents[metrics["agent"]].changes)
            if scenario.stages:
                raise ConfigError(f"a run with stages has no replay: {'+'.join(scenario.cell)}")
            scenario = scenario.starting_with([from_mapping(Initial, result.get("initial", {}))])
            own = asked.get((metrics["agent"], *of_cell, metrics["seed"]), intervals[:0])
            rows = own[["requested_cores", "batch", "replicas"]].itertuples(index=False, name=None)
            yield Recorded(scenario, metrics, list(rows))


@cli.command
def main(argv: Sequence[str]) -> int:
    """Say whether the run is what the simulator makes of its allocations; 1 if it is not."""
    from sponge_env.run.cluster import executor_of

    parser = cli.Parser(prog="sponge validate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that evaluate.py wrote")
    cli.add_workers(parser)
    arguments = parser.parse_args(argv)
    require_extra("report", "validate")
    episodes, found = list(recorded(arguments.run)), list[str]()
    progress = Progress("replays", len(episodes), "episode")
    results = executor_of(arguments).run(Recorded.differences, episodes)
    with cli.terminate_like_interrupt(), closing(progress), closing(results):
        for done, (episode, result) in enumerate(results, start=1):
            failed = isinstance(result, Failure)
            found += [f"{episode.metrics['agent']}: {result.message}"] if failed else result
            progress.show(done)
    text = f"{len(episodes)} episodes were played again; {len(found)} metrics differ"
    sys.stdout.write("\n".join([*found, text]) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
