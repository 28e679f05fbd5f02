"""Clients of the Open Inference Protocol that cost little, and tritonclient as it comes."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import Server

Array = NDArray[Any]
HEAD_END = b"\r\n\r\n"
TIMEOUT_S = 60.0
LONG_MS = 60_000
"""Deadline of requests that are not to be refused, whatever there is to do."""


def infer_request(server: Server, row: Array, parameters: Mapping[str, Any] | None = None) -> bytes:
    """Return a whole HTTP request for one row in the binary extension."""
    (tensor,) = server.metadata["inputs"]
    return infer_bytes(server.model, tensor["name"], tensor["datatype"], row, parameters)


def infer_bytes(
    model: str, name: str, datatype: str, row: Array, parameters: Mapping[str, Any] | None = None
) -> bytes:
    """Return a whole HTTP request for one row in the binary extension."""
    described = {
        "name": name, "datatype": datatype, "shape": [1, *row.shape],
        "parameters": {"binary_data_size": row.nbytes},
    }  # fmt: skip
    said = {"inputs": [described], "parameters": {"binary_data_output": True, **(parameters or {})}}
    head = json.dumps(said).encode()
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + row.nbytes}",
        f"Inference-Header-Content-Length: {len(head)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + row.tobytes()


def fields(head: bytes) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer, by lower-case names."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in parts}


def output(headers: Mapping[str, str], body: bytes) -> Array:
    """Return the FP32 tensor of an answer."""
    start = int(headers["inference-header-content-length"])
    return np.frombuffer(body[start:], np.float32)


class LeanClient:
    """One connection that is kept; a request goes out as it was made, and its answer is read."""

    def __init__(self, server: Server, rows: Array, slo_ms: float | None = None) -> None:
        """Make requests for rows; without an SLO they have whatever the server takes for one."""
        said = {} if slo_ms is None else {"slo_ms": slo_ms}
        self._requests = [infer_request(server, row, said) for row in rows]
        self._socket = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = bytearray(1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.close()

    def __call__(self, at: int) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers and body of its answer."""
        self._socket.sendall(self._requests[at % len(self._requests)])
        room, filled, end = memoryview(self._room), 0, -1
        while end < 0:
            filled += self._more(room[filled:])
            end = self._room.find(HEAD_END, 0, filled)
        status, headers = fields(bytes(room[:end]))
        whole = end + len(HEAD_END) + int(headers.get("content-length", 0))
        while filled < whole:
            filled += self._more(room[filled:])
        return status, headers, bytes(room[end + len(HEAD_END) : whole])

    def _more(self, room: memoryview) -> int:
        size = self._socket.recv_into(room)
        if not size:
            raise ConnectionError("the server closed the connection")
        return size

    def answer(self, at: int) -> Array:
        """Send a request; return what the model answered."""
        status, headers, body = self(at)
        if status != 200:
            raise ConnectionError(f"status {status}: {body[:200].decode(errors='replace')}")
        return output(headers, body)


class TritonClient:
    """``tritonclient`` over HTTP or gRPC, with a tensor made for each request, as its users do."""

    def __init__(self, server: Server, rows: Array, grpc: bool) -> None:
        """Connect."""
        if grpc:
            import tritonclient.grpc as library  # type: ignore[import-untyped]
        else:
            import tritonclient.http as library  # type: ignore[import-untyped]
        port = server.grpc_port if grpc else server.port
        metadata = server.metadata
        self._library, self._model = library, server.model
        self._input, self._output = metadata["inputs"][0], metadata["outputs"][0]["name"]
        self._rows = [row[np.newaxis] for row in rows]
        self._client = library.InferenceServerClient(f"127.0.0.1:{port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def answer(self, at: int) -> Array:
        """Send a request; return what the model answered."""
        row = self._rows[at % len(self._rows)]
        tensor = self._library.InferInput(self._input["name"], row.shape, self._input["datatype"])
        tensor.set_data_from_numpy(row)
        wanted = self._library.InferRequestedOutput(self._output)
        answer = self._client.infer(self._model, [tensor], outputs=[wanted])
        found: Array = answer.as_numpy(self._output)[0]
        return found
