"""What PPO's observation, reward and extensions are worth: train without, and look.

    python -m benchmarks.ppo_ablations [--scenario S] [--steps N] [--option KEY=VALUE ...] [--quick]

Each variant is trained several times and judged on episodes that no training uses, the same for
all. The score is that of the trainer, with the scenario's weight of violations for all variants,
whatever weight they learned with; its spread is half the range over the trainings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.learn.judge import Verdict, make_judge
from agents.learn.plan import TrainingPlan, learn_config
from agents.learn.train import train
from agents.learners import LEARNERS
from agents.policy import load_policy
from benchmarks.simulator import print_table
from sponge_env.cli import parse_options
from sponge_env.scenario import Scenario, load_scenario

JUDGED_EPISODES = 64


@dataclass(frozen=True)
class Variant:
    """What is trained."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Changes to the hyper-parameters."""
    agent: str = "ppo"


def blind(name: str, *fields: str) -> Variant:
    """Take fields of the observation away."""
    return Variant(f"without {name}", {"blind_to": ",".join(fields)})


VARIANTS = (
    Variant("preset"),
    blind("due histogram", "due"),
    blind("budget quantiles", "budget"),
    blind("queue at all", "due", "budget", "queue"),
    blind("trends", "delay_trend", "bandwidth_trend"),
    blind("network at all", "delay", "bandwidth"),
    blind("arrival averages", "arrivals_1s", "arrivals_5s", "arrivals_30s"),
    blind("running batch", "running"),
    blind("allocation", "cores", "batch"),
    blind("last interval", "on_time", "late", "dropped", "utilisation", "throttled"),
    Variant("weight of violations 5", {"violation_weight": 5.0}),
    Variant("weight of violations 80", {"violation_weight": 80.0}),
    Variant("weight learned for 0.1 %", {"violation_target": 0.001}),
    Variant("weight learned for 0.02 %", {"violation_target": 0.0002}),
    Variant("action masks", agent="maskable-ppo"),
    Variant("LSTM", agent="recurrent-ppo"),
)


def trained(
    variant: Variant, options: Mapping[str, Any], scenario: Scenario, steps: int, seed: int
) -> Verdict:
    """Train once and judge what was kept."""
    config = learn_config(variant.agent, {**options, **variant.options})
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan(
            scenarios=(scenario,),
            steps=steps,
            envs=LEARNERS[variant.agent].envs,
            seed=seed,
            folder=Path(folder),
            agent=variant.agent,
        )
        policy = load_policy(train(plan, config))
    return make_judge([scenario], JUDGED_EPISODES, variant.agent)(policy)


def row(
    variant: Variant, options: Mapping[str, Any], scenario: Scenario, steps: int, seeds: int
) -> list[str]:
    """Train a variant several times."""
    verdicts = [trained(variant, options, scenario, steps, seed) for seed in range(seeds)]
    scores = [verdict.score(scenario.reward.violation_weight) for verdict in verdicts]
    return [
        variant.name,
        f"{np.mean([verdict.cores for verdict in verdicts]):.2f}",
        f"{100 * np.mean([verdict.avoidable_violation_rate for verdict in verdicts]):.3f}",
        f"{np.mean(scores):.4f}",
        f"{np.ptp(scores) / 2:.4f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Take parts of PPO away.")
    parser.add_argument("--scenario", default="bursty", help="default: bursty")
    parser.add_argument("--steps", type=int, default=300_000, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameter of all variants, as for train.py; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="every fourth variant, once, briefly")
    arguments = parser.parse_args(argv)
    variants, steps, seeds = VARIANTS, arguments.steps, arguments.seeds
    if arguments.quick:
        variants, steps, seeds = VARIANTS[::4], 20_000, 1
    options = parse_options([f"x.{option}" for option in arguments.option], ["x"]).get("x", {})
    scenario = load_scenario(arguments.scenario)
    rows = [row(variant, options, scenario, steps, seeds) for variant in variants]
    print(f"{arguments.scenario}, {seeds} trainings of {steps} steps each\n")
    print_table(["variant", "cores", "avoidable [%]", "score", "+-"], rows)


if __name__ == "__main__":
    main()
