"""The command line that trains a learned controller, without the learner.

The body is :mod:`.learn.command`, which takes a while to import.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.utils.installation import imported

from . import LEARNERS

CONDITIONS = "--trace", "--random-start", "--arrivals", "--rate", "--load", "--drop"
FOLLOWED = "--scenario", "--profile", *CONDITIONS  # Options that the policy's evaluation has, too
NOT_WITH_A_SUITE = "--scenario", "--also", *CONDITIONS  # Options for what a suite defines already
MACHINES = (16, 8, 16, 32, 16, 4)  # Cores of those on which random systems run, in turn
STEPS, FEW_STEPS, MANY_STEPS, ENVS = 8_000_000, 2_000_000, 40_000_000, 1152
"""Default steps of a training, of one from a policy, of one on random systems; environments."""


def machines(count: int) -> list[int]:
    """Return the cores of the machine of each of so many random systems."""
    return [MACHINES[k % len(MACHINES)] for k in range(count)]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        prog=cli.program("train"),
        description="Train a learned controller on the simulator. On the real worker train any "
        "learner in SpongeLive-v0, and follow a model of Stable-Baselines3 as --agent sb3:FILE.",
        epilog=f"example: {cli.program('train')} --agent ppo --scenario paper",
    )
    cli.add_experiment_arguments(parser)
    add, known = parser.add_argument, cli.one_of("agent to train", LEARNERS)
    text = f"what learns: {', '.join(LEARNERS)} (default: ppo)"
    add("--agent", default="ppo", type=known, help=text)
    text = "further scenarios of the same profile and limits to train on"
    add("--also", nargs="+", default=[], metavar="S", help=text)
    text = (
        f"over all environments (default: {STEPS}; {FEW_STEPS} if it begins with a policy, "
        f"{MANY_STEPS} on random systems)"
    )
    add("--steps", type=cli.at_least(1), help=text)
    add("--envs", type=cli.at_least(1), default=ENVS, help=f"environments (default: {ENVS})")
    add("--seed", type=cli.at_least(0), default=0, help="default: 0")
    text = "train with each of these seeds, in processes or on a cluster, a folder each"
    add("--seeds", type=cli.seed_range, metavar="N|A-B", help=text)
    cli.add_workers(parser)
    text = "train on a suite's cells of the profile, started cold, in place of scenarios"
    add("--suite", metavar="S", help=text)
    text = "instead of a profile: those cells of the suite that serve this scenario's stages"
    add("--like", metavar="S", help=text)
    text = "scenarios of the suite that are not trained on, to see how it does there"
    add("--held-out", nargs="+", default=[], metavar="S", help=text)
    text = "learn on so many random systems at a time: a policy for any model (e.g. 192)"
    add("--systems", type=cli.at_least(len(MACHINES)), default=0, metavar="N", help=text)
    text = "let some of the environments run random variants of the scenarios"
    add("--randomised", action="store_true", help=text)
    text = "hyper-parameter, e.g. learning_rate=1e-3 or hidden=128,128; may be repeated"
    add("--option", action="append", default=[], metavar="KEY=VALUE", help=text)
    text = (
        "what to begin with: programs to imitate, or a policy's file (default: the shipped policy "
        "for any model, if it has the same inputs and choices)"
    )
    add("--start", metavar="programs|FILE", help=text)
    text = "run folder whose policy to go on with, to the planned steps; needs its other options"
    add("--resume", type=Path, metavar="RUN", help=text)
    arguments = parser.parse_args(argv)
    for option, value in (("--held-out", arguments.held_out), ("--like", arguments.like)):
        if value and arguments.suite is None:
            raise ConfigError(f"{option} is about the cells of a --suite")
    not_with_systems = "--suite", "--profile", *NOT_WITH_A_SUITE, "--randomised"
    for option, asked, others in (
        ("--suite", arguments.suite is not None, NOT_WITH_A_SUITE),
        ("--systems", arguments.systems, not_with_systems),
    ):
        if asked and (given := cli.split_options(argv, others)[0]):
            raise ConfigError(f"{option} says what to train on; leave out {given[0]}")
    if arguments.start and arguments.resume:
        raise ConfigError("--resume goes on with the policy of its run; leave out --start")
    if arguments.systems and arguments.ray is not None:
        raise ConfigError("random systems are files of this machine; leave out --ray")
    for option in arguments.option:
        if not re.fullmatch("[^.=]+=.*", option):
            raise ConfigError(f"--option must have the form KEY=VALUE, not {option!r}")
    return arguments


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    arguments = parse(argv)  # bad input does not wait for the learner
    name = "train" if arguments.seeds is None else "train_each"
    return int(imported(f"{__package__}.learn.command:{name}")(arguments, argv))
