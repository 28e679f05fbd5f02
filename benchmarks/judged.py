"""How policies that were learned in phases do beside the best rule of each scenario.

    python -m benchmarks.judged POLICY ... --profile yolov5s [--suite standard] [--episodes 10]
        [--first-seed N] [--keep FILE]
    python -m benchmarks.judged POLICY ... --suite stages --like pipeline-video

The scenarios are a suite's cells of the profile, or of a scenario's stages, started cold. All play
the same episodes, if nothing else is said on seeds that no training and no evaluation uses. There
is no guard: the policy alone is judged. Avoidable violations are in brackets. With variants, cores
include the cost of lost accuracy.

Of policies whose trainings differ in their seed alone, the median is the one by the scores with
which their trainings kept them. ``--keep`` writes it to a file, with the number of trainings.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.learn import SETTINGS_FILE, PhasedConfig, spec_of
from agents.learn.command import cells_of
from agents.learn.evaluation import (
    FEW_VIOLATIONS,
    TOLERANCE,
    Evaluation,
    PolicyEvaluator,
    best_rules,
    play_program,
    programs_for,
)
from agents.learned import control_of
from agents.policy import PolicyInfo, load_policy, save_policy
from sponge_env import cli
from sponge_env.errors import PolicyError
from sponge_env.results.layout import aligned
from sponge_env.results.statistics import SIGNIFICANCE, paired_p
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import SEED_LIMIT
from sponge_env.utils.files import read_json

_OF_ONE_TRAINING = "--seed", "--run-dir", "--resume", "--steps"
"""Options that may differ between trainings whose seeds alone differ."""


def unused_seed(config: PhasedConfig) -> int:
    """Return the first seed after those of a training's evaluations."""
    return SEED_LIMIT + config.evaluation_episodes


def median_of(scores: Sequence[float]) -> int:
    """Return the place of the median, of an even number the worse of the two in the middle."""
    return int(np.argsort(scores, kind="stable")[len(scores) // 2])


def table(scenarios: Sequence[Scenario], columns: Mapping[str, Evaluation]) -> str:
    """Return a row for each scenario: mean cores, and avoidable violations in brackets."""
    rows = [
        [
            each.name,
            *(f"{c.cores[k]:.2f} ({c.violation_rate[k]:.3%})" for c in columns.values()),
        ]
        for k, each in enumerate(scenarios)
    ]
    return "\n".join(aligned([["cores", *columns], *rows]))


def comparison(policies: Mapping[str, Evaluation], rule: Evaluation) -> str:
    """Return a row for each policy: in how many scenarios it does better than the rule."""
    headings = [
        *("policy", "fewer cores", "no more violations", "not significantly more", "more"),
        *("few violations", "violations", "cores / rule's", "at most"),
    ]
    rows = [[name, *map(str, compared(each, rule).values())] for name, each in policies.items()]
    return "\n".join(aligned([headings, *rows]))


def compared(policy: Evaluation, rule: Evaluation) -> dict[str, object]:
    """Count the scenarios with fewer cores than the rule's, and its violations there.

    Their violations are no more (but for the tolerance), more by chance, or significantly more, by
    a paired test over the episodes of each scenario alone.
    """
    ratio, fewer = policy.cores / rule.cores, policy.cores < rule.cores
    more = policy.violation_rate - rule.violation_rate > TOLERANCE
    each = zip(policy.episode_rates.T, rule.episode_rates.T, strict=True)
    significant = np.array([paired_p(ours, theirs) < SIGNIFICANCE for ours, theirs in each])
    few = policy.violation_rate <= rule.violation_rate.clip(min=FEW_VIOLATIONS)
    return {
        "fewer": int(fewer.sum()),
        "no more": int((fewer & ~more).sum()),
        "undecided": int((fewer & more & ~significant).sum()),
        "more": int((fewer & more & significant).sum()),
        "few": int((fewer & few).sum()),
        "violations": f"{policy.violation_rate.mean():.3%}",
        "ratio": f"{np.exp(np.log(ratio).mean()):.3f}",
        "largest": f"{ratio.max():.3f}",
    }


def scores_of(paths: Sequence[Path], infos: Sequence[PolicyInfo], chosen: bool) -> list[float]:
    """Return the scores with which trainings kept their policies.

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
    """Return what trainings have in common whose seeds alone differ."""
    settings = path.with_name(SETTINGS_FILE)
    used = read_json(settings) if settings.exists() else None
    # The command says what no field does: how many environments, and whether randomised.
    _, options = cli.split_options(shlex.split(info.command), _OF_ONE_TRAINING)
    same = info.agent, info.fingerprint, info.scenarios, info.inputs, info.planned, info.every
    return (*same, info.batches, sorted(options[1:]), used)  # but for the interpreter's name


def check_fits(path: Path, info: PolicyInfo, scenario: Scenario) -> None:
    """Refuse a policy of another system."""
    spec = spec_of(scenario)
    if info.fingerprint != control_of(info.agent, spec).fingerprint(spec):
        served = scenario.cell[1]
        raise PolicyError(f"{path} is not for {served} under the limits of the suite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; an error is one sentence."""
    return cli.run_script(run, argv)


def run(argv: Sequence[str]) -> int:
    """Judge policies, and print the tables."""
    text = "Judge policies beside the best rules."
    parser = cli.Parser(prog="python -m benchmarks.judged", description=text)
    add = parser.add_argument
    add("policies", type=Path, nargs="+", metavar="POLICY", help="policy.safetensors of a training")
    add("--profile", help="latency profile they were trained for")
    add("--like", metavar="S", help="instead, a scenario of whose stages the cells are")
    add("--suite", default="standard", help="whose cells (default: standard)")
    add("--episodes", type=cli.at_least(1), default=10, help="of each scenario (default: 10)")
    unused = unused_seed(PhasedConfig())
    text = f"of the first episode (default: {unused}, the first that nothing else uses)"
    add("--first-seed", type=cli.at_least(0), default=unused, metavar="N", help=text)
    add("--keep", type=Path, metavar="FILE", help="write the median policy to it")
    arguments = parser.parse_args(argv)
    policies = [load_policy(path) for path in arguments.policies]
    several, infos = len(policies) > 1, [policy.info for policy in policies]
    scores = scores_of(arguments.policies, infos, several or arguments.keep is not None)
    median = median_of(scores)
    scenarios = tuple(cells_of(arguments.suite, arguments.profile, like=arguments.like))
    check_fits(arguments.policies[0], infos[0], scenarios[0])
    episodes = scenarios, arguments.episodes, arguments.first_seed
    scales_out = control_of(infos[0].agent, spec_of(scenarios[0])).scales_out
    programs = {x: Evaluation.of(play_program(x, *episodes)) for x in programs_for(scales_out)}
    rule = Evaluation.of(best_rules(scales_out, *episodes)[0])
    judged = list(map(PolicyEvaluator(*episodes), policies))
    named = {f"seed {info.seed}": each for info, each in zip(infos, judged, strict=True)}
    print(table(scenarios, {**programs, "best rule": rule, **named}))
    print(f"\n{comparison(named, rule)}")
    print(f"\nmedian: {arguments.policies[median]}" * several)
    if arguments.keep is not None:
        kept = policies[median]
        count = len(policies) if several else kept.info.median_of
        save_policy(replace(kept, info=replace(kept.info, median_of=count)), arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
