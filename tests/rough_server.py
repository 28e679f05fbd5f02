"""HTTP servers that do wrong, in a thread: what a benchmark has to notice."""

from __future__ import annotations

import json
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from benchmarks.servers import Server

SHAPE = (4,)
TENSOR = {"name": "input", "datatype": "FP32", "shape": [-1, *SHAPE]}
Misdeed = Callable[[bytes], bytes | None]
"""Makes of a right answer what is sent; None hangs up."""


def as_http(found: Mapping[str, Any], status: int = 200) -> bytes:
    body = json.dumps(found).encode()
    head = f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def silent(answer: bytes) -> bytes:
    return b""


def twice(answer: bytes) -> bytes:
    return 2 * answer


def hangs_up(answer: bytes) -> None:
    """Close the connection."""


def cut_off(answer: bytes) -> bytes:
    return answer[:-1]


def anothers(answer: bytes) -> bytes:
    return re.sub(rb'"id": "(.)', rb'"id": "x', answer)


def broken(answer: bytes) -> bytes:
    return as_http({"error": "oh"}, 500)


def slow(answer: bytes) -> bytes:
    time.sleep(0.3)
    return answer


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while head := self._head():
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = self.rfile.read(int(length[1]) if length else 0)
            if head.startswith(b"GET"):
                self.wfile.write(as_http({"inputs": [TENSOR]}))
                continue
            named = re.search(rb'"id": ?"(\w+)"', body)
            answer = as_http({"id": named[1].decode() if named else ""})
            said = cast(Any, self.server).misdeed(answer)
            if said is None:
                return
            self.wfile.write(said)

    def _head(self) -> bytes:
        lines = b""
        while line := self.rfile.readline():
            lines += line
            if line == b"\r\n":
                break
        return lines


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def rough_server(misdeed: Misdeed) -> Iterator[Server]:
    """Answer each request for an inference, with what a misdeed makes of it."""
    with _Threads(("127.0.0.1", 0), _Connection) as server:
        cast(Any, server).misdeed = misdeed
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield Server("rough", "tiny", server.server_address[1], 1, cast(Any, None))
        finally:
            server.shutdown()
