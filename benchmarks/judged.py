"""How policies that were learned in phases do beside the best rule of each scenario.

    python -m benchmarks.judged POLICY ... --profile yolov5s [--suite standard-v1] [--episodes 10]
        [--first-seed N] [--keep FILE]
    python -m benchmarks.judged POLICY ... --suite stages --like pipeline-video

The scenarios are a suite's cells of the profile, or of a scenario's stages, started cold. All play
the same episodes without a guard, by default on seeds that no training and no evaluation uses.
Avoidable violations are in brackets; with variants, cores include the cost of
lost accuracy. ``--keep`` writes the median policy, by the scores with which the trainings kept
them, to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.learn import LearnConfig, spec_of
from agents.learn.command import cells_of
from agents.learn.evaluation import Evaluation, PolicyEvaluator, best_rules
from agents.learned import control_of
from agents.policy import PolicyInfo, load_policy, save_policy
from sponge_env import cli
from sponge_env.errors import PolicyError
from sponge_env.results.layout import aligned
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT


def median_of(scores: Sequence[float]) -> int:
    """Return the place of the median, of an even number the worse of the two in the middle."""
    return int(np.argsort(scores, kind="stable")[len(scores) // 2])


def table(
    scenarios: Sequence[Scenario], policies: Mapping[str, Evaluation], rule: Evaluation
) -> str:
    """Return cores and violations of each scenario, and of all: cores relative to the rule's."""
    columns = {"best rule": rule, **policies}
    rows = [["cores", *columns]]
    for k, scenario in enumerate(scenarios):
        pairs = ((each.cores[k], each.violation_rate[k]) for each in columns.values())
        rows.append([scenario.name, *(f"{cores:.2f} ({rate:.3%})" for cores, rate in pairs)])
    ratios = [each.cores / rule.cores for each in columns.values()]
    missed = (each.violation_rate.mean() for each in columns.values())
    rows += [
        ["cores / rule's", *(f"{np.exp(np.log(ratio).mean()):.3f}" for ratio in ratios)],
        ["violations", *(f"{rate:.3%}" for rate in missed)],
        ["fewer cores in", *(str((ratio < 1).sum()) for ratio in ratios)],
    ]
    return "\n".join(aligned(rows))


def check(paths: Sequence[Path], infos: Sequence[PolicyInfo], scenario: Scenario) -> None:
    """Refuse policies without a score, or of another system."""
    spec = spec_of(scenario)
    for path, info in zip(paths, infos, strict=True):
        if info.score is None or info.partial:
            raise PolicyError(f"{path} has no score: its training in phases did not end")
        if info.fingerprint != control_of(info.agent, spec).fingerprint(spec):
            served = scenario.cell[1]
            raise PolicyError(f"{path} is not for {served} under the limits of the suite")


@cli.command
def main(argv: Sequence[str]) -> int:
    """Judge policies, and print the table."""
    text = "Judge policies beside the best rules."
    parser = cli.Parser(prog="python -m benchmarks.judged", description=text)
    add = parser.add_argument
    add("policies", type=Path, nargs="+", metavar="POLICY", help="policy.safetensors of a training")
    add("--profile", help="latency profile they were trained for")
    add("--like", metavar="S", help="instead, a scenario of whose stages the cells are")
    add("--suite", default="standard-v1", help="whose cells (default: standard-v1)")
    add("--episodes", type=cli.at_least(1), default=10, help="of each scenario (default: 10)")
    training = LearnConfig()
    unused = SEED_LIMIT + training.evaluation_episodes
    text = f"of the first episode (default: {unused}, the first that nothing else uses)"
    add("--first-seed", type=cli.at_least(0), default=unused, metavar="N", help=text)
    add("--keep", type=Path, metavar="FILE", help="write the median policy to it")
    arguments = parser.parse_args(argv)
    policies = [load_policy(path) for path in arguments.policies]
    infos = [policy.info for policy in policies]
    scenarios = tuple(cells_of(arguments.suite, arguments.profile, like=arguments.like))
    check(arguments.policies, infos, scenarios[0])
    episodes = scenarios, arguments.episodes, arguments.first_seed
    scales_out = control_of(infos[0].agent, spec_of(scenarios[0])).scales_out
    rule = Evaluation.of(best_rules(scales_out, *episodes)[0])
    evaluate = PolicyEvaluator(*episodes)
    named = {f"seed {each.info.seed}": evaluate(each) for each in policies}
    print(table(scenarios, named, rule))
    median = median_of([info.score or 0.0 for info in infos])
    print(f"\nmedian: {arguments.policies[median]}")
    if arguments.keep is not None:
        info = infos[median]
        info = replace(info, median_of=max(len(infos), info.median_of))
        save_policy(replace(policies[median], info=info), arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
