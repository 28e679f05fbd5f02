"""Sends a scenario's requests to a server: each when it is due, whatever happens to the others.

A closed loop, which waits for an answer before it sends on, would measure a slow server as one
with little load. The transfer is emulated here: a request is put on the wire when the workload
says that it arrives, and states itself when it was sent.
"""

import asyncio
import dataclasses
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Any

import uvloop
from numpy.typing import NDArray

from sponge_env import cli
from sponge_env.errors import ConfigError, ProfileError
from sponge_env.results.tables import comparison_table, write_summaries
from sponge_env.run.notices import announce
from sponge_env.run.suite import changed
from sponge_env.scenario.graph import is_set
from sponge_env.scenario.profile import Profile, load_profile
from sponge_env.scenario.scenario import Scenario, load_scenario
from sponge_env.scenario.spec import scenario_profile
from sponge_env.serve.load import result as results
from sponge_env.serve.load.client import HEADER_LENGTH, HttpClient, infer_head, infer_path, reason
from sponge_env.serve.load.result import LoadResult
from sponge_env.serve.load.target import ServerState, find_target, sample_inputs
from sponge_env.serve.options import TOKEN
from sponge_env.serve.wire.tensors import to_bytes
from sponge_env.simulation.workload import Workload, draw_workload
from sponge_env.utils.console import Progress

LATE_S = 0.02  # 99th percentile of the client's own lateness from which the measurement is spoiled
GRACE_S = 3.0  # How long after its deadline an answer is still waited for
LEAD_S = 0.3  # Time until the first request is sent

BY_STATUS: dict[int, int] = {
    HTTPStatus.OK: results.ANSWERED, HTTPStatus.TOO_MANY_REQUESTS: results.REFUSED,
    HTTPStatus.SERVICE_UNAVAILABLE: results.REFUSED, HTTPStatus.GATEWAY_TIMEOUT: results.EXPIRED,
}  # fmt: skip


def load(arguments: Namespace) -> None:
    """Send, wait and print."""
    client = HttpClient(arguments.url, os.environ.get(TOKEN))
    cli.check_file("--json", arguments.json)
    scenario, profile = _scenario(arguments)
    _print(announce([scenario]))
    if profile is None:  # any profile will do: the rate does not depend on it
        stand_in = dataclasses.replace(scenario, profile="lite0", stages=())
        workload = draw_workload(stand_in, load_profile("lite0"), arguments.seed)
    else:
        workload = draw_workload(scenario, profile, arguments.seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_measure(client, scenario, workload, arguments))
    _report(result, profile, arguments)


def _scenario(arguments: Namespace) -> tuple[Scenario, Profile | None]:
    """Return the scenario of the arguments, and its profile unless none is there, or needed."""
    arguments.drop, arguments.random_start = None, False  # the server's business; none to draw
    changes = cli.scenario_changes(arguments)
    changes.pop("serving.drop", None)
    given = {"duration_s": arguments.duration, "profile": arguments.profile}
    changes |= {key: value for key, value in given.items() if value is not None}
    scenario = changed(load_scenario(arguments.scenario), changes)
    if is_set(scenario.stages):
        raise ConfigError(f"{scenario.name!r} is a set of models, not the load of --model")
    try:
        return scenario, scenario_profile(scenario)
    except ProfileError as error:
        if arguments.profile or scenario.arrivals.rate_rps is None:
            text = f"{error}; or say --rate, or --profile of the model that is called"
            raise ConfigError(text) from None
    return scenario, None


async def _measure(
    client: HttpClient, scenario: Scenario, workload: Workload, arguments: Namespace
) -> LoadResult:
    async with client:
        target = await find_target(client, arguments.model)
        rows = sample_inputs(target.model, target.inputs)
        result = LoadResult(scenario, target, workload, ServerState(client))
        _print([f"{len(workload.id)} requests to {target.model} at {client.url} ({target.server})"])
        await _send(OpenLoop(client, rows, result, arguments.deadlines))
    return result


async def _send(sender: "OpenLoop") -> None:
    result, duration_s = sender.result, round(sender.result.scenario.duration_s)
    with closing(Progress("load", duration_s, "second")) as progress:

        async def watch() -> None:
            while True:
                progress.show(min(duration_s, math.ceil(max(0.0, sender.now_s))))
                await asyncio.sleep(1.0)
                warms_up = sender.now_s < result.scenario.count_from_s
                await (result.state.begin() if warms_up else result.state.poll())

        await result.state.begin()
        watching = asyncio.create_task(watch())
        await sender.run()
        watching.cancel()
        await result.state.poll()


def _report(result: LoadResult, profile: Profile | None, arguments: Namespace) -> None:
    summary = results.summarise_load(result, arguments.seed, profile)
    lines = [comparison_table([summary]), "", *results.report_lines(result)]
    if arguments.json:
        write_summaries(arguments.json, [summary])
        lines.append(f"summary      {arguments.json}")
    _print(lines)
    if (late_s := result.lateness_s(0.99)) > LATE_S:
        sys.stderr.write(
            f"warning: this client sent 1 % of the requests {late_s * 1000:.0f} ms late or more: "
            "its machine is too slow or too busy for this load\n"
        )


def _print(lines: Sequence[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


@dataclasses.dataclass
class OpenLoop:
    """Sends a workload, and notes in its result how each request ended."""

    client: HttpClient
    rows: Sequence[Mapping[str, NDArray[Any]]]  # Tensors that are sent in turn
    result: LoadResult
    deadlines: str = "headers"  # How requests state them; see ``DEADLINES`` of the command
    _begin_s: float = math.inf  # On the monotonic clock: that of the loop has milliseconds only
    _begin_unix_s: float = 0.0

    async def run(self) -> None:
        """Send all; return when all have ended."""
        self._begin_s, self._begin_unix_s = time.monotonic() + LEAD_S, time.time() + LEAD_S
        bodies = [b"".join(map(to_bytes, row.values())) for row in self.rows]
        scenario, result = self.result.scenario, self.result
        longest_s = max(scenario.slo_s, *(one.slo_s for one in scenario.classes), 0.0)
        async with asyncio.TaskGroup() as group:
            for at, arrival_s in enumerate(result.workload.arrival_s.tolist()):
                if arrival_s > scenario.duration_s + longest_s:
                    result.ended[at:] = results.IN_TRANSFER
                    return
                await asyncio.sleep(0)  # also where it is late, so that answers are read
                while (wait_s := arrival_s - self.now_s) > 0:  # timers may fire a little early
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(at, bodies[at % len(bodies)]))

    @property
    def now_s(self) -> float:
        """Time since the beginning of the workload."""
        return time.monotonic() - self._begin_s

    async def _send(self, at: int, body: bytes) -> None:
        result, target = self.result, self.result.target
        parameters, headers = self._deadline(at)
        head = infer_head(self.rows[at % len(self.rows)], parameters)
        headers[HEADER_LENGTH] = str(len(head))
        result.put_s[at] = now_s = self.now_s
        wait_s = max(0.0, float(result.workload.deadline_s[at]) - now_s) + GRACE_S
        ended = results.SILENT
        try:
            async with asyncio.timeout(wait_s):
                path = infer_path(target.model)
                answer = await self.client.request("POST", path, head + body, headers)
            ended = BY_STATUS.get(answer.status, results.FAILED)
        except TimeoutError:
            pass
        except OSError as error:
            ended, result.error = results.FAILED, reason(error)
        else:
            # Our server says with a refusal when to try again, and has other reasons for a 503.
            if answer.status == 503 and target.server == "sponge":
                ended = ended if b"retry_after_ms" in answer.body else results.FAILED
            if ended == results.FAILED:
                text = answer.body[:200].decode(errors="replace")
                result.error = f"status {answer.status}: {text}"
        result.finished_s[at], result.ended[at] = self.now_s, ended

    def _deadline(self, at: int) -> tuple[dict[str, Any], dict[str, str]]:
        workload = self.result.workload
        sent_s, deadline_s = float(workload.sent_s[at]), float(workload.deadline_s[at])
        if self.deadlines == "timeout":
            return {"timeout": max(1, int((deadline_s - self.now_s) * 1e6))}, {}
        return {}, {
            "x-slo-ms": f"{(deadline_s - sent_s) * 1000:.3f}",
            "x-sent-at-ms": f"{(self._begin_unix_s + sent_s) * 1000:.3f}",
        }
