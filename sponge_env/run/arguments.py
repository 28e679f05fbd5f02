"""The command line of ``evaluate.py``, and the suite that it means."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from sponge_env import cli
from sponge_env.config import Start
from sponge_env.errors import ConfigError
from sponge_env.run.controllers import known_controllers, who_takes
from sponge_env.run.suite import (
    AgentEntry,
    CellGroup,
    Suite,
    load_suite,
    with_agents,
    with_options,
)
from sponge_env.scenario import load_scenario

NOT_FOR_SUITES = (
    *("scenario", "backend", "profile", "trace", "arrivals", "limiter", "duration", "start"),
    *("policy", "solver", "json"),
)
"""Options that a suite says itself, or that it has no use for."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ConfigError: An option is unknown, has a bad value, or would be ignored.
    """
    parser = cli.Parser(
        prog=cli.program("evaluate"),
        description="Compare controllers on one scenario, simulated or real, or on a whole suite.",
        epilog=f"example: {cli.program('evaluate')} --agent sponge-ip fa2 static-16 --seeds 3",
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
    _add_agent_settings(parser)
    _add_output(parser)
    arguments = parser.parse_args(argv)
    if not (arguments.suite or arguments.agent):
        parser.error("the following arguments are required: --agent, or --suite")
    for name in NOT_FOR_SUITES if arguments.suite else ["jobs"]:
        if getattr(arguments, name) != parser.get_default(name):
            relation = "does not go with" if arguments.suite else "needs"
            raise ConfigError(f"--{name} {relation} --suite")
    return arguments


def _add_agent_settings(parser: cli.Parser) -> None:
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="policy of the learned agent (default: the newest in runs/, else the shipped one)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="AGENT.KEY=VALUE",
        help="setting of an agent, e.g. static.cores=5; may be repeated",
    )
    parser.add_argument(
        "--solver", metavar="NAME", help="how the agent with a program solves it, e.g. pulp"
    )


def _add_output(parser: cli.Parser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summaries here")
    parser.add_argument(
        "--requests",
        type=_first_seeds,
        metavar="N",
        help="seeds of which every request is kept: all, none, or how many "
        "(default: all, none of a suite)",
    )
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="run agents x scenarios x seeds as a shipped suite or TOML file says: standard, "
        "quick; with --agent only these agents",
    )
    parser.add_argument(
        "--jobs",
        type=cli.at_least(1),
        metavar="N",
        help="processes of a suite (default: one per CPU)",
    )


def _first_seeds(text: str) -> float:
    """Return how many seeds keep their requests."""
    if text in ("all", "none"):
        return math.inf if text == "all" else 0
    return cli.at_least(0)(text)


def chosen_suite(arguments: argparse.Namespace) -> Suite:
    """Return the suite that the arguments name, or make one of one cell.

    Raises:
        ConfigError: Something about it cannot be used.
    """
    if arguments.suite:
        suite = with_agents(load_suite(arguments.suite), arguments.agent or ())
    else:
        scenario = load_scenario(arguments.scenario)
        profile = arguments.profile or scenario.profile
        changes = cli.scenario_changes(arguments)
        if arguments.duration is not None:
            changes["duration_s"] = arguments.duration
        suite = Suite(
            name=scenario.name,
            seeds=1,
            starts=(arguments.start or scenario.start,),
            cells=(CellGroup((arguments.scenario,), (profile,), changes),),
            agents={name: AgentEntry() for name in arguments.agent},
        )
    chosen = [*arguments.option]
    for name in ("policy", "solver"):
        if value := getattr(arguments, name):
            agent = who_takes(name, arguments.agent, known_controllers())
            chosen.append(f"{agent}.{name}={value}")
    suite = with_options(suite, cli.parse_options(chosen, list(suite.agents)))
    return replace(suite, seeds=arguments.seeds) if arguments.seeds else suite
