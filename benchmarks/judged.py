"""How a policy of ``ppo-joint`` does beside the best rule of each scenario.

    python -m benchmarks.judged POLICY --profile yolov5s [--suite standard] [--episodes 10]

The scenarios are a suite's cells of the profile, started cold; all play the same episodes, on seeds
that training, its prices and its choice of a policy do not use, nor any evaluation. The guard is
off: what is judged is the policy. Avoidable violations are in brackets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agents.learn.command import cells_of
from agents.learn.judge import FEW_VIOLATIONS, PROGRAM, Judge, Judgement, best_rules, program_alone
from agents.learn.phased import TOLERANCE
from agents.learn.phases import PhasedConfig
from agents.policy import load_policy
from sponge_env import cli
from sponge_env.results.layout import aligned
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT


def unused_seed(config: PhasedConfig) -> int:
    """Return the first seed after those of a training's prices and choice."""
    return SEED_LIMIT + config.evaluation_episodes + config.choice_episodes


def table(
    scenarios: Sequence[Scenario], program: Judgement, rule: Judgement, policy: Judgement
) -> str:
    """Return a row for each scenario, and in how many the policy does better than the rule."""
    found = program, rule, policy
    rows = [
        [scenario.name, *(f"{each.cores[k]:.2f} ({each.violation_rate[k]:.3%})" for each in found)]
        for k, scenario in enumerate(scenarios)
    ]
    fewer = policy.cores < rule.cores
    strictly = fewer & (policy.violation_rate <= rule.violation_rate + TOLERANCE)
    able = policy.violation_rate <= rule.violation_rate.clip(min=FEW_VIOLATIONS)
    said = (
        f"Fewer cores in {fewer.sum()} of {len(rows)}: in {strictly.sum()} with no more "
        f"violations (within {TOLERANCE:.2%}), in {(fewer & able).sum()} with no more than the "
        f"rule's or {FEW_VIOLATIONS:.1%}."
    )
    return "\n".join([*aligned([["cores", PROGRAM, "best rule", "policy"], *rows]), "", said])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; what goes wrong is one sentence."""
    return cli.run_script(run, argv)


def run(argv: Sequence[str]) -> int:
    """Judge a policy, and print the table."""
    said = "Judge a policy of ppo-joint beside the best rules."
    parser = cli.Parser(prog="python -m benchmarks.judged", description=said)
    parser.add_argument("policy", type=Path, help="policy.safetensors of a training")
    parser.add_argument("--profile", required=True, help="latency profile it was trained for")
    parser.add_argument("--suite", default="standard", help="whose cells (default: standard)")
    parser.add_argument("--episodes", type=cli.at_least(1), default=10, help="of each scenario")
    arguments = parser.parse_args(argv)
    scenarios, seed = cells_of(arguments.suite, arguments.profile), unused_seed(PhasedConfig())
    played = tuple(scenarios), arguments.episodes, seed
    policy = Judge(*played)(load_policy(arguments.policy))
    print(table(scenarios, program_alone(*played), best_rules(*played), policy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
