"""Train a learned controller on scenarios, on the simulator or on the real worker.

The body of ``train.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sponge_env import cli
from sponge_env.env.factory import wait_for_machine
from sponge_env.errors import ConfigError, unknown
from sponge_env.run.notices import announce
from sponge_env.run.store import RUNS, describe, new_folder
from sponge_env.run.suite import Suite, cells, changed, load_suite
from sponge_env.run.unit import check_scenario
from sponge_env.scenario.scenario import Scenario, load_scenario, with_own_slo
from sponge_env.utils.console import Progress
from sponge_env.utils.files import read_json, write_json
from sponge_env.utils.installation import require_extra

from .. import LEARNERS
from ..learned import shipped_for
from ..policy import POLICY_FILE, PolicyInfo, load_policy
from . import JUDGED_FILE, Report, TrainingPlan, learn_config, settings
from .phases import ENVS, TRAINING_STEPS, PhasedConfig
from .systems import spec_of

FOLLOWED = tuple(
    f"--{name}"
    for name in (
        *("scenario", "backend", "limiter", "profile"),
        *("trace", "arrivals", "rate", "load", "drop"),
    )
)
"""Options that an evaluation of the policy has in common with its training."""
NOT_WITH_A_SUITE = (
    *("--scenario", "--also", "--trace", "--arrivals"),
    *("--rate", "--load", "--drop"),
)
"""Options that say what a suite says already."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(
        prog=cli.program("train"),
        description="Train a learned controller on scenarios, simulated or on the real worker.",
        epilog=f"example: {cli.program('train')} --agent ppo --scenario paper",
    )
    cli.add_experiment_arguments(parser)
    add_plan_arguments(parser)
    add = parser.add_argument
    said = "train on a suite's cells of the profile, started cold, in place of scenarios"
    add("--suite", metavar="S", help=said)
    said = "instead of a profile: those cells of the suite that serve this scenario's stages"
    add("--like", metavar="S", help=said)
    said = "scenarios of the suite that are not trained on, to see how it does there"
    add("--held-out", nargs="+", default=[], metavar="S", help=said)
    said = "let some of the environments run random variants of the scenarios"
    add("--randomised", action="store_true", help=said)
    said = "hyper-parameter, e.g. learning_rate=1e-3 or hidden=128,128; may be repeated"
    add("--option", action="append", default=[], metavar="KEY=VALUE", help=said)
    said = "hyper-parameters as a TOML file; those of --option come on top"
    add("--config", type=Path, metavar="FILE", help=said)
    said = "run directory or checkpoint.zip to go on from, to the steps that were planned; "
    said += "loading one runs the code in it, but for what is learned in phases"
    add("--resume", type=Path, metavar="RUN", help=said)
    arguments = parser.parse_args(argv)
    given, _ = cli.split_options(argv, NOT_WITH_A_SUITE)
    for option, value in (("--held-out", arguments.held_out), ("--like", arguments.like)):
        if value and arguments.suite is None:
            raise ConfigError(f"{option} is about the cells of a --suite")
    if arguments.suite is not None and given:
        raise ConfigError(f"--suite says what to train on; leave out {given[0]}")
    if arguments.backend == "live" and arguments.envs not in (None, 1):
        raise ConfigError(f"the live system is one environment, not {arguments.envs}")
    if arguments.resume is not None and arguments.resume.is_dir():
        arguments.resume /= "checkpoint.zip"
    return arguments


def add_plan_arguments(
    parser: argparse.ArgumentParser, agent: str = "ppo", steps: int | None = None
) -> None:
    """Add the options of :func:`plan_of`, with a default number of steps or the learner's."""
    add = parser.add_argument
    known = cli.one_of("agent to train", LEARNERS)
    said = f"what learns: {', '.join(LEARNERS)} (default: {agent})"
    add("--agent", default=agent, type=known, help=said)
    said = "further scenarios of the same profile and limits to train on"
    add("--also", nargs="+", default=[], metavar="S", help=said)
    most = steps or _usual("steps", TRAINING_STEPS)
    said = f"steps over all environments (default: {most})"
    add("--steps", type=cli.at_least(1), default=steps, help=said)
    said = f"simulated environments (default: {_usual('envs', ENVS)}); the live system is one"
    add("--envs", type=cli.at_least(1), help=said)
    add("--seed", type=cli.at_least(0), default=0, help="default: 0")


def _usual(what: str, in_phases: int) -> str:
    """Say a default of the learners: most have the first one's, where they have no phases."""
    own = {name: getattr(learner, what) for name, learner in LEARNERS.items()}
    first = next(iter(own.values()))
    others = [f"{value} for {name}" for name, value in own.items() if value != first]
    phased = " and ".join(name for name, learner in LEARNERS.items() if learner.phased)
    said = f"{in_phases} where {phased} learn a simulated system"
    return ", ".join([str(first), *others, said])


def scenarios_of(arguments: argparse.Namespace) -> list[Scenario]:
    """Return what a command line asks to train on, of one profile."""
    if arguments.suite is not None:
        return cells_of(arguments.suite, arguments.profile, arguments.held_out, arguments.like)
    first = changed(load_scenario(arguments.scenario), cli.scenario_changes(arguments))
    profile = arguments.profile or first.profile
    others = map(load_scenario, arguments.also)
    return [replace(scenario, profile=profile) for scenario in (first, *others)]


def cells_of(
    name: str, profile: str | None, held_out: Sequence[str] = (), like: str | None = None
) -> list[Scenario]:
    """Return a suite's cells of a profile, started cold, without those of some scenarios.

    The profile may be left out where there is one only, or for the cells of the system of a
    scenario that they are to be ``like``.
    """
    suite = replace(load_suite(name), starts=("cold",))
    if like and profile:
        raise ConfigError("--like says whose profiles are meant; leave out --profile")
    if like is None:
        found = _of_profile(suite, profile)
    else:
        wanted = spec_of(load_scenario(like)).fingerprint
        found = [cell for cell in cells(suite) if spec_of(cell).fingerprint == wanted]
        if not found:
            raise ConfigError(f"suite {suite.name!r} has no cells of the stages of {like!r}")
    known = [cell.name for cell in found]
    for scenario in held_out:
        if scenario not in known:
            raise ConfigError(unknown("scenario to hold out", scenario, known))
    left = [cell for cell in found if cell.name not in held_out]
    if not left:
        raise ConfigError("--held-out leaves nothing to train on")
    return left


def _of_profile(suite: Suite, profile: str | None) -> list[Scenario]:
    found: dict[str, list[Scenario]] = {}
    for cell in cells(suite):
        found.setdefault("" if cell.stages else cell.profile, []).append(cell)
    if "" in found:
        raise ConfigError(
            f"suite {suite.name!r} has cells that list their stages; choose some with --like"
        )
    wanted = profile or (next(iter(found)) if len(found) == 1 else "")
    if wanted not in found:
        known = ", ".join(found)
        raise ConfigError(f"suite {suite.name!r} has cells of {known}; choose one with --profile")
    return found[wanted]


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the hyper-parameters that a command line asks for: of a file, then by name."""
    found: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            found = tomllib.loads(arguments.config.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"--config {str(arguments.config)!r} cannot be read: {error}"
            ) from error
    options = cli.parse_options([f"x.{option}" for option in arguments.option], ["x"])
    return found | options.get("x", {})


def plan_of(
    arguments: argparse.Namespace, scenarios: Sequence[Scenario], **more: Any
) -> TrainingPlan:
    """Return the plan that a command line asks for, but for its folder."""
    learner = LEARNERS[arguments.agent]
    plan = TrainingPlan(
        scenarios=tuple(scenarios),
        steps=arguments.steps or 0,
        envs=arguments.envs or 0,
        seed=arguments.seed,
        folder=Path(),
        agent=arguments.agent,
        **more,
    )
    usual = (TRAINING_STEPS, ENVS) if plan.phased else (learner.steps, learner.envs)
    return replace(plan, steps=plan.steps or usual[0], envs=plan.envs or usual[1])


def train(argv: Sequence[str]) -> int:
    """Train and say where the policy is."""
    arguments = parse(argv)
    require_extra("train", "training")
    scenario, *also = scenarios_of(arguments)
    # PyTorch takes seconds to import; bad input should not wait for it.
    from . import phased, training

    if arguments.wait:
        wait_for_machine()
    profile = check_scenario(scenario, arguments.backend, arguments.limiter)
    scenario = with_own_slo(scenario)  # which may have been measured only now
    if arguments.backend == "live":
        arguments.envs = 1
    given = {key: getattr(arguments, key) for key in ("randomised", "backend", "limiter", "resume")}
    command = f"{cli.program('train', recorded=True)} {shlex.join(argv)}"
    plan = plan_of(arguments, (scenario, *also), command=command, **given)
    if arguments.resume is not None:
        training.check_checkpoint(arguments.resume, plan)
        if not plan.phased:
            said = "a checkpoint can run any code when it is loaded: resume your own only"
            sys.stderr.write(f"{arguments.resume}: {said}\n")
        if arguments.steps is None:
            left = (phased if plan.phased else training).steps_left(arguments.resume)
            plan = replace(plan, steps=left or plan.steps)
    run = _prepared(plan, settings_of(arguments))
    for line in [cli.DROP_NOTICE] * cli.drops_by_default(arguments) + announce(plan.scenarios):
        sys.stdout.write(f"{line}\n")
    names = ", ".join(scenario.name for scenario in plan.scenarios)
    served = scenario.cell[1] if scenario.stages else profile.name
    sys.stdout.write(f"{arguments.agent} learns {names} ({served})\n")
    asked = {key: str(value) for key, value in vars(arguments).items()}
    learned = Path(arguments.suite).stem if arguments.suite else scenario.name
    folder = new_folder(f"train-{arguments.agent}-{learned}", arguments.run_dir)
    write_json(folder / "config.json", {"scenario": asdict(scenario), "options": asked})
    describe(folder, shlex.split(plan.command))
    progress, policy = (
        Progress(f"training {arguments.agent}", plan.steps, "step"),
        folder / POLICY_FILE,
    )
    interrupted = False
    try:
        with cli.terminate_like_interrupt(), contextlib.closing(progress):
            run(folder, progress.show)
    except KeyboardInterrupt:
        if not policy.exists():
            raise
        interrupted = True
    sys.stdout.write(_what_next(arguments, folder, argv, interrupted))
    return cli.INTERRUPTED if interrupted else 0


def _prepared(plan: TrainingPlan, options: Mapping[str, Any]) -> Callable[[Path, Report], Path]:
    """Return what trains in a folder, with a report of progress; bad options are noticed now."""
    from . import phased, training

    if plan.phased:
        in_phases = settings(PhasedConfig, {}, options, plan.resume)
        own = plan.envs - plan.randomised * round(in_phases.other_share * plan.envs)
        if own < (count := len(plan.scenarios)):
            said = f"{own} of --envs {plan.envs}" if plan.randomised else str(own)
            raise ConfigError(f"{count} scenarios need at least as many --envs, not {said}")
        return lambda folder, report: phased.train(replace(plan, folder=folder), in_phases, report)
    config = learn_config(plan.agent, options, plan.resume)
    return lambda folder, report: training.train(replace(plan, folder=folder), config, report)


def _what_next(
    arguments: argparse.Namespace, folder: Path, argv: Sequence[str], interrupted: bool
) -> str:
    """Say where the policy is that did best when it was validated, and what to do with it."""
    policy = folder / POLICY_FILE
    info = load_policy(policy).info
    conditions, _ = cli.split_options(argv, FOLLOWED)
    follow = ["--agent", arguments.agent, *conditions]
    if arguments.like:
        follow += ["--scenario", arguments.like]
    if interrupted or folder.parent != RUNS:  # it is not found by itself
        follow += ["--policy", str(policy)]
    said = {
        "policy": str(policy),
        "best": f"after {info.steps} of {info.planned} steps, by validation",
        "reached": _beside_rules(folder / JUDGED_FILE),
        "evaluate it": f"{cli.program('evaluate')} {shlex.join(follow)}",
        "ships": _shipped(info),
        "TensorBoard": f"{cli.tool_command('tensorboard')} --logdir {folder}",
    }
    lines = [f"{what:<12} {text}" for what, text in said.items() if text]
    if interrupted:
        _, more = cli.split_options(argv, ("--run-dir", "--resume", "--steps"))
        go_on = shlex.join([*more, "--resume", str(folder)])
        lines = ["interrupted; go on with", f"  {cli.program('train')} {go_on}", *lines]
    return "".join(f"{line}\n" for line in lines)


def _beside_rules(judged: Path) -> str:
    """Say what the policy that was kept reached by validation, and the best rules, if known."""
    if not judged.exists():
        return ""
    found = read_json(judged)
    policy, rules = (
        f"{found[who]['missed']:.3%} missed on {found[who]['cores']:.2f} cores"
        for who in ("policy", "rules")
    )
    return f"{policy}; the best rules {rules}"


def _shipped(info: PolicyInfo) -> str:
    """Say which policy ships for the same systems, if one does."""
    found = shipped_for(info.agent, info.fingerprint)
    return f"{found.name}; --option {info.agent}.policy=shipped follows it" if found else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(train, argv)
