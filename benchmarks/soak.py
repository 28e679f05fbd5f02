"""Overload, killed replicas and many minutes of service: what a server must withstand.

    python -m benchmarks.soak [--part NAME ...]

Prints a table of checks; the exit code is 1 if one failed.
(Broken requests are in ``tests/test_serve_fuzz.py``: ``make fuzz``.)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.hammer import Hammer, Tally
from benchmarks.servers import OTHERS, Server, children, sponge
from benchmarks.serving import saturate
from benchmarks.vitals import VitalsWatch, grown
from sponge_env import cli
from sponge_env.models.efficientnet import efficientnet
from sponge_env.results.layout import aligned
from sponge_env.serve.load.client import HttpClient

MODEL = "efficientnet-lite0-uint8"
AGENT, FULL = "sponge-ip", "static-16"
"""Agent in charge, and the one that has all cores, under which capacity is measured."""
SLO_S = 1.0
GOODPUT = 0.9
"""Of capacity, under overload."""
SECONDS = {"capacity": 10.0, "overload": 60.0, "kills": 60.0, "soak": 600.0}
"""Duration of each part, and of a measurement of the capacity."""
OVERLOAD = 3.0
"""Load of that part, relative to the capacity."""
KILL_EVERY_S = 6.0


@dataclass
class Report:
    """Checks of one part of the test, one row each, and whether one of them failed."""

    part: str
    rows: list[list[str]] = field(default_factory=list)
    failed: bool = False

    def add(self, what: str, expected: str, measured: object, passed: bool) -> None:
        """Add a check."""
        name, mark = f"{self.part}: {what}", "" if passed else "FAILED"
        self.rows.append([name, expected, str(measured), mark])
        self.failed |= not passed
        print(f"{name} {measured} (expected: {expected})", file=sys.stderr)

    def tally(self, tally: Tally) -> None:
        """Add how requests ended."""
        counts = ", ".join(f"{n} x {status}" for status, n in sorted(tally.statuses.items()))
        self.add("statuses", "200, 503, 504", counts, not tally.errors)
        self.add("unanswered", f"0 of {tally.sent}", tally.unanswered, not tally.unanswered)
        self.add("wrong answers", "0", tally.wrong, not tally.wrong)

    def growth(self, watch: VitalsWatch, tally: Tally) -> None:
        """Add by how much the server grew while it served requests."""
        growth = watch.growth()
        more = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
        # from the middle of the second quarter to that of the last
        self.add("growth", "none", more, not grown(growth, tally.sent // 2))


def capacity_rps(server: Server, rows: NDArray[Any]) -> float:
    """Return the throughput of a server that is never idle, with all cores."""
    server.fetch("/agent", {"agent": FULL})
    saturate(server, rows, 2.0)
    seconds = SECONDS["capacity"]
    came_s = saturate(server, rows, seconds)
    server.fetch("/agent", {"agent": AGENT})
    return sum(each_s <= seconds for each_s in came_s) / seconds


def overload(server: Server, rows: NDArray[Any], report: Report) -> None:
    """Send three times what it can serve."""
    capacity, hammer = capacity_rps(server, rows), Hammer(server, rows[0], SLO_S)
    with VitalsWatch(server.process.pid) as watch:
        tally = asyncio.run(hammer.run(OVERLOAD * capacity, SECONDS["overload"]))
    report.tally(tally)
    share = tally.goodput_rps / capacity
    text = f"{tally.goodput_rps:.1f} of {capacity:.1f} rps, {share:.0%}"
    report.add("goodput", f">= {GOODPUT:.0%} of capacity", text, share >= GOODPUT)
    report.growth(watch, tally)


def replicas(server: Server) -> list[int]:
    """Return the processes of the replicas."""
    found = []
    for pid in children(server.process.pid):
        with suppress(OSError):
            if "live/child.py" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def counted(server: Server, name: str) -> int:
    """Return the sum of a counter in a server's metrics."""
    lines = server.fetch("/metrics").decode().splitlines()
    return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)))


def kills(server: Server, rows: NDArray[Any], report: Report) -> None:
    """Kill replicas while requests come."""
    rng, rate_rps = random.Random(0), 0.4 * capacity_rps(server, rows)
    hammer, killed = Hammer(server, rows[0], SLO_S), list[int]()
    names = "sponge_requests_total", "sponge_restarts_total"
    before = [counted(server, name) for name in names]

    async def kill() -> None:
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            if pids := replicas(server):
                killed.append(rng.choice(pids))
                os.kill(killed[-1], signal.SIGKILL)

    tally = asyncio.run(_beside(hammer.run(rate_rps, SECONDS["kills"]), kill))
    report.tally(tally)
    requests, restarts = (
        counted(server, name) - earlier for name, earlier in zip(names, before, strict=True)
    )
    report.add("requests counted", str(tally.sent), requests, requests == tally.sent)
    report.add("restarts", str(len(killed)), restarts, restarts == len(killed))
    share = tally.on_time / tally.sent
    report.add("on time", "> 50%", f"{share:.1%}", share > 0.5)


async def _beside(work: Awaitable[Tally], *others: Callable[[], Awaitable[None]]) -> Tally:
    """Do some work, and other things until it is done."""
    tasks = [asyncio.ensure_future(each()) for each in others]
    try:
        return await work
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended or RuntimeError("it ended early")


def soak(server: Server, rows: NDArray[Any], report: Report) -> None:
    """Serve for long, while clients leave, agents change and the metrics are read."""
    rate_rps, hammer = 0.5 * capacity_rps(server, rows), Hammer(server, rows[0], SLO_S)
    client, statuses = HttpClient(f"http://127.0.0.1:{server.port}"), Counter[int]()

    async def look() -> None:
        while True:
            for path in ("/metrics", "/state", "/v2/models/stats"):
                statuses[(await client.request("GET", path)).status] += 1
            await asyncio.sleep(1.0)

    async def go_away() -> None:
        while True:
            await hammer.send(leave_after_s=random.random() * 0.05)
            await asyncio.sleep(0.5)

    async def switch() -> None:
        for agent in itertools.cycle((AGENT, FULL)):
            await asyncio.to_thread(server.fetch, "/agent", {"agent": agent})
            await asyncio.sleep(20.0)

    with VitalsWatch(server.process.pid) as watch:
        work = hammer.run(rate_rps, SECONDS["soak"])
        tally = asyncio.run(_beside(work, look, go_away, switch))
    server.fetch("/agent", {"agent": AGENT})
    report.tally(tally)
    report.add("other requests", "200", dict(statuses), set(statuses) == {200})
    report.growth(watch, tally)


PARTS = {"overload": overload, "kills": kills, "soak": soak}


def run(argv: Sequence[str]) -> int:
    """Run the parts that were chosen."""
    parser = cli.Parser(prog="python -m benchmarks.soak", description="Try to break the server.")
    parts = cli.one_of("part", tuple(PARTS))
    parser.add_argument("--part", action="append", type=parts, help="only this; may be repeated")
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, OTHERS)
    reports = [Report(part) for part in arguments.part or PARTS]
    rows = np.ascontiguousarray(efficientnet(MODEL).samples())
    with cli.terminate_like_interrupt(), tempfile.TemporaryFile("w+") as log:
        with sponge(MODEL, "--agent", AGENT, stderr=log) as server:
            for report in reports:
                PARTS[report.part](server, rows, report)
        log.seek(0)
        text = log.read()[-2000:]
    checks = [row for report in reports for row in report.rows]
    print("\n".join(aligned([["", "expected", "measured", ""], *checks])))
    failed = any(report.failed for report in reports)
    if failed and text:
        print(f"\nlast lines of the server:\n{text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(cli.run_script(run, None))
