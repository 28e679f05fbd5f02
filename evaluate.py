#!/usr/bin/env python3
"""Compare controllers on one scenario, simulated or real, or on a whole suite of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from agents.learners import LEARNERS
from sponge_env import cli
from sponge_env.config import Start
from sponge_env.errors import ConfigError
from sponge_env.files import check_writable
from sponge_env.interfaces import Controller
from sponge_env.registry import known_controllers, make_controller

if TYPE_CHECKING:
    from sponge_env.experiment import Experiment

NOT_FOR_SUITES = (
    *("scenario", "backend", "trace", "arrivals", "limiter", "duration", "start"),
    *("policy", "solver", "json"),
)
"""Options that a suite says itself, or that it has no use for."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        description=__doc__,
        epilog="example: python evaluate.py --agent sponge-ip fa2 static-16 --seeds 3",
    )
    parser.add_argument(
        "--agent",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(sorted(known_controllers()))}, or your own controller as module:Class",
    )
    cli.add_experiment_arguments(parser)
    parser.add_argument(
        "--start",
        type=cli.one_of("start", get_args(Start)),
        help="cold, or warm: with the allocation that the agent settles on under the mean load",
    )
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="length of an episode")
    parser.add_argument(
        "--seeds",
        type=cli.at_least(1),
        metavar="N",
        help="run seeds 0 .. N-1 (default: 1, or as the suite says)",
    )
    add_agent_settings(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summaries here")
    add_suite_arguments(parser)
    arguments = parser.parse_args(argv)
    check_together(parser, arguments)
    return arguments


def add_agent_settings(parser: cli.Parser) -> None:
    """Add the options that go to single agents."""
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy of the learned agent (default: the newest in runs/, else the shipped one)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="AGENT.KEY=VALUE",
        help="setting of an agent, e.g. sponge-ip.formulation=paper; may be repeated",
    )
    parser.add_argument(
        "--solver",
        metavar="NAME",
        help="how sponge-ip solves its program: exact (default), pulp or highs",
    )


def add_suite_arguments(parser: cli.Parser) -> None:
    """Add the options of suites."""
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="run agents x scenarios x seeds as a shipped suite or TOML file says: standard, "
        "quick; with --agent only these agents, with the --run-dir of an earlier run what is "
        "missing there",
    )
    parser.add_argument(
        "--jobs",
        type=cli.at_least(1),
        metavar="N",
        help="processes of a suite (default: one per CPU)",
    )


def check_together(parser: cli.Parser, arguments: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    if not (arguments.suite or arguments.agent):
        parser.error("the following arguments are required: --agent, or --suite")
    for name in NOT_FOR_SUITES if arguments.suite else ["jobs"]:
        if getattr(arguments, name) != parser.get_default(name):
            relation = "does not go with" if arguments.suite else "needs"
            raise ConfigError(f"--{name} {relation} --suite")


def make_controllers(arguments: argparse.Namespace) -> dict[str, Controller]:
    """Make every controller before anything runs, so that mistakes show at once."""
    chosen = [*arguments.option]
    if arguments.policy:
        learned = [name for name in arguments.agent if name in LEARNERS]
        if len(learned) != 1:
            raise ConfigError(f"--policy is for one agent of {', '.join(LEARNERS)}")
        chosen.append(f"{learned[0]}.policy={arguments.policy}")
    if arguments.solver:
        if "sponge-ip" not in arguments.agent:
            raise ConfigError("--solver is for the agent sponge-ip, which is not among the agents")
        chosen.append(f"sponge-ip.solver={arguments.solver}")
    options = cli.parse_options(chosen, arguments.agent)
    registry = known_controllers()
    return {name: make_controller(name, registry, options.get(name)) for name in arguments.agent}


def evaluate(argv: Sequence[str]) -> int:
    """Run all episodes, print the table, and say where everything is."""
    arguments = parse(argv)
    sys.path.append(str(Path.cwd()))  # where a user's own controllers lie
    if arguments.suite:
        from sponge_env.suite.command import evaluate_suite

        return evaluate_suite(arguments, ["python", "evaluate.py", *argv])
    scenario = cli.chosen_scenario(arguments, arguments.duration)
    if arguments.start:
        scenario = dataclasses.replace(scenario, start=arguments.start)
    controllers = make_controllers(arguments)
    # Recording and plotting take a while to import; bad input should not wait for them.
    from sponge_env.experiment import Experiment

    if arguments.json:
        check_writable(arguments.json)
    experiment = Experiment.open(
        scenario,
        arguments.backend,
        arguments.limiter,
        arguments.run_dir,
        {key: str(value) for key, value in vars(arguments).items()},
        ["python", "evaluate.py", *argv],
        controllers,
    )
    for name, controller in controllers.items():
        if description := getattr(controller, "description", ""):
            print(f"agent {name} {description}")
    try:
        with cli.terminate_like_interrupt():
            finished = experiment.run(arguments.seeds or 1)
    finally:
        report(experiment, arguments.json)
    if finished and arguments.backend == "sim":
        print("\nOn the real worker: add --backend live --scenario local")
    return 0 if finished else cli.INTERRUPTED


def report(experiment: Experiment, json: Path | None) -> None:
    """Print what there is, also after an interrupt or a failure."""
    from sponge_env.results.tables import comparison_table, write_summaries

    summaries = [episode.summary for episode in experiment.episodes]
    if not summaries:
        return
    print(comparison_table(summaries))
    if any(episode.intervals for episode in experiment.episodes):
        print(f"\nplot         {experiment.plot()}")
    print(f"TensorBoard  tensorboard --logdir {experiment.directory.path}")
    if json:
        write_summaries(json, summaries)
        print(f"summaries    {json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
