"""Send the requests of a scenario to a server, and tell what a client sees of it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sponge_env import cli
from sponge_env.errors import ConfigError, ProfileError
from sponge_env.scenario.profile import Profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.utils.console import Progress
from sponge_env.utils.files import check_writable
from sponge_env.utils.installation import require_extra

if TYPE_CHECKING:
    from sponge_env.serve.load.open_loop import OpenLoop
    from sponge_env.serve.load.seen import Seen
    from sponge_env.simulation.workload import Workload

TOKEN = "SPONGE_TOKEN"
"""Environment variable for the token, for everybody on a machine sees its command lines."""
DEADLINES = ("headers", "timeout")
"""As :data:`sponge_env.serve.load.open_loop.Deadlines`, which takes a while to import."""
LATE_S = 0.02
"""99th percentile of the client's own lateness from which on it spoils the measurement."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(load, argv)


def load(argv: Sequence[str]) -> int:
    """Send, wait and print; return the exit code."""
    arguments = _parse(argv)
    require_extra("serve", "sponge load")
    from sponge_env.serve.load.client import checked_url

    checked_url(arguments.url)
    for file in filter(None, (arguments.json, arguments.requests)):
        check_writable(file)
    scenario, profile = _played(arguments)
    from sponge_env.run.notices import announce

    _say(announce([scenario]))
    workload = _drawn(scenario, profile, arguments.seed)
    with asyncio.Runner(loop_factory=_loop) as runner:
        seen = runner.run(_measure(scenario, workload, arguments))
    return _report(seen, profile, arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("load"),
        description="Send the requests of a scenario to a server, open loop, with their deadlines, "
        "and tell what a client sees.",
        epilog=f"example: {cli.program('load')} --url http://127.0.0.1:8000 --scenario local "
        "--duration 60",
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    add("--model", metavar="NAME", help="model to call (default: the server's only one)")
    add("--scenario", default="local", help="shipped scenario or TOML file (default: local)")
    said = "latency profile instead of the scenario's, which loads are relative to"
    add("--profile", metavar="P", help=said)
    add("--trace", metavar="FILE", help="bandwidth trace instead of the scenario's")
    add("--arrivals", metavar="FILE", help="arrival trace instead of the scenario's arrivals")
    scaling = parser.add_mutually_exclusive_group()
    said = "mean rate of the requests instead of the scenario's or the arrival trace's"
    scaling.add_argument("--rate", type=float, metavar="RPS", help=said)
    said = "the same as a share of what one replica with all its cores can serve, e.g. 0.6"
    scaling.add_argument("--load", type=float, metavar="SHARE", help=said)
    said = "send requests for so long (default: as long as the scenario)"
    add("--duration", type=float, metavar="SECONDS", help=said)
    add("--seed", type=cli.at_least(0), default=0, metavar="N", help="of the workload (default: 0)")
    said = "how requests say their deadline: headers of this project, or Triton's parameter timeout"
    add("--deadlines", type=cli.one_of("form", DEADLINES), default="headers", help=said)
    said = "send images in bytes, a quarter of the size, to a model that takes floats"
    add("--uint8", action="store_true", help=said)
    add("--token", help=f"bearer token; better in the environment variable {TOKEN}")
    add("--json", type=Path, metavar="FILE", help="write the summary here")
    add("--requests", type=Path, metavar="FILE", help="write every request here, as parquet")
    return parser.parse_args(argv)


def _played(arguments: argparse.Namespace) -> tuple[Scenario, Profile | None]:
    """Return the scenario that the arguments name, and its profile if one is there.

    Without one, requests that do not depend on it can be sent all the same.
    """
    from sponge_env.run.suite import changed

    arguments.drop = None  # the server's business
    changes = cli.scenario_changes(arguments)
    changes.pop("serving.drop", None)
    for key, value in (("duration_s", arguments.duration), ("profile", arguments.profile)):
        if value is not None:
            changes[key] = value
    scenario = changed(load_scenario(arguments.scenario), changes)
    try:
        return scenario, scenario_profile(scenario)
    except ProfileError as error:
        if arguments.profile or scenario.arrivals.load is not None:
            raise ConfigError(f"{error}; or say --rate") from None
    return scenario, None


def _drawn(scenario: Scenario, profile: Profile | None, seed: int) -> Workload:
    """Return the requests of a scenario."""
    from sponge_env.scenario.profile import load_profile
    from sponge_env.simulation.workload import draw_workload

    if profile is None:  # any will do, for the rate does not depend on it
        stand_in = dataclasses.replace(scenario, profile="lite0", stages=())
        return draw_workload(stand_in, load_profile("lite0"), seed)
    return draw_workload(scenario, profile, seed)


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def _measure(scenario: Scenario, workload: Workload, arguments: argparse.Namespace) -> Seen:
    """Ask the server what it serves, send everything, and return what was seen."""
    from sponge_env.serve.load.client import find_target, opened, try_out
    from sponge_env.serve.load.held import Held
    from sponge_env.serve.load.open_loop import OpenLoop, Record
    from sponge_env.serve.load.pictures import pictures
    from sponge_env.serve.load.seen import Seen

    async with opened(arguments.token or os.environ.get(TOKEN)) as session:
        target = await find_target(session, arguments.url, arguments.model)
        inputs = target.inputs._replace(dtype="uint8") if arguments.uint8 else target.inputs
        tensors = pictures(target.model, inputs)
        await try_out(session, target, tensors[0])
        strictest = [scenario.slo_s, *(kind.slo_s for kind in scenario.classes)]
        record = Record(workload)
        sender = OpenLoop(
            session, target, tensors, record, scenario.duration_s + max(strictest),
            arguments.deadlines,
        )  # fmt: skip
        seen = Seen(scenario, target, record, Held(session, target.url))
        _say([f"{len(workload.id)} requests to {target.model} at {target.url} ({target.server})"])
        await _send(sender, seen)
    return seen


async def _send(sender: OpenLoop, seen: Seen) -> None:
    """Send until all have ended, or until somebody interrupts it."""
    duration_s = round(seen.scenario.duration_s)
    with closing(Progress("load", duration_s, "second")) as progress:

        def show(now_s: float) -> None:
            progress.show(min(duration_s, int(now_s)), seen.status)

        await seen.held.begin()
        sending = asyncio.create_task(sender.run(show))
        watching = asyncio.create_task(seen.held.watch())
        with _interrupting(sending.cancel):
            try:
                await sending
            except asyncio.CancelledError:
                seen.partial = True
        watching.cancel()
        await seen.held.look()


@contextmanager
def _interrupting(stop: Callable[[], object]) -> Iterator[None]:
    """Call this instead of being interrupted, or terminated, or left without a terminal."""
    loop = asyncio.get_running_loop()
    heeded = [number for number in cli.ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heeded = []  # only that one has signals
    for number in heeded:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


def _report(seen: Seen, profile: Profile | None, arguments: argparse.Namespace) -> int:
    """Print what was seen, write what is wanted, and return the exit code."""
    from sponge_env.results.tables import comparison_table, write_summaries
    from sponge_env.serve.load.seen import episode, lines, requests

    summary = episode(seen, arguments.seed, profile)
    said = [comparison_table([summary]), "", *lines(seen)]
    if arguments.json:
        write_summaries(arguments.json, [summary])
        said.append(f"summary      {arguments.json}")
    if arguments.requests:
        from sponge_env.run.unit import write_table

        write_table(arguments.requests, requests(seen))
        said.append(f"requests     {arguments.requests}")
    _say(said)
    if (late_s := seen.lateness_s(0.99)) > LATE_S:
        sys.stderr.write(
            f"warning: this client sent 1 % of the requests {late_s * 1000:.0f} ms late or more: "
            "its machine is too slow or too busy for this load\n"
        )
    return cli.INTERRUPTED if seen.partial else 0


def _say(lines: Sequence[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()
