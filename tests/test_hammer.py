"""That what hammers a server notices what it does wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import hammer
from benchmarks.hammer import Hammer, Tally
from benchmarks.servers import Server

TENSOR = {"name": "input", "datatype": "FP32", "shape": [-1, 4]}
Misdeed = Callable[[bytes], bytes | None]
"""Makes of a right answer what is sent; None hangs up."""


def as_http(values: Mapping[str, Any]) -> bytes:
    body = json.dumps(values).encode()
    return f"HTTP/1.1 200 -\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


MISDEEDS: dict[str, Misdeed] = {
    "silent": lambda answer: b"",
    "hangs up": lambda answer: None,
    "cut off": lambda answer: answer[:-1],
    "twice": lambda answer: 2 * answer,
    "another's": lambda answer: re.sub(rb'"id": "(.)', rb'"id": "x', answer),
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


@pytest.mark.parametrize("misdeed", ["silent", "hangs up", "cut off"])
def test_the_hammer_notices_what_is_not_answered(misdeed: str) -> None:
    tally = hammered(misdeed, slo_s=0.1)
    assert tally.unanswered == tally.sent > 0


def test_the_hammer_notices_wrong_answers() -> None:
    assert hammered("twice").wrong > 0
    assert hammered("another's").wrong > 0
