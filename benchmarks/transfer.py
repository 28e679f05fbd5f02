"""Train ``ppo-joint`` on one scenario, follow it in the others.

    python -m benchmarks.transfer --profile yolov5s [--suite standard] [--steps 2000000]

A row says what a policy was trained on, the last one on all of it, for as many steps as each of
the others; a column where it is followed, the guard off: cores relative to the best rule's there,
avoidable violations in brackets. The episodes are on seeds that no training uses. The idea of the
table is RLScale-Bench's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from agents.learn import TrainingPlan
from agents.learn.command import cells_of
from agents.learn.judge import Judge, Judgement, best_rules, judgement
from agents.learn.phases import ENVS, PhasedConfig
from agents.policy import Policy, load_policy
from benchmarks.judged import reported, unused_seed
from sponge_env import cli
from sponge_env.results.layout import aligned
from sponge_env.scenario.scenario import Scenario
from sponge_env.utils.console import Progress

EPISODES = 10
"""Of each scenario in which a policy is followed."""


def trained(scenarios: Sequence[Scenario], steps: int, seed: int) -> Policy:
    """Return a policy that was trained on some scenarios."""
    # PyTorch takes seconds to import; bad input should not wait for it.
    from agents.learn.phased import train

    what = scenarios[0].name if len(scenarios) == 1 else f"{len(scenarios)} scenarios"
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Progress(f"training on {what}", steps, "step")) as progress,
    ):
        plan = TrainingPlan(tuple(scenarios), steps, ENVS, seed, Path(folder), "ppo-joint")
        return load_policy(train(plan, PhasedConfig(), progress.show))


def row_of(name: str, followed: Judgement, rule: Judgement) -> list[str]:
    """Return a line of the table."""
    cells = zip(followed.cores / rule.cores, followed.violation_rate, strict=True)
    return [name, *(f"{share:.2f} ({rate:.2%})" for share, rate in cells)]


def run(argv: Sequence[str]) -> int:
    """Train, and print the table."""
    parser = cli.Parser(prog="python -m benchmarks.transfer", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--profile", required=True, help="latency profile to train for")
    add("--suite", default="standard", help="whose cells (default: standard)")
    said = "of each training (default: 2000000)"
    add("--steps", type=cli.at_least(1), default=2_000_000, help=said)
    add("--seed", type=cli.at_least(0), default=0, help="of the trainings (default: 0)")
    arguments = parser.parse_args(argv)
    scenarios = tuple(cells_of(arguments.suite, arguments.profile))
    first = unused_seed(PhasedConfig())
    judge = Judge(scenarios, EPISODES, first)
    rule = judgement(best_rules(True, scenarios, EPISODES, first))
    names = [each.name for each in scenarios]
    rows = []
    for name, some in [*((each.name, [each]) for each in scenarios), ("all", scenarios)]:
        followed = judge(trained(some, arguments.steps, arguments.seed))
        rows.append(reported(row_of(name, followed, rule)))
    print("\n".join(aligned([["trained on", *names], *rows])))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; what goes wrong is one sentence."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
