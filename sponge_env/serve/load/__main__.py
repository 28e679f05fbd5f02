"""Send the requests of a scenario to a server, and print what a client measures."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
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
    from sponge_env.serve.load.client import HttpClient
    from sponge_env.serve.load.open_loop import OpenLoop
    from sponge_env.serve.load.result import LoadResult
    from sponge_env.simulation.workload import Workload

TOKEN = "SPONGE_TOKEN"
"""Environment variable for the token, because all users of a machine see its command lines."""
DEADLINES = ("headers", "timeout")
"""How a request states its deadline: ``x-slo-ms`` and ``x-sent-at-ms``, or Triton's parameter
``timeout``, in microseconds from its arrival on."""
LATE_S = 0.02
"""99th percentile of the client's own lateness from which the measurement is spoiled."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with one sentence and exit code 2."""
    return cli.run_script(load, argv)


def load(argv: Sequence[str]) -> int:
    """Send, wait and print; return the exit code."""
    arguments = _parse(argv)
    require_extra("serve", "sponge load")
    from sponge_env.serve.load.client import HttpClient

    client = HttpClient(arguments.url, arguments.token or os.environ.get(TOKEN))
    for file in filter(None, (arguments.json, arguments.requests)):
        check_writable(file)
    scenario, profile = _scenario(arguments)
    from sponge_env.run.notices import announce

    _print(announce([scenario]))
    workload = _draw(scenario, profile, arguments.seed)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_measure(client, scenario, workload, arguments))
    return _report(result, profile, arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=cli.program("load"),
        description="Send the requests of a scenario to a server, open loop, with their deadlines, "
        "and print what a client measures.",
        epilog=f"example: {cli.program('load')} --url http://127.0.0.1:8000 --scenario local "
        "--duration 60",
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    add("--model", metavar="NAME", help="model to call (default: the server's only one)")
    add("--scenario", default="local", help="shipped scenario or TOML file (default: local)")
    add("--profile", metavar="P",
        help="latency profile instead of the scenario's, which loads are relative to")  # fmt: skip
    add("--trace", metavar="FILE", help="bandwidth trace instead of the scenario's")
    add("--arrivals", metavar="FILE", help="arrival trace instead of the scenario's arrivals")
    scaling = parser.add_mutually_exclusive_group()
    scaling.add_argument("--rate", type=float, metavar="RPS",
        help="mean rate of the requests instead of the scenario's or the trace's")  # fmt: skip
    scaling.add_argument("--load", type=float, metavar="SHARE",
        help="the same as a share of what one replica with all its cores can serve, "
        "e.g. 0.6")  # fmt: skip
    add("--duration", type=float, metavar="SECONDS",
        help="send requests for so long (default: as long as the scenario)")  # fmt: skip
    add("--seed", type=cli.at_least(0), default=0, metavar="N", help="of the workload (default: 0)")
    add("--deadlines", type=cli.one_of("form", DEADLINES), default="headers",
        help="how requests state their deadline: headers of this project, or Triton's parameter "
        "timeout")  # fmt: skip
    add("--uint8", action="store_true",
        help="send images in bytes, a quarter of the size, where a model takes floats")  # fmt: skip
    add("--token", help=f"bearer token; better in the environment variable {TOKEN}")
    add("--json", type=Path, metavar="FILE", help="write the summary here")
    add("--requests", type=Path, metavar="FILE", help="write every request here, as parquet")
    return parser.parse_args(argv)


def _scenario(arguments: argparse.Namespace) -> tuple[Scenario, Profile | None]:
    """Return the scenario that the arguments name, and its profile if one is there.

    Without one, requests can be sent that do not depend on it.
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


def _draw(scenario: Scenario, profile: Profile | None, seed: int) -> Workload:
    from sponge_env.scenario.profile import load_profile
    from sponge_env.simulation.workload import draw_workload

    if profile is None:  # any profile will do: the rate does not depend on it
        stand_in = dataclasses.replace(scenario, profile="lite0", stages=())
        return draw_workload(stand_in, load_profile("lite0"), seed)
    return draw_workload(scenario, profile, seed)


async def _measure(
    client: HttpClient, scenario: Scenario, workload: Workload, arguments: argparse.Namespace
) -> LoadResult:
    from sponge_env.serve.load.open_loop import OpenLoop
    from sponge_env.serve.load.result import LoadResult
    from sponge_env.serve.load.target import ServerState, find_target, sample_inputs, try_out

    with closing(client):
        target = await find_target(client, arguments.model)
        inputs = target.inputs._replace(dtype="uint8") if arguments.uint8 else target.inputs
        tensors = sample_inputs(target.model, inputs)
        await try_out(client, target, tensors[0])
        result = LoadResult(scenario, target, workload, ServerState(client))
        count = len(workload.id)
        _print([f"{count} requests to {target.model} at {target.url} ({target.server})"])
        await _send(OpenLoop(client, tensors, result, arguments.deadlines))
    return result


async def _send(sender: OpenLoop) -> None:
    result, duration_s = sender.result, round(sender.result.scenario.duration_s)
    with closing(Progress("load", duration_s, "second")) as progress:

        async def watch() -> None:
            while True:
                progress.show(int(min(duration_s, max(0.0, sender.now_s))), result.status)
                await asyncio.sleep(1.0)
                await result.state.poll()

        await result.state.begin()
        sending = asyncio.create_task(sender.run())
        watching = asyncio.create_task(watch())
        with _interrupting(sending.cancel):
            try:
                await sending
            except asyncio.CancelledError:
                result.partial = True
        watching.cancel()
        await result.state.poll()


@contextmanager
def _interrupting(stop: Callable[[], object]) -> Iterator[None]:
    """Call this at an interrupt, a termination or the loss of the terminal."""
    loop = asyncio.get_running_loop()
    handled = [number for number in cli.ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _report(result: LoadResult, profile: Profile | None, arguments: argparse.Namespace) -> int:
    from sponge_env.results.tables import comparison_table, write_summaries
    from sponge_env.serve.load.result import report_lines, request_columns, summarise_load

    summary = summarise_load(result, arguments.seed, profile)
    lines = [comparison_table([summary]), "", *report_lines(result)]
    if arguments.json:
        write_summaries(arguments.json, [summary])
        lines.append(f"summary      {arguments.json}")
    if arguments.requests:
        from sponge_env.run.record import write_table

        write_table(arguments.requests, request_columns(result))
        lines.append(f"requests     {arguments.requests}")
    _print(lines)
    if (late_s := result.lateness_s(0.99)) > LATE_S:
        sys.stderr.write(
            f"warning: this client sent 1 % of the requests {late_s * 1000:.0f} ms late or more: "
            "its machine is too slow or too busy for this load\n"
        )
    return cli.INTERRUPTED if result.partial else 0


def _print(lines: Sequence[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()
