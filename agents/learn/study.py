"""A search for hyper-parameters: what a trial is, and the file that holds all of them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from agents.learn.judge import Verdict
from agents.learn.plan import TrainingPlan, learn_config
from agents.learn.train import train
from sponge_env.errors import ConfigError

EVALUATIONS = 5
"""Judgements of each trial."""
TRIALS_BEFORE_PRUNING = 4
"""Trials that run to their end whatever the judgements."""
_STUDY = "search"
"""Its name in the file."""
MINIBATCHES = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Search:
    """What all trials share."""

    plan: TrainingPlan
    """Plan of a trial, but for the folder."""
    weight: float
    """Cost of a violated request in the score: the same for all trials, whatever weight they
    learn with."""

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same where a search goes on, as JSON has it."""
        plan = self.plan
        return {
            "agent": plan.agent,
            "scenarios": [scenario.name for scenario in plan.scenarios],
            "profile": plan.scenarios[0].profile,
            "steps": plan.steps,
            "envs": plan.envs,
            "seed": plan.seed,
            "weight": self.weight,
        }

    def score(self, trial: Any) -> float:
        """Train with a trial's hyper-parameters; return the best judgement.

        Raises:
            TrialPruned: The trial is given up.
        """
        verdicts: list[Verdict] = []

        def judged(_steps: int, verdict: Verdict) -> None:
            verdicts.append(verdict)
            trial.report(verdict.score(self.weight), len(verdicts))
            if trial.should_prune():
                raise import_optuna().TrialPruned

        drawn = suggest(trial, self.weight)
        config = learn_config(self.plan.agent, {**drawn, "evaluations": EVALUATIONS})
        with tempfile.TemporaryDirectory() as folder:
            train(replace(self.plan, folder=Path(folder)), config, judged=judged)
        best = max(verdicts, key=lambda verdict: verdict.score(self.weight))
        trial.set_user_attr("cores", best.cores)
        trial.set_user_attr("avoidable_violation_rate", best.avoidable_violation_rate)
        return best.score(self.weight)


def suggest(trial: Any, weight: float) -> dict[str, Any]:
    """Draw hyper-parameters.

    Args:
        trial: An optuna trial.
        weight: Weight of violations around which that of the reward is drawn.
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        "entropy": trial.suggest_float("entropy", 1e-5, 1e-2, log=True),
        "minibatch": trial.suggest_categorical("minibatch", MINIBATCHES),
        "epochs": trial.suggest_int("epochs", 1, 8),
        "gamma": trial.suggest_float("gamma", 0.5, 0.99),
        "violation_weight": trial.suggest_float(
            "violation_weight", weight / 4, weight * 8, log=True
        ),
    }


def defaults(agent: str, weight: float) -> dict[str, Any]:
    """Return the hyper-parameters that :func:`suggest` draws, with their default values."""
    config = learn_config(agent, {"violation_weight": weight})
    names = ("learning_rate", "entropy", "minibatch", "epochs", "gamma", "violation_weight")
    return {name: getattr(config, name) for name in names}


def import_optuna() -> ModuleType:
    """Import optuna, which only development installs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("the search needs optuna; install it with: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(search: Search, path: Path) -> Any:
    """Begin a study in a file, or go on with the one that is there.

    Returns:
        An optuna study; its first trial has the default hyper-parameters.

    Raises:
        ConfigError: The file holds another search, or something else.
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
    _check_settings(study, search, path)
    waiting = any(trial.state.name == "WAITING" for trial in study.trials)
    if not waiting and not finished(study):
        study.enqueue_trial(
            defaults(search.plan.agent, search.weight), user_attrs={"defaults": True}
        )
    # Another seed at each start, or a search that goes on would draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=search.plan.seed + len(study.trials))
    return study


def _check_settings(study: Any, search: Search, path: Path) -> None:
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", search.settings)
        return
    changed = [key for key, value in search.settings.items() if before.get(key) != value]
    if changed:
        was = ", ".join(f"{key} {before.get(key)}" for key in changed)
        raise ConfigError(f"{path} holds a search with {was}; go on with that or choose --out")


def finished(study: Any) -> int:
    """Return the number of trials that ended, given up or not."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)
