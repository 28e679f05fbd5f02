#!/usr/bin/env python3
"""Train a learned controller on one scenario, on the simulator or on the real worker."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli
from sponge_env.errors import ConfigError, unknown

LEARNERS = ("ppo",)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        description=__doc__, epilog="example: python train.py --agent ppo --scenario paper"
    )
    parser.add_argument("--agent", default="ppo", help="what learns (default: ppo)")
    cli.add_experiment_arguments(parser)
    parser.add_argument(
        "--steps",
        type=cli.at_least(1),
        default=1_000_000,
        help="environment steps over all environments (default: 1000000)",
    )
    parser.add_argument(
        "--envs",
        type=cli.at_least(1),
        help="simulated environments (default: 256); the live system is one",
    )
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="default: 0")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="run directory or checkpoint.zip to go on from"
    )
    arguments = parser.parse_args(argv)
    if arguments.agent not in LEARNERS:
        raise ConfigError(unknown("agent to train", arguments.agent, LEARNERS))
    if arguments.backend == "live" and arguments.envs not in (None, 1):
        raise ConfigError(f"the live system is one environment, not {arguments.envs}")
    if arguments.resume is not None and arguments.resume.is_dir():
        arguments.resume /= "checkpoint.zip"
    return arguments


def train(argv: Sequence[str]) -> int:
    """Train and say where the policy is."""
    arguments = parse(argv)
    scenario = cli.chosen_scenario(arguments)
    # PyTorch takes seconds to import; bad input should not wait for it.
    from agents import ppo
    from sponge_env.console import Progress
    from sponge_env.experiment import check_scenario
    from sponge_env.recording import RunDirectory

    check_scenario(scenario, arguments.backend, arguments.limiter)
    if arguments.resume is not None:
        ppo.check_checkpoint(arguments.resume, scenario)
    settings = {key: str(value) for key, value in vars(arguments).items()}
    command = ["python", "train.py", *argv]
    purpose = f"train-{arguments.agent}-{scenario.name}"
    directory = RunDirectory.create(arguments.run_dir, scenario, settings, command, purpose)
    plan = ppo.TrainingPlan(
        scenario=scenario,
        steps=arguments.steps,
        envs=arguments.envs or (256 if arguments.backend == "sim" else 1),
        seed=arguments.seed,
        folder=directory.path,
        backend=arguments.backend,
        limiter=arguments.limiter,
        resume=arguments.resume,
    )
    progress = Progress(f"training {arguments.agent}", plan.steps, "step")
    with cli.terminate_like_interrupt(), contextlib.closing(progress):
        policy = ppo.train(plan, progress=progress.show)
    print(f"policy       {policy}")
    print(f"evaluate it  python evaluate.py --agent ppo --scenario {arguments.scenario}")
    print(f"TensorBoard  tensorboard --logdir {directory.path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(train, argv)


if __name__ == "__main__":
    sys.exit(main())
