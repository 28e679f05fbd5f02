"""Tune the baselines for every cell of a suite, on training seeds.

    python -m baselines.tune [--suite standard] [--agents hpa vpa ...] [--seeds 5] [--out FILE]

For each scenario, profile and start, Optuna looks for the best options of :mod:`.searches`.
``tuned.json`` keeps them, each as soon as it is best, and says what best means:

    {"runs": {RUN: {"command", "suite", "starts", "seeds", "objective", "searches", "versions"}},
     "agents": {AGENT: {"cells": {CELL: {"options", ..., "conditions", "run": RUN}}}}}
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.run.cluster import executor_of
from sponge_env.run.executor import Executor, Failure
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, play_together, run_episode, warm
from sponge_env.run.store import conditions_fingerprint
from sponge_env.run.suite import cells, load_suite
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable, write_json
from sponge_env.utils.installation import describe_versions, require_extra

from . import TUNED_FILE, cell_key, load_tuned
from .searches import IN_PIPELINES, SEARCHES, TOLERANCE, YARDSTICK, Candidate, Grid

TRIALS = 120
"""Combinations of options that are tried at most on a cell."""
_VIOLATIONS_PRICE = 1e6
"""Cores that a share of violations beyond the allowed ones counts for, so that they come first."""

OBJECTIVE = (
    "fewest avoidable violations beyond the tolerance and those of static with all cores "
    "and its best batch size (unsaved), as shares of all requests; of equal ones the fewest "
    "mean cores, with two more for each percent of accuracy lost; of equal ones the first tried"
)


@dataclass(frozen=True, slots=True)
class Task:
    """One controller on one cell."""

    agent: str
    scenario: Scenario
    seeds: tuple[int, ...]
    unsaved: float = 0.0
    """Avoidable violations of the yardstick, as a share of all requests."""

    def fingerprint(self) -> str:
        """Return what stands for the content of all files that it names."""
        return conditions_fingerprint(self.scenario)

    @property
    def cell(self) -> str:
        """Name of the cell in ``tuned.json``."""
        return cell_key(*self.scenario.cell)

    @property
    def grid(self) -> Grid:
        """Where to look for its options."""
        several = len(self.scenario.pipeline) > 1
        grid = (several and IN_PIPELINES.get(self.agent)) or SEARCHES[self.agent]
        all_cores = tuple(range(1, self.scenario.limits.cores + 1))
        return {name: values or all_cores for name, values in grid.items()}

    @property
    def allowed(self) -> float:
        """Share of avoidable violations that counts as none."""
        return self.unsaved + (TOLERANCE if self.agent != YARDSTICK else 0.0)

    def try_options(self, options: dict[str, Any], to_beat: Candidate | None = None) -> Candidate:
        """Run the seeds: all of them, unless the options fall behind others before.

        Each episode only adds violations and cores, which are shares and means of all seeds from
        the beginning; so options that are behind stay behind.
        """
        profile, seeds = scenario_profile(self.scenario), len(self.seeds)
        controller = make_controller(self.agent, known_controllers(), options)
        scenario = warm(self.scenario, controller, profile)
        best = (max(v.accuracy for v in stage.variants) for stage in self.scenario.pipeline)
        best_accuracy = math.prod(best) or 1.0
        offered, violations, cores, lost = 0, 0.0, 0.0, 0.0
        runs = [Run.of(self.agent, scenario, "sim", seed) for seed in self.seeds]
        together = play_together(scenario, profile, controller, runs)
        for run in runs:
            if (episode := together.get(run.seed)) is None:
                system = SimulatedSystem(scenario, run.seed, profile)
                episode = run_episode(system, controller, run)
            summary = episode.summary
            offered += summary.offered
            violations += summary.avoidable_violation_rate * summary.offered
            cores += summary.mean_cores
            if not math.isnan(summary.accuracy):
                lost += 100 * (1 - summary.accuracy / best_accuracy)
            total = to_beat.offered if to_beat else offered
            candidate = Candidate(
                options,
                violations / max(1, total),
                cores / seeds,
                total,
                percent_lost=max(0.0, lost / seeds),
            )
            if to_beat and candidate.rank(self.allowed) > to_beat.rank(self.allowed):
                break
        return candidate


def tune_cell(task: Task) -> Candidate:
    """Search the best options of a task.

    The defaults come first. Optuna proposes the others: all of a small grid, else those that its
    estimator expects to be good.
    """
    optuna, grid, best = import_optuna(), task.grid, task.try_options({})
    size, tried = math.prod(map(len, grid.values())), dict[str, Candidate]()
    small, samplers = size <= TRIALS, optuna.samplers
    sampler = samplers.GridSampler(grid, 0) if small else samplers.TPESampler(seed=0)

    def objective(trial: Any) -> float:
        nonlocal best
        options = {name: trial.suggest_categorical(name, v) for name, v in grid.items()}
        if (key := repr(options)) not in tried:
            tried[key] = task.try_options(options, best)
        candidate = tried[key]
        if candidate.rank(task.allowed) < best.rank(task.allowed):
            best = candidate
        violations, cores = candidate.rank(task.allowed)
        return _VIOLATIONS_PRICE * violations + cores

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=size if small else TRIALS)
    return best


def import_optuna() -> ModuleType:
    """Import optuna; a MissingExtraError names what to install."""
    require_extra("search", "tuning")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def tune(
    scenarios: Sequence[Scenario],
    agents: Sequence[str],
    seeds: Sequence[int],
    executor: Executor,
    keep: Callable[[Mapping[str, Mapping[str, Candidate]]], None],
) -> dict[str, dict[str, Candidate]]:
    """Return the best trials by controller and cell; among these is the yardstick.

    ``keep`` is given all results so far each time that a controller is done with a cell.
    A ConfigError says on which cell a controller failed.
    """
    best: dict[str, dict[str, Candidate]] = {agent: {} for agent in (YARDSTICK, *agents)}
    measures = [Task(YARDSTICK, scenario, tuple(seeds)) for scenario in scenarios]
    progress = Progress("tuning", len(measures) * (1 + len(agents)), "task")

    def collect(tasks: Sequence[Task]) -> None:
        with closing(executor.run(tune_cell, tasks)) as results:
            for task, result in results:
                if isinstance(result, Failure):
                    reason = f"{result.type}: {result.message}"
                    raise ConfigError(f"{task.agent} failed on {task.cell} ({reason})")
                best[task.agent][task.cell] = result
                keep(best)
                progress.show(sum(map(len, best.values())), f"{task.agent} on {task.cell}")

    collect(measures)
    unsaved = {cell: best.avoidable_violation_rate for cell, best in best[YARDSTICK].items()}
    replace = dataclasses.replace
    collect([replace(t, agent=a, unsaved=unsaved[t.cell]) for t in measures for a in agents])
    progress.close()
    return {agent: dict(sorted(cells.items())) for agent, cells in best.items()}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what is in a file; nothing is, if there is none."""
    return load_tuned(path) if path.is_file() else {"runs": {}, "agents": {}}


def write(
    path: Path, run: str, about: Mapping[str, Any], best: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put tuned cells, by agent, in the place of their old entries.

    Runs, which are named by their date, go when no cell names them any more.
    """
    data = read(path)
    agents, runs = data["agents"], {**data["runs"], run: dict(about)}
    for agent, tuned in best.items():
        old = agents.get(agent, {}).get("cells", {})
        new = {cell: {**entry, "run": run} for cell, entry in tuned.items()}
        agents[agent] = {"cells": dict(sorted({**old, **new}.items()))}
    named = {entry["run"] for agent in agents.values() for entry in agent["cells"].values()}
    kept = {name: runs[name] for name in sorted(runs) if name in named}
    write_json(path, {"runs": kept, "agents": dict(sorted(agents.items()))})


def run(argv: Sequence[str]) -> int:
    """Tune, and write the file."""
    parser = cli.Parser(prog="python -m baselines.tune", description=__doc__.split("\n")[0])
    add, known = parser.add_argument, sorted(SEARCHES.keys() - {YARDSTICK})
    add("--suite", default="standard", help="suite whose cells are tuned for")
    text, name = f"what to tune: {', '.join(known)}; default: all", cli.one_of("agent", known)
    add("--agents", nargs="+", type=name, default=known, metavar="NAME", help=text)
    add("--seeds", type=cli.at_least(1), default=5, help="episodes of each try")
    add("--out", type=Path, default=TUNED_FILE, help="default: %(default)s")
    cli.add_workers(parser)
    cli.add_trust(parser)
    arguments = parser.parse_args(argv)
    import_optuna()
    executor = executor_of(arguments)
    check_writable(arguments.out)
    read(arguments.out)  # a file that is something else is noticed now
    suite = load_suite(arguments.suite)
    scenarios = {cell_key(*scenario.cell): scenario for scenario in cells(suite)}
    seeds = list(range(EVALUATION_SEEDS, EVALUATION_SEEDS + arguments.seeds))
    date, tuned_for = datetime.now(UTC).isoformat(timespec="seconds"), Path(arguments.suite).name
    words = ["python", "-m", "baselines.tune", "--suite", tuned_for, "--seeds", str(len(seeds))]
    searched = sorted({YARDSTICK, *arguments.agents})
    # What is to be known of a run, without anything that belongs to the machine.
    about = {
        "command": shlex.join([*words, "--agents", *arguments.agents]),
        "suite": tuned_for,
        "starts": list(suite.starts),
        "seeds": seeds,
        "objective": OBJECTIVE,
        "tolerance": TOLERANCE,
        "searches": {n: SEARCHES[n] for n in searched},
        "searches_in_pipelines": {n: IN_PIPELINES[n] for n in searched if n in IN_PIPELINES},
        "versions": describe_versions(),
    }

    def keep(best: Mapping[str, Mapping[str, Candidate]]) -> None:
        yardstick = best[YARDSTICK]
        more = {
            cell: {
                "unsaved": yardstick[cell].avoidable_violation_rate,
                "conditions": conditions_fingerprint(scenarios[cell]),
            }
            for cell in yardstick
        }
        tuned = {
            agent: {cell: dataclasses.asdict(o) | more[cell] for cell, o in trials.items()}
            for agent, trials in best.items()
            if agent != YARDSTICK and trials
        }
        write(arguments.out, date, about, tuned)

    with cli.terminate_like_interrupt():
        tune(list(scenarios.values()), arguments.agents, seeds, executor, keep)
    sys.stdout.write(f"written to {arguments.out}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
