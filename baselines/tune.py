"""Tune controllers for every profile of a suite, with one budget, on training seeds.

    python -m baselines.tune [--suite standard-v1] [--agents hpa fa2 ...] [--out FILE]

Every controller is tuned once for a profile, over all of its cells, as an operator would. Optuna
proposes options within the ranges of :mod:`.searches`. Those with the lowest geometric mean of the
cells' :func:`cost_cores` go into ``tuned.json`` if they beat the defaults on other seeds, too:

    {"agents": {AGENT: {PROFILE: {"options", "cost_cores", "configurations", "episodes"}}}}
"""

import math
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, cycle, product
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.interfaces import ACCURACY_PRICE
from sponge_env.metrics import MET
from sponge_env.run.cluster import executor_of
from sponge_env.run.executor import Executor, Failure
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode, warm
from sponge_env.run.store import scenario_fingerprint
from sponge_env.run.suite import cells, load_suite, only
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import TRAINING_SEEDS
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.system import SimulatedSystem
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable, write_json
from sponge_env.utils.installation import require_extra

from . import TUNED_FILE, load_tuned
from .searches import SEARCHES, Range, Space, Values

CONFIGURATIONS = 200  # Combinations of options that are tried for each controller and profile
CHECKED = range(TRAINING_SEEDS[-1] + 1, TRAINING_SEEDS[-1] + 4)  # Seeds of the last comparison
ROUNDS = 4  # How often that many are tried at most, if the best lies at the end of its range


def cost_cores(cores: float, missed: float) -> float:
    """Return the cores of a cell, multiplied by how far it exceeds the objective, if it does.

    ``missed`` is the share of avoidable violations.
    """
    return cores * max(1.0, missed / MET)


@dataclass(frozen=True, slots=True)
class Task:
    """A controller and the cells that it is tuned for: all of a profile, or of the same stages."""

    agent: str
    profile: str
    scenarios: tuple[Scenario, ...]
    configurations: int = CONFIGURATIONS

    def fingerprint(self) -> str:
        """Return what stands for the content of all files that it names."""
        return "".join(map(scenario_fingerprint, self.scenarios))

    def costs(self, options: Values, seeds: Sequence[int] = TRAINING_SEEDS) -> Iterator[float]:
        """Yield the logarithm of each cell's :func:`cost_cores`, with the next of the seeds."""
        # The order is the same for all options, and random, so that the first few stand for all.
        cells = random.Random(0).sample(self.scenarios, len(self.scenarios))
        for cell, seed in zip(cells, cycle(seeds), strict=False):
            yield math.log(self._play(cell, seed, options))

    def checked(self, options: Values) -> float:
        """Return the geometric mean of all cells' costs with each seed of :data:`CHECKED`."""
        return math.exp(fmean(chain.from_iterable(self.costs(options, [s]) for s in CHECKED)))

    def _play(self, cell: Scenario, seed: int, options: Values) -> float:
        profile = scenario_profile(cell)
        controller = make_controller(self.agent, known_controllers(), options)
        scenario = warm(cell, controller, profile)
        run = Run.of(self.agent, scenario, "sim", seed)
        summary = run_episode(SimulatedSystem(scenario, seed, profile), controller, run).summary
        best = math.prod(max(v.accuracy for v in stage.variants) for stage in cell.pipeline)
        lost = 0.0 if math.isnan(summary.accuracy) else 100 * (1 - summary.accuracy / (best or 1.0))
        cores = summary.mean_cores + ACCURACY_PRICE * max(0.0, lost)
        return max(1.0, cost_cores(cores, summary.avoidable_violation_rate))


def tune_task(task: Task) -> dict[str, Any]:
    """Search the best options of a task."""
    # The defaults come first. If the best value lies at the end of its range, the range is widened
    # and as many combinations are tried again, at most :data:`ROUNDS` times in all.
    best = defaults = (math.exp(fmean(task.costs({}))), Values())
    space, tried, widest = SEARCHES[task.agent], 1, None
    while space != widest and tried <= ROUNDS * task.configurations:
        best, widest = _search(task, space, best), space
        tried += task.configurations
        space = {
            name: own.widened(best[1][name]) if isinstance(own, Range) and name in best[1] else own
            for name, own in space.items()
        }
    # The best of many is lucky, too. So it has to be better than the defaults on other seeds.
    if best[1] and task.checked(best[1]) >= task.checked({}):
        best = defaults
    found = {"options": best[1], "cost_cores": round(best[0], 4), "configurations": tried}
    return {**found, "episodes": len(task.scenarios)}


def _search(task: Task, space: Space, best: tuple[float, Values]) -> tuple[float, Values]:
    optuna = import_optuna()

    def objective(trial: Any) -> float:
        nonlocal best
        options: Values = {}
        for name, own in space.items():
            if not isinstance(own, Range):
                options[name] = trial.suggest_categorical(name, own)
            elif own.whole:
                options[name] = trial.suggest_int(name, own.low, own.high, log=own.log)
            else:
                value = trial.suggest_float(name, own.low, own.high, log=own.log)
                options[name] = float(f"{value:.4g}")
        costs = []
        for played, cost in enumerate(task.costs(options), start=1):
            costs.append(cost)
            trial.report(fmean(costs), played)
            if trial.should_prune():
                raise optuna.TrialPruned
        if math.exp(fmean(costs)) < best[0]:
            best = math.exp(fmean(costs)), options
        return fmean(costs)

    # After 4, 8 and 16 cells the worse half is not played any further.
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0, multivariate=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=4, reduction_factor=2),
    )
    study.optimize(objective, n_trials=task.configurations)
    return best


def import_optuna() -> ModuleType:
    """Import optuna; a MissingExtraError names what to install."""
    require_extra("search", "tuning")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def tasks(scenarios: Sequence[Scenario], agents: Sequence[str], configurations: int) -> list[Task]:
    """Return what there is to tune."""
    own: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        own.setdefault(scenario.cell[1], []).append(scenario)
    pairs = product(agents, own.items())
    return [Task(agent, key, tuple(each), configurations) for agent, (key, each) in pairs]


def tune(work: Sequence[Task], executor: Executor, out: Path) -> None:
    """Tune, and keep each result in a file at once; a ConfigError says where one failed."""
    progress, failed = Progress("tuning", len(work), "task"), list[str]()
    with closing(progress), closing(executor.run(tune_task, work)) as results:
        for done, (task, result) in enumerate(results, start=1):
            if isinstance(result, Failure):
                failed.append(f"{task.agent} failed on {task.profile} ({result})")
            else:
                write(out, task, result)
            progress.show(done, f"{task.agent} on {task.profile}")
    if failed:
        raise ConfigError("; ".join(failed))


def write(path: Path, task: Task, found: dict[str, Any]) -> None:
    """Put what was found in the place of what was there."""
    agents = load_tuned(path)
    agents[task.agent] = dict(sorted({**agents.get(task.agent, {}), task.profile: found}.items()))
    write_json(path, {"agents": dict(sorted(agents.items()))})


@cli.command
def main(argv: Sequence[str]) -> int:
    """Tune, and write the file."""
    parser = cli.Parser(prog="python -m baselines.tune", description=__doc__.split("\n")[0])
    add, known = parser.add_argument, sorted(SEARCHES)
    add("--suite", default="standard-v1", help="suite whose cells are tuned for")
    cli.add_cells(parser)
    text, name = f"what to tune: {', '.join(known)}; default: all", cli.one_of("agent", known)
    add("--agents", nargs="+", type=name, default=known, metavar="NAME", help=text)
    text = "combinations of options that are tried (default: %(default)s)"
    add("--configurations", type=cli.at_least(1), default=CONFIGURATIONS, metavar="N", help=text)
    add("--out", type=Path, default=TUNED_FILE, help="default: %(default)s")
    cli.add_workers(parser)
    cli.add_trust(parser)
    arguments = parser.parse_args(argv)
    import_optuna()
    executor = executor_of(arguments)
    check_writable(arguments.out)
    load_tuned(arguments.out)  # a file that is something else is noticed now
    with cli.terminate_like_interrupt():
        played = cells(only(load_suite(arguments.suite), arguments.cells))
        tune(tasks(played, arguments.agents, arguments.configurations), executor, arguments.out)
    sys.stdout.write(f"written to {arguments.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
