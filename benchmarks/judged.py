"""How policies that were learned in phases do beside the best rule of each scenario.

    python -m benchmarks.judged POLICY ... --profile yolov5s [--suite standard] [--episodes 10]
        [--first-seed N] [--keep FILE]
    python -m benchmarks.judged POLICY ... --suite stages --like pipeline-video

The scenarios are a suite's cells of the profile, or of a scenario's stages, started cold. All play
the same episodes, if nothing else is said on seeds that training, its prices and its choice of a
policy do not use, nor any evaluation.
The guard is off: what is judged is the policy. Avoidable violations are in brackets. With variants
cores are those and what lost accuracy is worth to the programs.

Of policies whose trainings differ in their seed alone, the median is the one that is so by the
scores by which their own trainings kept them. ``--keep`` writes it to a file, which then says of
how many it is the median.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.learn import SETTINGS_FILE
from agents.learn.command import cells_of
from agents.learn.judge import (
    FEW_VIOLATIONS,
    Judge,
    Judgement,
    best_rules,
    judgement,
    program_alone,
    programs_for,
)
from agents.learn.phases import PhasedConfig
from agents.learn.systems import spec_of
from agents.learned import control_of
from agents.policy import PolicyInfo, load_policy, save_policy
from benchmarks.policy_targets import Won
from sponge_env import cli
from sponge_env.errors import PolicyError
from sponge_env.results.layout import aligned
from sponge_env.results.statistics import paired_p
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.utils.files import read_json

_OF_ONE_TRAINING = "--seed", "--run-dir", "--resume", "--steps"
"""Options by which trainings may differ whose seeds do."""


def unused_seed(config: PhasedConfig) -> int:
    """Return the first seed after those of a training's prices and choice."""
    return SEED_LIMIT + config.evaluation_episodes + config.choice_episodes


def reported(row: list[str]) -> list[str]:
    """Write a row of a table to standard error, as soon as it is known; return it."""
    print(" | ".join(row), file=sys.stderr, flush=True)
    return row


def median_of(scores: Sequence[float]) -> int:
    """Return the place of the median, of an even number the worse of the two in the middle."""
    return int(np.argsort(scores, kind="stable")[len(scores) // 2])


def table(
    scenarios: Sequence[Scenario],
    programs: Mapping[str, Judgement],
    rule: Judgement,
    policies: Sequence[Judgement],
    median: int = 0,
) -> str:
    """Return a row for each scenario, and how often the policies do better than the rule."""
    several = len(policies) > 1
    headings = ["cores", *programs, "best rule", "median policy" if several else "policy"]
    rows = [[each.name] for each in scenarios]
    for k, row in enumerate(rows):
        for each in (*programs.values(), rule, policies[median]):
            row.append(f"{each.cores[k]:.2f} ({each.violation_rate[k]:.3%})")
        if several:
            row.append(_spread(policies, k))
    if several:
        headings.append(f"all {len(policies)}")
    said = [said_of(policies[median], rule)]
    if several:
        said += ["", *(f"training {k}: {said_of(each, rule)}" for k, each in enumerate(policies))]
    return "\n".join([*aligned([headings, *rows]), "", *said])


def _spread(policies: Sequence[Judgement], k: int) -> str:
    """Return between what the policies are in a scenario."""
    cores = [each.cores[k] for each in policies]
    rates = [100 * each.violation_rate[k] for each in policies]
    return f"{min(cores):.2f} to {max(cores):.2f} ({min(rates):.3f} to {max(rates):.3f}%)"


def said_of(policy: Judgement, rule: Judgement) -> str:
    """Say in how many scenarios a policy does better than the rule."""
    fewer = policy.cores < rule.cores
    each = zip(policy.episode_rates.T, rule.episode_rates.T, strict=True)
    p = np.array([paired_p(ours, theirs) for ours, theirs in each])
    able = policy.violation_rate <= rule.violation_rate.clip(min=FEW_VIOLATIONS)
    ratio = policy.cores / rule.cores
    won = Won.of(ratio, policy.violation_rate - rule.violation_rate, p)
    return (
        f"{won}; in {(fewer & able).sum()} of them no more than the rule's or "
        f"{FEW_VIOLATIONS:.1%}; {policy.violation_rate.mean():.3%} violated in the "
        f"mean; {np.exp(np.log(ratio).mean()):.3f} times the rule's cores (geometric mean), "
        f"at most {ratio.max():.3f} times"
    )


def scores_of(paths: Sequence[Path], infos: Sequence[PolicyInfo], chosen: bool) -> list[float]:
    """Return by which scores trainings kept their policies.

    If one is ``chosen``, their trainings must have ended and differ in nothing but their seeds.
    """
    for path, info in zip(paths, infos, strict=True):
        if not info.batches:
            raise PolicyError(f"{path} was not trained in phases")
        if chosen and info.partial:
            raise PolicyError(f"{path} is of a training that did not end")
        if chosen and info.score is None:
            raise PolicyError(f"{path} does not say its score, by which the median is found")
        if chosen and _but_for_seed(path, info) != _but_for_seed(paths[0], infos[0]):
            raise PolicyError(f"{path} and {paths[0]} were trained in different ways")
    if len({info.seed for info in infos}) < len(infos):
        raise PolicyError("policies that are compared need seeds of their own")
    return [info.score or 0.0 for info in infos]


def _but_for_seed(path: Path, info: PolicyInfo) -> tuple[object, ...]:
    """Return what trainings have in common whose seeds alone differ.

    The command says what no other field does: how many environments, and whether of other systems.
    """
    settings = path.with_name(SETTINGS_FILE)
    used = read_json(settings) if settings.exists() else None
    _, asked = cli.split_options(shlex.split(info.command), _OF_ONE_TRAINING)
    said = info.agent, info.fingerprint, info.scenarios, info.inputs, info.planned, info.every
    return (*said, info.batches, sorted(asked[1:]), used)  # whatever the interpreter is called


def check_fits(path: Path, info: PolicyInfo, scenario: Scenario) -> None:
    """Refuse a policy of another system."""
    spec = spec_of(scenario)
    if info.fingerprint != control_of(info.agent, spec).fingerprint(spec):
        served = scenario.cell[1]
        raise PolicyError(f"{path} is not for {served} under the limits of the suite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; what goes wrong is one sentence."""
    return cli.run_script(run, argv)


def run(argv: Sequence[str]) -> int:
    """Judge policies, and print the table."""
    said = "Judge policies beside the best rules."
    parser = cli.Parser(prog="python -m benchmarks.judged", description=said)
    add = parser.add_argument
    add("policies", type=Path, nargs="+", metavar="POLICY", help="policy.safetensors of a training")
    add("--profile", help="latency profile they were trained for")
    add("--like", metavar="S", help="instead, a scenario of whose stages the cells are")
    add("--suite", default="standard", help="whose cells (default: standard)")
    add("--episodes", type=cli.at_least(1), default=10, help="of each scenario (default: 10)")
    unused = unused_seed(PhasedConfig())
    said = f"of the first episode (default: {unused}, the first that nothing else uses)"
    add("--first-seed", type=cli.at_least(0), default=unused, metavar="N", help=said)
    add("--keep", type=Path, metavar="FILE", help="write the median policy to it")
    arguments = parser.parse_args(argv)
    policies = [load_policy(path) for path in arguments.policies]
    several, infos = len(policies) > 1, [policy.info for policy in policies]
    scores = scores_of(arguments.policies, infos, several or arguments.keep is not None)
    median = median_of(scores)
    scenarios = tuple(cells_of(arguments.suite, arguments.profile, like=arguments.like))
    check_fits(arguments.policies[0], infos[0], scenarios[0])
    played = scenarios, arguments.episodes, arguments.first_seed
    judged = list(map(Judge(*played), policies))
    scales_out = control_of(infos[0].agent, spec_of(scenarios[0])).scales_out
    names = programs_for(scales_out)
    programs = {name: judgement(program_alone(name, *played)) for name in names}
    rule = judgement(best_rules(scales_out, *played, looked_at=arguments.episodes))
    print(table(scenarios, programs, rule, judged, median))
    if arguments.keep is not None:
        kept = policies[median]
        count = len(policies) if several else kept.info.median_of
        save_policy(replace(kept, info=replace(kept.info, median_of=count)), arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
