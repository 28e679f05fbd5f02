"""Compare the simulator with the real worker: ``python -m sponge_env.fidelity``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from sponge_env import cli
from sponge_env.cache import local_profile_path
from sponge_env.calibrate import calibrate_to
from sponge_env.config import Limiter, Start
from sponge_env.errors import ConfigError
from sponge_env.factory import check_live
from sponge_env.fidelity.report import section, write_results
from sponge_env.fidelity.trial import Subject, Trial, real_worker
from sponge_env.installation import require_extra
from sponge_env.live.config import LiveConfig
from sponge_env.profile import Profile, load_profile, save_profile
from sponge_env.run.controllers import known_controllers, make_controller
from sponge_env.run.store import new_folder
from sponge_env.run.suite import load_suite
from sponge_env.scenario import Scenario, load_scenario

FRESH = timedelta(hours=1)
"""A profile that is older is measured again: a machine's speed drifts."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="sponge fidelity", description=__doc__)
    parser.add_argument(
        "--agent",
        nargs="+",
        default=list(load_suite("quick").agents),
        metavar="NAME",
        help="registered controllers, or your own as module:Class (default: those of the suite "
        "quick)",
    )
    parser.add_argument(
        "--scenario",
        nargs="+",
        default=["local", "flash-crowd-local"],
        metavar="NAME",
        help="scenarios of this machine's worker",
    )
    parser.add_argument("--duration", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument(
        "--start",
        type=cli.one_of("start", get_args(Start)),
        help="cold or warm (default: as the scenario says); a warm-up of "
        "the scenario's length comes on top of the duration",
    )
    parser.add_argument("--repetitions", type=cli.at_least(1), default=5, metavar="N")
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="of the arrivals")
    parser.add_argument("--option", action="append", default=[], metavar="AGENT.KEY=VALUE")
    parser.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="measure this machine first (default: if its profile is older than an hour)",
    )
    parser.add_argument("--limiter", type=cli.one_of("limiter", get_args(Limiter)), default="auto")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    return parser.parse_args(argv)


def chosen_scenarios(arguments: argparse.Namespace) -> list[Scenario]:
    """Load the scenarios that the arguments name.

    Raises:
        ConfigError: One cannot be used, or is not about this machine's worker.
    """
    scenarios = [load_scenario(name) for name in arguments.scenario]
    for scenario in scenarios:
        if scenario.profile != "local":
            raise ConfigError(
                f"scenario {scenario.name!r} is about profile {scenario.profile!r}, which cannot "
                "be run live; choose scenarios of profile 'local'"
            )
    return [_as_told(scenario, arguments) for scenario in scenarios]


def _as_told(scenario: Scenario, arguments: argparse.Namespace) -> Scenario:
    """Return a scenario with the start and the duration that the arguments name."""
    start = arguments.start or scenario.start
    warmup_s = scenario.warmup_s if start == "warm" else 0.0
    return dataclasses.replace(scenario, start=start, duration_s=warmup_s + arguments.duration)


def profile_of(path: Path, again: bool | None, limiter: Limiter, copy: Path) -> Profile:
    """Load this machine's profile, or measure it for this comparison alone.

    Args:
        path: This machine's profile, if there is one.
        again: Whether to measure; None: if the profile is not fresh.
        limiter: CPU limiter.
        copy: Where to keep the profile that was used.

    Raises:
        SpongeError: It cannot be read or measured.
    """
    profile = load_profile(path) if path.exists() else None
    if profile is None or again or (again is None and not _is_fresh(profile)):
        return calibrate_to(copy, LiveConfig(limiter=limiter))
    save_profile(profile, copy)
    return profile


def _is_fresh(profile: Profile) -> bool:
    return bool(profile.date) and datetime.now(UTC) - datetime.fromisoformat(profile.date) < FRESH


def run(argv: Sequence[str]) -> int:
    """Run all trials, the agents in turn, and report; return the exit code."""
    arguments = parse(argv)
    require_extra("live", "the comparison")
    scenarios = chosen_scenarios(arguments)
    sys.path.append(str(Path.cwd()))  # where a user's own controllers lie
    options = cli.parse_options(arguments.option, arguments.agent)
    registry = known_controllers()
    controllers = {a: make_controller(a, registry, options.get(a)) for a in arguments.agent}
    out = arguments.out or new_folder("fidelity")
    with cli.terminate_like_interrupt():
        profile = profile_of(
            local_profile_path(), arguments.calibrate, arguments.limiter, out / "profile.json"
        )
        for scenario in scenarios:
            check_live(scenario, profile, arguments.limiter)
        subjects = [
            Subject.of(agent, controller, scenario, profile, arguments.seed)
            for scenario in scenarios
            for agent, controller in controllers.items()
        ]
        command = ["python", "-m", "sponge_env.fidelity", *argv]
        return _measure(subjects, arguments, profile, out, command)


def _measure(
    subjects: Sequence[Subject],
    arguments: argparse.Namespace,
    profile: Profile,
    out: Path,
    command: Sequence[str],
) -> int:
    """Repeat all trials, writing what there is after each; return the exit code."""
    trials: list[Trial] = []
    code = 0
    try:
        for repetition in range(arguments.repetitions):
            for subject in subjects:
                start_live = real_worker(profile, arguments.limiter)
                trials += subject.repeat(repetition, start_live)
                write_results(out, trials, profile, command)
    except KeyboardInterrupt:
        code = cli.INTERRUPTED
    if trials:
        sys.stdout.write(f"{section(trials, profile)}\n\nresults  {out}\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(run, argv)


if __name__ == "__main__":
    sys.exit(main())
