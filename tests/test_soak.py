"""That what hammers and samples a server notices what it does wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import numpy as np
import pytest
from served import running

from benchmarks import hammer
from benchmarks.hammer import Hammer, Tally
from benchmarks.servers import Server
from benchmarks.soak import Report
from benchmarks.vitals import ALLOWED, VitalsWatch, descriptors, grown

TENSOR = {"name": "input", "datatype": "FP32", "shape": [-1, 4]}
Misdeed = Callable[[bytes], bytes | None]
"""Makes of a right answer what is sent; None hangs up."""


def as_http(values: Mapping[str, Any], status: int = 200) -> bytes:
    body = json.dumps(values).encode()
    return f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def slow(answer: bytes) -> bytes:
    time.sleep(0.3)
    return answer


MISDEEDS: dict[str, Misdeed] = {
    "silent": lambda answer: b"",
    "hangs up": lambda answer: None,
    "cut off": lambda answer: answer[:-1],
    "twice": lambda answer: 2 * answer,
    "another's": lambda answer: re.sub(rb'"id": "(.)', rb'"id": "x', answer),
    "broken": lambda answer: as_http({"error": "oh"}, 500),
    "slow": slow,
}


@contextmanager
def rough_server(misdeed: Misdeed) -> Iterator[Server]:
    """Answer each request for an inference, with what a misdeed makes of it."""

    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.wfile.write(as_http({"inputs": [TENSOR]}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            named = re.search(rb'"id": ?"(\w+)"', body)
            answer = misdeed(as_http({"id": named[1].decode() if named else ""}))
            self.close_connection = answer is None
            self.wfile.write(answer or b"")

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

    with Threads(("127.0.0.1", 0), Connection) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield Server("rough", "tiny", server.server_address[1], 1, cast(Any, None))
        finally:
            server.shutdown()


ROW, LONG_S = np.zeros((4,), np.float32), 60.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hammer, "LINGER_S", 0.1)
    monkeypatch.setattr(hammer, "GRACE_S", 0.2)


def hammered(misdeed: str, slo_s: float = LONG_S) -> Tally:
    with rough_server(MISDEEDS[misdeed]) as server:
        return asyncio.run(Hammer(server, ROW, slo_s).run(100.0, 0.2))


def test_a_good_server_withstands_the_hammer() -> None:
    with running() as found:
        server = Server("sponge", "tiny", found.options.port, 0, cast(subprocess.Popen[str], None))
        tally = asyncio.run(Hammer(server, ROW, LONG_S).run(200.0, 0.5))
    assert tally.sent > 50
    assert tally.statuses == {200: tally.sent}
    assert tally.on_time == tally.sent
    assert (tally.unanswered, tally.wrong, tally.errors) == (0, 0, 0)


@pytest.mark.parametrize("misdeed", ["silent", "hangs up", "cut off"])
def test_the_hammer_notices_what_is_not_answered(misdeed: str) -> None:
    tally = hammered(misdeed, slo_s=0.1)
    assert tally.unanswered == tally.sent > 0
    report = Report("kills")
    report.tally(tally)
    assert report.failed


def test_the_hammer_notices_wrong_answers() -> None:
    assert hammered("twice").wrong > 0
    assert hammered("another's").wrong > 0
    tally = hammered("broken")
    assert tally.errors == tally.sent > 0


def test_what_comes_after_the_end_is_no_goodput() -> None:
    """Each is answered in time, but 0.3 s later: none within a run of 0.2 s."""
    tally = hammered("slow")
    assert tally.on_time == tally.sent > 0
    assert tally.goodput_rps == 0


PROCESS = """
import time
kept = []
while True:
    kept.append(b"x" * {size})
    time.sleep(0.001)
"""


@contextmanager
def watched(size: int) -> Iterator[VitalsWatch]:
    """Watch a process that keeps so many bytes each millisecond, or less."""
    process = subprocess.Popen([sys.executable, "-c", PROCESS.format(size=size)])
    try:
        with VitalsWatch(process.pid, every_s=0.02) as watch:
            while len(watch.samples) < 40:
                assert process.poll() is None
            yield watch
    finally:
        process.kill()
        process.wait()


def test_a_leak_is_noticed() -> None:
    until_s = time.monotonic() + LONG_S
    with watched(50_000) as watch:
        while not (found := grown(watch.growth(), requests=1000)):
            assert time.monotonic() < until_s
    assert found == ["memory_mb"]
    with watched(0) as watch:
        assert not grown(watch.growth(), requests=0)


def test_forgotten_connections_count_and_open_ones_do_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = descriptors(os.getpid())
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            assert descriptors(os.getpid()) == before
        assert descriptors(os.getpid()) == before + 1  # accepted, and not closed
        accepted.close()
        assert descriptors(os.getpid()) == before


def test_memory_is_allowed_by_request() -> None:
    growth = {"memory_mb": 10.0, "replicas_mb": 0.0, "descriptors": 0.0, "threads": 0.0}
    assert grown(growth, requests=10_000) == ["memory_mb"]
    assert not grown(growth | {"memory_mb": 0.9 + ALLOWED["memory_mb"]}, requests=10_000)
    assert grown(growth | {"memory_mb": 0.0, "descriptors": 9.0}, requests=10**6) == ["descriptors"]
