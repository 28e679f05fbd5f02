"""The body of ``train.py``: trains a learned controller on the simulator."""

import contextlib
import io
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sponge_env import cli
from sponge_env.env.factory import prepare_machine
from sponge_env.errors import ConfigError, PolicyError, unknown
from sponge_env.run.cluster import executor_of
from sponge_env.run.executor import Failure, Inline
from sponge_env.run.notices import announce
from sponge_env.run.store import RUNS, describe, new_folder
from sponge_env.run.suite import cells, changed, load_suite
from sponge_env.run.unit import check_scenario
from sponge_env.scenario.scenario import Scenario, load_scenario, with_own_slo
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.randomised import random_systems
from sponge_env.utils.console import Progress
from sponge_env.utils.files import read_all, read_json, write_all, write_json
from sponge_env.utils.installation import require_extra

from ..learned import known_policies
from ..policy import ANY_MODEL, POLICY_FILE, Policy, load_policy
from ..training import FEW_STEPS, FOLLOWED, MANY_STEPS, STEPS, machines, parse
from . import EVALUATED_FILE, FOR_ANY_MODEL, TrainingPlan, settings, spec_of
from .programs import EXECUTOR, program_for

VALIDATED = 96  # Random systems by which a policy for any model is chosen, always the same


def scenarios_of(arguments: Namespace) -> list[Scenario]:
    """Return what a command line asks to train on, of one profile or of the same stages."""
    if arguments.suite is not None:
        return _cells_of(arguments)
    first = changed(load_scenario(arguments.scenario), cli.scenario_changes(arguments))
    profile, others = arguments.profile or first.profile, map(load_scenario, arguments.also)
    return [replace(each, profile=profile, start="cold") for each in (first, *others)]


def _cells_of(arguments: Namespace) -> list[Scenario]:
    """Return a suite's cells of one profile, or with the stages of one scenario, started cold."""
    found = cells(replace(load_suite(arguments.suite), starts=("cold",)))
    like, profile, held_out = arguments.like, arguments.profile, arguments.held_out
    if like and profile:
        raise ConfigError("--like says whose profiles are meant; leave out --profile")
    system = spec_of(load_scenario(like)).fingerprint if like else ""
    chosen = [
        cell
        for cell in found
        if profile in (None, cell.cell[1]) and system in ("", spec_of(cell).fingerprint)
    ]
    if len({cell.cell[1] for cell in chosen}) != 1:
        known = ", ".join(dict.fromkeys(cell.cell[1] for cell in found))
        raise ConfigError(
            f"suite {arguments.suite!r} has cells of {known}; choose those of one with --profile, "
            "or of the stages of a scenario with --like"
        )
    names = [cell.name for cell in chosen]
    for scenario in held_out:
        if scenario not in names:
            raise ConfigError(unknown("scenario to hold out", scenario, names))
    if not (left := [cell for cell in chosen if cell.name not in held_out]):
        raise ConfigError("--held-out leaves nothing to train on")
    return left


def plan_of(arguments: Namespace, scenarios: Sequence[Scenario], command: str = "") -> TrainingPlan:
    """Return the plan that a command line asks for, without its folder."""
    names = "envs", "seed", "agent", "randomised", "systems"
    given = {name: getattr(arguments, name) for name in names}
    plan = TrainingPlan(tuple(scenarios), STEPS, folder=Path(), command=command, **given)
    start, resumed = _start_of(arguments, plan), arguments.resume is not None
    steps = FEW_STEPS if start else MANY_STEPS if plan.systems else STEPS
    if start and resumed:
        steps = max(0, start.info.planned - start.info.steps) or steps
    return replace(plan, start=start, resumed=resumed, steps=arguments.steps or steps)


def _options(arguments: Namespace) -> dict[str, Any]:
    usual = FOR_ANY_MODEL if arguments.systems and not arguments.resume else {}
    return usual | cli.parse_options([f"x.{each}" for each in arguments.option], ["x"]).get("x", {})


def _start_of(arguments: Namespace, plan: TrainingPlan) -> Policy | None:
    """Return the policy that a training is to begin with; None if it imitates programs."""
    resumes, like = arguments.resume is not None, plan.info.signature
    path = arguments.resume / POLICY_FILE if resumes else arguments.start
    if path is None and not (plan.systems or _options(arguments).get("hidden")):
        shipped = (p for _, p in known_policies(None) if p.info.fingerprint == ANY_MODEL)
        return next((policy for policy in shipped if policy.info.signature == like), None)
    if path in (None, "programs"):
        return None
    policy = load_policy(Path(path))
    if policy.info.signature != like:
        raise PolicyError(f"{path} has other inputs or choices than a policy for these scenarios")
    if resumes and policy.info.fingerprint != plan.fingerprint:
        raise PolicyError(
            f"{path} was trained on {', '.join(policy.info.scenarios)}, whose profile or stages, "
            "interval or limits differ; resume it with the options that it was trained with"
        )
    return policy


def train(arguments: Namespace, argv: Sequence[str]) -> int:
    """Train as a command line says, and say where the policy is."""
    require_extra("train", "training")
    validated = machines(VALIDATED if arguments.systems else 0)
    with random_systems(stream(0, "validation"), validated) as systems:
        return _train(arguments, argv, *(systems or scenarios_of(arguments)))


def _train(arguments: Namespace, argv: Sequence[str], scenario: Scenario, *also: Scenario) -> int:
    if arguments.ray is not None or arguments.jobs:
        EXECUTOR.set(executor_of(arguments))
    prepare_machine(arguments.wait, arguments.cpus)
    check_scenario(scenario, "sim", "auto")
    scenario = with_own_slo(scenario)  # which may have been measured only now
    command = f"{cli.program('train', recorded=True)} {shlex.join(argv)}"
    plan = plan_of(arguments, (scenario, *also), command)
    config = settings(_options(arguments), arguments.resume)
    if (start := plan.start) is not None:
        asked = any(each.startswith("hidden=") for each in arguments.option)
        if asked and config.hidden != start.hidden:
            raise ConfigError(f"hidden must be {start.hidden}: the layers are those of the policy")
        config = replace(config, hidden=start.hidden)
    if plan.envs < (count := plan.systems or len(plan.scenarios)):
        raise ConfigError(f"{count} scenarios need at least as many --envs, not {plan.envs}")
    learned = Path(arguments.suite).stem if arguments.suite else scenario.name
    learned = "any-model" if plan.systems else learned
    folder = new_folder(f"train-{plan.agent}-{learned}", arguments.run_dir)
    # PyTorch takes seconds to import; bad input should not wait for it.
    from . import phased

    names = ", ".join(scenario.name for scenario in plan.scenarios)
    what = "any model" if plan.systems else f"{names} ({scenario.cell[1]})"
    notices = [cli.DROP_NOTICE] * cli.drops_by_default(arguments)
    notices += [] if plan.systems else announce(plan.scenarios)
    sys.stdout.writelines(f"{line}\n" for line in (*notices, f"{plan.agent} learns {what}"))
    options = {key: str(value) for key, value in vars(arguments).items()}
    write_json(folder / "config.json", {"scenario": asdict(scenario), "options": options})
    describe(folder, shlex.split(plan.command))
    progress, interrupted = Progress(f"training {plan.agent}", plan.steps, "step"), False
    try:
        with cli.terminate_like_interrupt(), contextlib.closing(progress):
            phased.train(replace(plan, folder=folder), config, progress.show)
    except KeyboardInterrupt:
        interrupted = True
    sys.stdout.write(_summary(arguments, folder, argv, interrupted))
    return cli.INTERRUPTED if interrupted else 0


def train_each(arguments: Namespace, argv: Sequence[str]) -> int:
    """Train with each of several seeds; their folders lie in one."""
    require_extra("train", "training")
    executor = executor_of(arguments)
    folder = new_folder(f"train-{arguments.agent}-seeds", arguments.run_dir)
    _, others = cli.split_options(argv, ("--seeds", "--run-dir", "--jobs", "--ray", "--seed"))
    tasks = [(*others, "--seed", str(seed)) for seed in arguments.seeds]
    failed = list[str]()
    with cli.terminate_like_interrupt(), contextlib.closing(executor.run(_trained, tasks)) as done:
        for task, result in done:
            if isinstance(result, Failure):
                failed.append(f"seed {task[-1]} failed ({result})")
                continue
            write_all(own := folder / f"seed-{task[-1]}", result)
            sys.stdout.write(f"policy       {own / POLICY_FILE}\n")
    if failed:
        raise ConfigError("; ".join(failed))
    return 0


def _trained(argv: Sequence[str]) -> dict[str, bytes]:
    """Train in a folder that is removed; return its files."""
    EXECUTOR.set(Inline())  # one of many processes starts none of its own
    arguments, silent = parse(argv), io.StringIO()
    with TemporaryDirectory(prefix="sponge-") as folder:
        arguments.run_dir = Path(folder) / "run"
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            if train(arguments, argv):
                raise ConfigError("it was interrupted")
        return read_all(arguments.run_dir)


def _summary(arguments: Namespace, folder: Path, argv: Sequence[str], interrupted: bool) -> str:
    """Say where the policy is that did best in validation, and how to go on with it."""
    policy = folder / POLICY_FILE
    if not policy.exists():
        return "interrupted before there was a policy; nothing is kept\n"
    info = load_policy(policy).info
    conditions, _ = cli.split_options(argv, FOLLOWED)
    follow = ["--agent", arguments.agent, *conditions]
    if arguments.like:
        follow += ["--scenario", arguments.like]
    if interrupted or folder.parent != RUNS:  # it is not found by itself
        follow += ["--policy", str(policy)]
    means = read_json(folder / EVALUATED_FILE)
    reached = "{missed:.3%} missed on {cores:.2f} cores".format
    program = program_for(scales_out=info.every > 0)
    text = f"""\
policy       {policy}
best{" so far" * interrupted:9}after {info.steps} of {info.planned} steps, by validation
reached      {reached(**means["policy"])}; the program {program} {reached(**means["program"])}
evaluate it  {cli.program("evaluate")} {shlex.join(follow)}
TensorBoard  {cli.tool("tensorboard")} --logdir {folder}
"""
    if not interrupted:
        return text
    _, more = cli.split_options(argv, ("--run-dir", "--resume", "--steps", "--start"))
    go_on = shlex.join([*more, "--resume", str(folder)])
    return f"interrupted; go on with\n  {cli.program('train')} {go_on}\n{text}"
