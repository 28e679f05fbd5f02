"""Compare the simulator with the real worker: ``python -m sponge_env.fidelity``."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

from sponge_env import cli
from sponge_env.env import factory
from sponge_env.fidelity.report import write_results
from sponge_env.fidelity.trial import Subject, Trial, real_worker
from sponge_env.live.calibration import calibrate_files
from sponge_env.run.registry import known_controllers, make_controller
from sponge_env.run.store import new_folder
from sponge_env.run.suite import load_suite
from sponge_env.scenario.config import Start
from sponge_env.scenario.scenario import load_scenario, with_own_slo

COMMAND = ("python", "-m", "sponge_env.fidelity")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(prog="sponge fidelity", description=__doc__.split(":")[0])
    add, agents = parser.add_argument, list(load_suite("quick").agents)
    text = "registered controllers, or your own as module:Class (default: those of the suite quick)"
    add("--agent", nargs="+", default=agents, metavar="NAME", help=text)
    where, local = "scenarios of this machine's worker", ["local", "flash-crowd-local"]
    add("--scenario", nargs="+", default=local, metavar="NAME", help=where)
    add("--duration", type=float, default=60.0, metavar="SECONDS")
    start = "cold or warm (default: as the scenario says); a warm-up of "
    start += "the scenario's length comes on top of the duration"
    add("--start", type=cli.one_of("start", get_args(Start)), help=start)
    add("--repetitions", type=cli.at_least(1), default=5, metavar="N")
    add("--seed", type=cli.at_least(0), default=0, help="of the arrivals")
    add("--option", action="append", default=[], metavar="AGENT.KEY=VALUE")
    first = "measure this machine first (its speed drifts from one hour to the next)"
    add("--calibrate", action="store_true", help=first)
    cli.add_limiter(parser)
    cli.add_machine(parser)
    add("--out", type=Path, metavar="DIR", help="folder for the results")
    return parser.parse_args(argv)


@cli.command
def main(argv: Sequence[str]) -> int:
    """Run all trials, the agents in turn, and report; return the exit code."""
    arguments, scenarios = parse(argv), []
    for scenario in map(load_scenario, arguments.scenario):
        start = arguments.start or scenario.start
        duration_s = arguments.duration + scenario.warmup_s * (start == "warm")
        scenarios.append(replace(scenario, start=start, duration_s=duration_s))
    options = cli.parse_options(arguments.option, arguments.agent)
    registry, limiter = known_controllers(), arguments.limiter
    controllers = {a: make_controller(a, registry, options.get(a)) for a in arguments.agent}
    out = arguments.out or new_folder("fidelity")
    trials: list[Trial] = []
    factory.prepare_machine(arguments.wait, arguments.cpus)
    with cli.terminate_like_interrupt(), ExitStack() as opened:
        if arguments.calibrate:  # all: what is compared is measured at the same time
            calibrate_files(factory.calibrations(scenarios, limiter))
        profiles = [factory.ensure_profile(scenario, "live", limiter) for scenario in scenarios]
        measured = list(zip(map(with_own_slo, scenarios), profiles, strict=True))
        for scenario, profile in measured:
            factory.check_live(scenario, profile, limiter)
            # also between live runs, or a repetition might find the CPUs taken
            opened.enter_context(factory.live_machine(scenario, limiter, profile))
        subjects = [
            Subject.of(agent, controller, *each, arguments.seed)
            for each in measured
            for agent, controller in controllers.items()
        ]
        oldest = min((profile for _, profile in measured), key=lambda profile: profile.date)
        code, text = 0, ""
        try:
            for repetition, subject in product(range(arguments.repetitions), subjects):
                worker = real_worker(subject.scenario, subject.profile, limiter)
                trials += subject.repeat(repetition, worker)
                text = write_results(out, trials, oldest, [*COMMAND, *argv])
        except KeyboardInterrupt:
            code = cli.INTERRUPTED
    if text:
        sys.stdout.write(f"{text}\n\nresults  {out}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
