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
from agents.learn.judge import FEW_VIOLATIONS, Judge, Judgement, best_rules
from agents.learn.phases import PhasedConfig
from agents.policy import load_policy
from sponge_env import cli
from sponge_env.results.layout import aligned
from sponge_env.scenario import Scenario
from sponge_env.seeds import SEED_LIMIT

ALIKE = 1e-4
"""Share of the requests by which violations may differ and count as no more."""


def unused_seed(config: PhasedConfig) -> int:
    """Return the first seed after those of a training's prices and choice."""
    return SEED_LIMIT + config.evaluation_episodes + config.choice_episodes


def table(scenarios: Sequence[Scenario], policy: Judgement, rule: Judgement) -> str:
    """Return a row for each scenario, and in how many the policy does better."""
    rows = [
        [scenario.name, *(f"{c:.2f} ({v:.3%})" for c, v in ((rc, rv), (pc, pv)))]
        for scenario, pc, pv, rc, rv in zip(
            scenarios, policy.cores, policy.violation_rate, rule.cores, rule.violation_rate,
            strict=True,
        )
    ]  # fmt: skip
    fewer = policy.cores < rule.cores
    strictly = fewer & (policy.violation_rate <= rule.violation_rate + ALIKE)
    able = policy.violation_rate <= rule.violation_rate.clip(min=FEW_VIOLATIONS)
    said = (
        f"Fewer cores in {fewer.sum()} of {len(rows)}: in {strictly.sum()} with no more "
        f"violations (within {ALIKE:.2%}), in {(fewer & able).sum()} with no more than the rule's "
        f"or {FEW_VIOLATIONS:.1%}."
    )
    return "\n".join([*aligned([["cores", "best rule", "policy"], *rows]), "", said])


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
    policy = Judge(scenarios, arguments.episodes, seed)(load_policy(arguments.policy))
    print(table(scenarios, policy, best_rules(scenarios, arguments.episodes, seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
