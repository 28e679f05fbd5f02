"""What each ingredient of ``sponge-mpc`` or of PPO contributes: take one away, and look.

    python -m benchmarks.ablations mpc [--seeds N] [--quick]
    python -m benchmarks.ablations ppo [--scenario S] [--steps N] [--option KEY=VALUE ...] [--quick]
    python -m benchmarks.ablations joint [--scenario S] [--also S ...] [--steps N] [--quick]

``--variants NAME ...`` takes some of them. A row goes to standard error as soon as it is known.

Variants of ``sponge-mpc`` play the same episodes: the cells of the suite ``standard``, cold, on
training seeds. Cores are the geometric mean over the cells, so that each cell weighs alike;
violations are those that are avoidable, as a plain mean and as the mean of the worst cell.

Variants of PPO are trained several times and validated on episodes that no training uses, the
same for all. The score is that of the trainer, with the scenario's weight of violations for all
variants, whatever weight they learned with; its spread is half the range over the trainings.

Variants of ``ppo-joint``, learned in phases, are judged likewise on other episodes; their score is
the trainer's: cores relative to the best rule's, violations beyond its own counting as cores, so
that less is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judged import reported, unused_seed
from sponge_env.cli import parse_options
from sponge_env.results.layout import aligned
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.rollout import Run, run_episode
from sponge_env.run.suite import cell_name, cells, load_suite
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.seeds import EVALUATION_SEEDS
from sponge_env.simulation.system import SimulatedSystem

VARIANTS: dict[str, dict[str, dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text()
)
"""By what is taken apart and name: an agent and its options."""
VALIDATION_EPISODES = 64
JUDGED = 20
"""Episodes of each scenario that judge a variant of ``ppo-joint``."""


def cores_and_violations(
    scenario: Scenario, seeds: Sequence[int], agent: str, **options: Any
) -> tuple[float, float]:
    """Return mean cores and the avoidable violation rate in percent over some episodes."""
    rows = []
    for seed in seeds:
        controller = make_controller(agent, known_controllers(), options)
        run = Run.of(agent, scenario, "sim", seed)
        summary = run_episode(SimulatedSystem(scenario, seed), controller, run).summary
        rows.append((summary.mean_cores, 100 * summary.avoidable_violation_rate))
    cores, violations = np.mean(rows, axis=0)
    return float(cores), float(violations)


def mpc_row(name: str, grid: Sequence[Scenario], seeds: Sequence[int]) -> list[str]:
    """Play one variant on all cells."""
    variant = VARIANTS["mpc"][name]
    results = [cores_and_violations(scenario, seeds, **variant) for scenario in grid]
    cores, violations = (np.array(column) for column in zip(*results, strict=True))
    worst = int(violations.argmax())
    return [
        name,
        f"{np.exp(np.log(cores).mean()):.3f}",
        f"{violations.mean():.3f}",
        f"{violations[worst]:.2f}",
        cell_name(grid[worst]).removesuffix("+cold"),
        f"{int((violations <= 0.1).sum())}/{len(grid)}",
    ]


def mpc_rows(arguments: argparse.Namespace) -> list[list[str]]:
    """Return the table of ``sponge-mpc``."""
    grid = cells(dataclasses.replace(load_suite("standard"), starts=("cold",)))
    grid, count = (grid[::5], 1) if arguments.quick else (grid, arguments.seeds)
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + count)
    headings = ["variant", "cores", "violations [%]", "worst [%]", "worst cell", "<= 0.1 %"]
    return [headings, *(reported(mpc_row(name, grid, seeds)) for name in chosen(arguments))]


def ppo_row(
    name: str, options: Mapping[str, Any], scenario: Scenario, steps: int, seeds: int
) -> list[str]:
    """Train one variant several times, and validate what was kept."""
    # PyTorch takes seconds to import, and only this half of the file needs it.
    from agents import LEARNERS
    from agents.learn import TrainingPlan, learn_config
    from agents.learn.training import make_validator, train
    from agents.policy import load_policy

    changes = {**options, **VARIANTS["ppo"][name]}
    agent = changes.pop("agent")
    config, envs = learn_config(agent, changes), LEARNERS[agent].envs
    results = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            plan = TrainingPlan((scenario,), steps, envs, seed, Path(folder), agent)
            policy = load_policy(train(plan, config))
        results.append(make_validator([scenario], VALIDATION_EPISODES, agent)(policy))
    scores = [result.score(scenario.reward.violation_weight) for result in results]
    rates = [result.avoidable_violation_rate for result in results]
    return row_of(name, [result.cores for result in results], rates, scores)


def row_of(
    name: str, cores: Sequence[float], rates: Sequence[float], scores: Sequence[float]
) -> list[str]:
    """Return means over trainings, and half of how far their scores lie apart."""
    means = f"{np.mean(cores):.3f}", f"{100 * np.mean(rates):.3f}", f"{np.mean(scores):.4f}"
    return [name, *means, f"{np.ptp(scores) / 2:.4f}"]


def chosen(arguments: argparse.Namespace) -> list[str]:
    """Return the variants that are asked for, all if none is."""
    there = VARIANTS[arguments.of]
    return [name for name in there if name in (arguments.variants or there)]


def shortened(kind: str, arguments: argparse.Namespace) -> tuple[list[str], int, int]:
    """Return which variants to train, for how many steps and how often each."""
    names = chosen(arguments)
    if arguments.quick:
        return names if arguments.variants else names[::4], 20_000, 1
    from agents.learn.phases import TRAINING_STEPS

    usual = {"ppo": 300_000, "joint": TRAINING_STEPS}
    return names, arguments.steps or usual[kind], arguments.seeds


def ppo_rows(arguments: argparse.Namespace) -> list[list[str]]:
    """Return the table of PPO."""
    names, steps, seeds = shortened("ppo", arguments)
    options = parse_options([f"x.{option}" for option in arguments.option], ["x"]).get("x", {})
    scenario = load_scenario(arguments.scenario)
    rows = [reported(ppo_row(name, options, scenario, steps, seeds)) for name in names]
    return [["variant", "cores", "avoidable [%]", "score", "+-"], *rows]


def joint_row(name: str, scenarios: Sequence[Scenario], steps: int, seeds: int) -> list[str]:
    """Train one variant several times, and judge what was kept."""
    from agents.learn import TrainingPlan, settings
    from agents.learn.judge import Judge, best_rules, judgement
    from agents.learn.phased import score_of, train
    from agents.learn.phases import ENVS, PhasedConfig
    from agents.policy import load_policy

    config = settings(PhasedConfig, {}, VARIANTS["joint"][name])
    first = unused_seed(config)
    judge = Judge(scenarios, JUDGED, first)
    rule = judgement(best_rules(True, tuple(scenarios), JUDGED, first))
    results = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            plan = TrainingPlan(tuple(scenarios), steps, ENVS, seed, Path(folder), "ppo-joint")
            results.append(judge(load_policy(train(plan, config))))
    cores = [float(np.mean(result.cores / rule.cores)) for result in results]
    rates = [float(result.violation_rate.mean()) for result in results]
    return row_of(name, cores, rates, [score_of(result, rule) for result in results])


def joint_rows(arguments: argparse.Namespace) -> list[list[str]]:
    """Return the table of ``ppo-joint``."""
    names, steps, seeds = shortened("joint", arguments)
    scenarios = [load_scenario(name) for name in (arguments.scenario, *arguments.also)]
    scenarios = [dataclasses.replace(each, profile=scenarios[0].profile) for each in scenarios]
    rows = [reported(joint_row(name, scenarios, steps, seeds)) for name in names]
    return [["variant", "cores / rule's", "avoidable [%]", "score", "+-"], *rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("of", choices=list(VARIANTS), help="what is taken apart")
    parser.add_argument("--seeds", type=int, default=3, help="episodes of a cell, or trainings")
    parser.add_argument("--quick", action="store_true", help="a look at some rows or cells")
    said = "some of the rows; names as in the table (default: all)"
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help=said)
    parser.add_argument("--scenario", default="bursty", help="of PPO (default: bursty)")
    said = "further scenarios of ppo-joint, which take the profile of the first"
    parser.add_argument("--also", nargs="+", default=[], metavar="S", help=said)
    said = "of each training (default: 300000 of PPO, as train.py for ppo-joint)"
    parser.add_argument("--steps", type=int, help=said)
    every = "hyper-parameter of all variants of PPO, as for train.py; may be repeated"
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=every)
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.variants) - set(VARIANTS[arguments.of]):
        parser.error(f"no variant {min(unknown)!r}; there are {', '.join(VARIANTS[arguments.of])}")
    rows = {"mpc": mpc_rows, "ppo": ppo_rows, "joint": joint_rows}[arguments.of](arguments)
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
