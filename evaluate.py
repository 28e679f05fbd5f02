#!/usr/bin/env python3
"""Compare controllers on one scenario, on the simulator or on the real worker."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agents import CONTROLLERS as AGENTS
from agents.policy import PolicyController, find_policy, load_policy
from baselines import CONTROLLERS as BASELINES
from sponge_env import cli
from sponge_env.errors import ConfigError, PolicyError
from sponge_env.files import check_writable
from sponge_env.interfaces import Controller
from sponge_env.registry import make_controller
from sponge_env.scenario import Scenario

if TYPE_CHECKING:
    from sponge_env.experiment import Experiment

REGISTRY = {**AGENTS, **BASELINES}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        description=__doc__,
        epilog="example: python evaluate.py --agent sponge-ip fa2 static-16 --seeds 3",
    )
    parser.add_argument(
        "--agent",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"{', '.join(sorted(REGISTRY))}, or your own controller as module:Class",
    )
    cli.add_experiment_arguments(parser)
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="length of an episode")
    parser.add_argument(
        "--seeds", type=cli.at_least(1), default=1, metavar="N", help="run seeds 0 .. N-1"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="policy.npz for ppo (default: the newest)"
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summaries here")
    return parser.parse_args(argv)


def make_controllers(arguments: argparse.Namespace, scenario: Scenario) -> dict[str, Controller]:
    """Make every controller before anything runs, so that mistakes show at once."""
    sys.path.append(str(Path.cwd()))  # where a user's own controllers lie
    if arguments.policy and "ppo" not in arguments.agent:
        raise ConfigError("--policy is for the agent ppo, which is not among the agents")
    if arguments.solver and "sponge-ip" not in arguments.agent:
        raise ConfigError("--solver is for the agent sponge-ip, which is not among the agents")
    solver = [f"sponge-ip.solver={arguments.solver}"] if arguments.solver else []
    options = cli.parse_options([*arguments.option, *solver], arguments.agent)
    if "ppo" in options:
        raise ConfigError("the agent ppo has no options; its policy says all")
    return {
        name: learned(arguments.policy, scenario)
        if name == "ppo"
        else make_controller(name, REGISTRY, options.get(name))
        for name in arguments.agent
    }


def learned(path: Path | None, scenario: Scenario) -> PolicyController:
    """Load the policy that was asked for, or the newest that fits."""
    path = path or find_policy(scenario.system_hash, Path("runs"))
    if path is not None and path.is_dir():
        path /= "policy.npz"
    if path is None:
        raise PolicyError(
            f"no policy for scenario {scenario.name!r} in runs/; name one with --policy or "
            f"train one with: python train.py --agent ppo --scenario {scenario.name}"
        )
    controller = PolicyController(load_policy(path))
    controller.check(scenario.system_hash, scenario.name)
    print(f"agent ppo follows {path}, trained for {controller.policy.info.steps} steps")
    return controller


def evaluate(argv: Sequence[str]) -> int:
    """Run all episodes, print the table, and say where everything is."""
    arguments = parse(argv)
    scenario = cli.chosen_scenario(arguments, arguments.duration)
    controllers = make_controllers(arguments, scenario)
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
    )
    try:
        with cli.terminate_like_interrupt():
            finished = experiment.run(controllers, arguments.seeds)
    finally:
        report(experiment, arguments.json)
    if finished and arguments.backend == "sim":
        print("\nOn the real worker: add --backend live --scenario local")
    return 0 if finished else cli.INTERRUPTED


def report(experiment: Experiment, json: Path | None) -> None:
    """Print what there is, also after an interrupt or a failure."""
    from sponge_env.tables import comparison_table, write_summaries

    summaries = [episode.summary for episode in experiment.episodes]
    if not summaries:
        return
    print(comparison_table(summaries))
    if any(episode.windows for episode in experiment.episodes):
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
