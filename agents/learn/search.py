"""Search the hyper-parameters of a learner with optuna, on training seeds.

    python -m agents.learn.search --agent ppo --scenario paper [--trials 20] [--steps 200000]

Each trial trains a policy from the start and is judged now and then, on the episodes on which
``train.py`` judges. A trial that falls behind the median of the others is given up. The first
trial has the default hyper-parameters. All trials are in a file, so that the same command goes
on where it was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.learners import LEARNERS
from sponge_env import cli
from sponge_env.console import Progress
from sponge_env.errors import ConfigError, unknown
from sponge_env.files import check_writable, saying_why
from sponge_env.results.layout import aligned
from sponge_env.scenario import load_scenario

SHOWN = 5
"""Trials in the table."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="python -m agents.learn.search", description=__doc__.split("\n")[0])
    parser.add_argument("--agent", default="ppo", help=f"what learns: {', '.join(LEARNERS)}")
    parser.add_argument("--scenario", default="paper", help="what it learns (default: paper)")
    parser.add_argument("--also", nargs="+", default=[], metavar="S", help="further scenarios")
    parser.add_argument("--profile", metavar="P", help="latency profile instead of the scenario's")
    parser.add_argument("--trials", type=cli.at_least(1), default=20, help="default: 20")
    parser.add_argument(
        "--steps", type=cli.at_least(1), default=200_000, help="of each trial (default: 200000)"
    )
    parser.add_argument("--envs", type=cli.at_least(1), help="default: as train.py")
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="default: 0")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="holds all trials; one that exists is gone on with "
        "(default: runs/search-AGENT-SCENARIO.log)",
    )
    arguments = parser.parse_args(argv)
    if arguments.agent not in LEARNERS:
        raise ConfigError(unknown("agent to train", arguments.agent, LEARNERS))
    return arguments


def search(argv: Sequence[str]) -> int:
    """Search, and print the best."""
    arguments = parse(argv)
    names = [arguments.scenario, *arguments.also]
    scenarios = [load_scenario(name) for name in names]
    profile = arguments.profile or scenarios[0].profile
    path = arguments.out or Path("runs") / f"search-{arguments.agent}-{scenarios[0].name}.log"
    with saying_why(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    # PyTorch takes seconds to import; bad input should not wait for it.
    from agents.learn.plan import TrainingPlan
    from agents.learn.study import Search, import_optuna, open_study

    import_optuna()
    plan = TrainingPlan(
        scenarios=tuple(replace(each, profile=profile) for each in scenarios),
        steps=arguments.steps,
        envs=arguments.envs or LEARNERS[arguments.agent].envs,
        seed=arguments.seed,
        folder=Path(),
        agent=arguments.agent,
    )
    _ = plan.spec  # notices scenarios that do not go together
    wanted = Search(plan, scenarios[0].reward.violation_weight)
    study = open_study(wanted, path)
    with cli.terminate_like_interrupt():
        run_trials(wanted, study, arguments.trials)
    sys.stdout.write(f"{report(study, arguments)}\n")
    return 0


def run_trials(wanted: Any, study: Any, trials: int) -> None:
    """Run trials until so many have ended."""
    from agents.learn.study import finished

    progress = Progress("search", trials, "trial")
    while (done := finished(study)) < trials:
        progress.show(done)
        study.optimize(wanted.score, n_trials=1)
    progress.close()


def report(study: Any, arguments: argparse.Namespace) -> str:
    """Return the best trials as a table, and the command that trains with the best."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    ranked = sorted(complete, key=lambda trial: -trial.value)
    shown = [*ranked[:SHOWN], *(trial for trial in ranked[SHOWN:] if _default(trial))]
    names = list(ranked[0].params)
    rows = [["trial", "score", "cores", "avoidable %", *names]]
    rows += [_row(trial, names) for trial in shown]
    command = ["python", "train.py", "--agent", arguments.agent, "--scenario", arguments.scenario]
    command += ["--profile", arguments.profile] if arguments.profile else []
    command += ["--also", *arguments.also] if arguments.also else []
    command += ["--steps", str(arguments.steps)]
    command += ["--envs", str(arguments.envs)] if arguments.envs else []
    for name, value in ranked[0].params.items():
        command += ["--option", f"{name}={value:.4g}"]
    return "\n".join([*aligned(rows), "", "train with the best:", shlex.join(command)])


def _row(trial: Any, names: Sequence[str]) -> list[str]:
    name = f"{trial.number} (defaults)" if _default(trial) else str(trial.number)
    cores = f"{trial.user_attrs['cores']:.2f}"
    avoidable = f"{100 * trial.user_attrs['avoidable_violation_rate']:.3f}"
    values = [f"{trial.params[name]:.4g}" for name in names]
    return [name, f"{trial.value:.4f}", cores, avoidable, *values]


def _default(trial: Any) -> bool:
    return "defaults" in trial.user_attrs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(search, argv)


if __name__ == "__main__":
    sys.exit(main())
