"""That what hammers, fuzzes and watches a server notices what it does wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import rough_server as does
from fake_engine import FakeEngine
from rough_server import Misdeed, rough_server
from served import running

from benchmarks import hammer, tolerance
from benchmarks.fuzzed import Fuzzer, is_whole, may_be_followed
from benchmarks.hammer import Hammer, Tally
from benchmarks.report import Report
from benchmarks.servers import Server
from benchmarks.tolerance import converse, send, send_all, wrong
from benchmarks.vitals import ALLOWED, Watch, descriptors, grown
from sponge_env.serve.interface import Reply, Status

ROW = np.zeros((4,), np.float32)


LONG_S = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hammer, "TWICE_S", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than a test may take for what never comes."""
    monkeypatch.setattr(hammer, "GRACE_S", 0.2)
    monkeypatch.setattr(tolerance, "ANSWER_S", 0.5)


@contextmanager
def good_server(engine: FakeEngine | None = None) -> Iterator[Server]:
    """Serve as this project does."""
    with running(engine) as found:
        options = found.options
        yield Server("sponge", "tiny", options.port, options.grpc_port or 0, cast(Any, None))


# Hammer -------------------------------------------------------------------------------------


def hammered(misdeed: Misdeed, seconds: float = 0.2, slo_s: float = LONG_S) -> Tally:
    with rough_server(misdeed) as server:
        return asyncio.run(Hammer(server, ROW, slo_s).run(100.0, seconds))


def test_a_good_server_stands_the_hammer() -> None:
    with good_server() as server:
        tally = asyncio.run(Hammer(server, ROW, LONG_S).run(200.0, 0.5))
    assert tally.sent > 50
    assert tally.statuses == {200: tally.sent}
    assert tally.on_time == tally.sent
    assert (tally.unanswered, tally.twice, tally.errors) == (0, 0, 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("misdeed", [does.silent, does.hangs_up, does.cut_off])
def test_the_hammer_notices_what_is_not_answered(misdeed: Misdeed) -> None:
    tally = hammered(misdeed, slo_s=0.1)
    assert tally.unanswered == tally.sent > 0
    report = Report()
    report.tally("kills", tally)
    assert report.failed


@pytest.mark.parametrize("misdeed", [does.twice, does.anothers])
def test_the_hammer_notices_what_is_answered_twice_or_by_anothers(misdeed: Misdeed) -> None:
    assert hammered(misdeed).twice > 0


def test_the_hammer_notices_errors() -> None:
    tally = hammered(does.broken)
    assert tally.errors == tally.sent > 0


def test_what_comes_after_the_end_is_no_goodput() -> None:
    """Each is answered in time, but 0.3 s later: none within a run of 0.2 s."""
    tally = hammered(does.slow)
    assert tally.on_time == tally.sent > 0
    assert tally.goodput_rps == 0


# Fuzzer -------------------------------------------------------------------------------------


def fuzzed(server: Server, count: int = 40) -> Counter[str]:
    return asyncio.run(send_all(server, Fuzzer(server, ROW.tobytes(), ROW.shape), count))


def test_a_good_server_stands_the_fuzzer() -> None:
    endings = Status.ANSWERED, Status.REFUSED, Status.EXPIRED
    engine = FakeEngine()
    usual, ends = engine.answer, iter(range(10**6))

    def answer(call: Any) -> Reply | None:
        status = endings[next(ends) % len(endings)]
        return usual(call) if status is Status.ANSWERED else Reply(status)

    engine.answer = answer
    with good_server(engine) as server:
        outcomes = fuzzed(server, 1000)
    assert outcomes.total() >= 1000
    assert not wrong(outcomes)
    assert outcomes["200"] > 20
    assert outcomes["400"] > 100
    reached = ("OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")  # the engine, which takes turns
    assert sum(outcomes[f"gRPC {code}"] for code in reached) > 1
    assert outcomes["gRPC INVALID_ARGUMENT"] > 5


@pytest.mark.parametrize(
    ("misdeed", "noticed"),
    [
        (does.silent, "unanswered: waits for more"),
        (does.cut_off, "broken answer: TimeoutError"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_the_fuzzer_notices_what_never_comes(misdeed: Misdeed, noticed: str) -> None:
    test_the_fuzzer_notices(misdeed, noticed)


@pytest.mark.parametrize(
    ("misdeed", "noticed"),
    [
        (does.hangs_up, "unanswered: closed"),
        (does.twice, tolerance.TWICE),
        (does.broken, "500"),
    ],
)
def test_the_fuzzer_notices(misdeed: Misdeed, noticed: str) -> None:
    with rough_server(misdeed) as server:
        fuzzer = Fuzzer(server, ROW.tobytes(), ROW.shape)
        assert asyncio.run(send(server, fuzzer.right())) == noticed
        outcomes = fuzzed(server)
    assert wrong(outcomes)[noticed] > 0
    report = Report()
    report.outcomes("fuzz", outcomes)
    assert report.failed


def test_the_fuzzer_notices_who_is_not_there() -> None:
    with rough_server(does.right) as server:
        fuzzer = Fuzzer(server, ROW.tobytes(), ROW.shape)
    assert wrong(Counter([asyncio.run(send(server, fuzzer.right()))])) == {"no connection": 1}
    report = Report()
    report.outcomes("fuzz", Counter())
    assert report.failed


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("pipelined", [True, False])
def test_each_request_of_a_connection_is_to_be_answered(pipelined: bool) -> None:
    """The second of three is swallowed."""
    answers = iter(range(3))

    def misdeed(answer: bytes) -> bytes:
        return b"" if next(answers) == 1 else answer

    with rough_server(misdeed) as server:
        right = Fuzzer(server, ROW.tobytes(), ROW.shape).right()
        outcomes = asyncio.run(converse(server, [right] * 3, pipelined))
    assert len(outcomes) > 1
    assert wrong(Counter(outcomes)) == {"unanswered: waits for more": 1}


def test_it_is_known_which_requests_must_be_answered() -> None:
    get = b"GET / HTTP/1.1\r\n"
    whole = get + b"Content-Length: 2\r\n\r\nab"
    assert is_whole(whole)
    assert may_be_followed(whole)
    for request in (whole + b"c", get + b"Connection: close\r\nContent-Length: 0\r\n\r\n"):
        assert is_whole(request)
        assert not may_be_followed(request)
    for request in (whole[:-1], get, get + b"\r\n", get + b"Content-Length: x\r\n\r\n"):
        assert not is_whole(request)
        assert not may_be_followed(request)


# Memory -------------------------------------------------------------------------------------

PROCESS = """
import sys, time
kept = []
while True:
    kept.append(b"x" * {size})
    time.sleep(0.001)
"""


@contextmanager
def watched(size: int) -> Iterator[Watch]:
    """Watch a process that keeps so many bytes each millisecond, or less."""
    process = subprocess.Popen([sys.executable, "-c", PROCESS.format(size=size)])
    try:
        with Watch(process.pid, every_s=0.02) as watch:
            while len(watch.seen) < 40:
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


def test_who_keeps_nothing_has_not_grown() -> None:
    with watched(0) as watch:
        assert not grown(watch.growth(), requests=0)


def test_connections_are_the_clients_to_close_and_forgotten_ones_are_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = descriptors(os.getpid())
        with socket.create_connection(server.getsockname()) as client:
            accepted, _ = server.accept()
            assert descriptors(os.getpid()) == before
        # The client is gone, and who has accepted it has not closed it.
        assert client.fileno() == -1
        assert descriptors(os.getpid()) == before + 1
        accepted.close()
        assert descriptors(os.getpid()) == before


def test_memory_is_allowed_by_request() -> None:
    """A server that keeps 1 KB of each request is found out in the tenth thousand."""
    growth = {"memory_mb": 10.0, "replicas_mb": 0.0, "descriptors": 0.0, "threads": 0.0}
    assert grown(growth, requests=10_000) == ["memory_mb"]
    assert not grown(growth | {"memory_mb": 0.9 + ALLOWED.memory_mb}, requests=10_000)
    assert grown(growth | {"memory_mb": 0.0, "descriptors": 9.0}, requests=10**6) == ["descriptors"]
