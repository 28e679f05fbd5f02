"""Search the hyper-parameters of a learner with optuna, on training seeds.

    python -m agents.learn.search --agent sb3-ppo --scenario paper [--trials 20] [--steps 200000]

Each trial trains a policy from the start and is validated now and then, on the episodes on which
``train.py`` validates. A trial that falls behind the median of the others is given up. The first
trial has the default hyper-parameters. All trials are in a file, so that the same command goes
on where it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.results.layout import aligned
from sponge_env.scenario.scenario import load_scenario
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable, explained
from sponge_env.utils.installation import require_extra

from . import TrainingPlan, learn_config
from .command import add_plan_arguments, plan_of

SHOWN = 5
"""Trials in the table."""
VALIDATIONS = 5
"""Of each trial."""
TRIALS_BEFORE_PRUNING = 4
"""Trials that run to their end whatever they do."""
_STUDY = "search"
"""Its name in the file."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What all trials share."""

    plan: TrainingPlan
    """Plan of a trial, but for the folder."""
    weight: float
    """Cost of a violated request in the score: the same for all trials, whatever weight they
    learn with."""

    def rated(self, result: Any) -> float:
        """Return the score of a validation."""
        score: float = result.score(self.weight, self.plan.scenarios[0].reward.accuracy_weight)
        return score

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same where a search goes on, as JSON has it."""
        plan = self.plan
        return {
            "agent": plan.agent,
            "scenarios": [scenario.name for scenario in plan.scenarios],
            "profile": plan.scenarios[0].profile,
            **{name: getattr(plan, name) for name in ("steps", "envs", "seed")},
            "weight": self.weight,
        }

    def score(self, trial: Any) -> float:
        """Train with a trial's hyper-parameters; return the best validation."""
        # PyTorch takes seconds to import; bad input should not wait for it.
        from .training import Validation, train

        results: list[Validation] = []

        def validated(_steps: int, result: Validation) -> None:
            results.append(result)
            trial.report(self.rated(result), len(results))
            if trial.should_prune():
                raise import_optuna().TrialPruned

        drawn = {**suggest(trial, self.weight), "evaluations": VALIDATIONS}
        config = learn_config(self.plan.agent, drawn)
        with tempfile.TemporaryDirectory() as folder:
            train(replace(self.plan, folder=Path(folder)), config, validated=validated)
        best = max(results, key=self.rated)
        for name in ("cores", "avoidable_violation_rate"):
            trial.set_user_attr(name, getattr(best, name))
        return self.rated(best)


def suggest(trial: Any, weight: float) -> dict[str, Any]:
    """Draw hyper-parameters; the weight of violations is drawn around the given one."""
    number = trial.suggest_float
    return {
        "learning_rate": number("learning_rate", 3e-4, 1e-2, log=True),
        "entropy": number("entropy", 1e-5, 1e-2, log=True),
        "minibatch": trial.suggest_categorical("minibatch", (256, 512, 1024, 2048, 4096)),
        "epochs": trial.suggest_int("epochs", 1, 8),
        "gamma": number("gamma", 0.5, 0.99),
        "violation_weight": number("violation_weight", weight / 4, weight * 8, log=True),
    }


def defaults(agent: str, weight: float) -> dict[str, Any]:
    """Return the hyper-parameters that :func:`suggest` draws, with their default values."""
    config = learn_config(agent, {"violation_weight": weight})
    names = ("learning_rate", "entropy", "minibatch", "epochs", "gamma", "violation_weight")
    return {name: getattr(config, name) for name in names}


def import_optuna() -> ModuleType:
    """Import optuna; a MissingExtraError names what to install."""
    require_extra("search", "the search of hyper-parameters")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(objective: Objective, path: Path) -> Any:
    """Begin an optuna study in a file, or go on with the one that is there.

    Its first trial has the default hyper-parameters. A file that holds another search, or
    something else, is refused.
    """
    optuna = import_optuna()
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        storage = optuna.storages.JournalStorage(backend)
        begun = optuna.get_all_study_names(storage) == [_STUDY]
        if path.stat().st_size and not begun:
            raise ConfigError("no study of that name")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no search: {error}") from error
    open_it = optuna.load_study if begun else partial(optuna.create_study, direction="maximize")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING)
    study = open_it(study_name=_STUDY, storage=storage, pruner=pruner)
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", objective.settings)
    before = study.user_attrs["settings"]
    changed = [key for key, value in objective.settings.items() if before.get(key) != value]
    if changed:
        was = ", ".join(f"{key} {before.get(key)}" for key in changed)
        raise ConfigError(f"{path} holds a search with {was}; go on with that or choose --out")
    waiting = any(trial.state.name == "WAITING" for trial in study.trials)
    if not waiting and not finished(study):
        first = defaults(objective.plan.agent, objective.weight)
        study.enqueue_trial(first, user_attrs={"defaults": True})
    # Another seed at each start, or a search that goes on would draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=objective.plan.seed + len(study.trials))
    return study


def finished(study: Any) -> int:
    """Return the number of trials that ended, given up or not."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="python -m agents.learn.search", description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", default="paper", help="what it learns (default: paper)")
    parser.add_argument("--profile", metavar="P", help="latency profile instead of the scenario's")
    parser.add_argument("--trials", type=cli.at_least(1), default=20, help="default: 20")
    add_plan_arguments(parser, "sb3-ppo", steps=200_000)
    said = "holds all trials; one that exists is gone on with"
    said += " (default: runs/search-AGENT-SCENARIO.log)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=said)
    return parser.parse_args(argv)


def search(argv: Sequence[str]) -> int:
    """Search, and print the best."""
    arguments = parse(argv)
    scenarios = [load_scenario(name) for name in (arguments.scenario, *arguments.also)]
    profile = arguments.profile or scenarios[0].profile
    path = arguments.out or Path("runs") / f"search-{arguments.agent}-{scenarios[0].name}.log"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    require_extra("train", "training")
    import_optuna()
    plan = plan_of(arguments, [replace(each, profile=profile) for each in scenarios])
    if plan.phased:
        raise ConfigError(
            f"{plan.agent} learns one model in phases, which are not searched; sb3-ppo and others "
            "do not"
        )
    objective = Objective(plan, scenarios[0].reward.violation_weight)
    study = open_study(objective, path)
    progress = Progress("search", arguments.trials, "trial")
    with cli.terminate_like_interrupt(), contextlib.closing(progress):
        while (done := finished(study)) < arguments.trials:
            progress.show(done)
            study.optimize(objective.score, n_trials=1)
    sys.stdout.write(f"{report(study, arguments)}\n")
    return 0


def report(study: Any, arguments: argparse.Namespace) -> str:
    """Return the best trials as a table, and the command that trains with the best."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    ranked = sorted(complete, key=lambda trial: -trial.value)
    best, standard = ranked[0].params, [t for t in ranked[SHOWN:] if "defaults" in t.user_attrs]
    rows = [["trial", "score", "cores", "avoidable %", *best]]
    rows += [_row(trial, list(best)) for trial in [*ranked[:SHOWN], *standard]]
    command = ["python", "train.py", "--agent", arguments.agent, "--scenario", arguments.scenario]
    for key in ("profile", "also", "steps", "envs"):
        if value := getattr(arguments, key):
            command += [f"--{key}", *(value if key == "also" else [str(value)])]
    for name, value in best.items():
        command += ["--option", f"{name}={value:.4g}"]
    return "\n".join([*aligned(rows), "", "train with the best:", shlex.join(command)])


def _row(trial: Any, names: Sequence[str]) -> list[str]:
    found = trial.user_attrs
    name = f"{trial.number}{' (defaults)' * ('defaults' in found)}"
    avoidable = f"{100 * found['avoidable_violation_rate']:.3f}"
    values = [f"{trial.params[name]:.4g}" for name in names]
    return [name, f"{trial.value:.4f}", f"{found['cores']:.2f}", avoidable, *values]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(search, argv)


if __name__ == "__main__":
    sys.exit(main())
