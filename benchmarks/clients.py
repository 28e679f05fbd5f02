"""Clients of the Open Inference Protocol: lean ones, and tritonclient as it comes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import Server
from sponge_env.serve.load.client import (
    HEADER_LENGTH,
    Answer,
    AnswerParser,
    HttpClient,
    infer_head,
    infer_path,
)

Array = NDArray[Any]
TIMEOUT_S = 60.0
LONG_MS = 60_000
"""SLO of requests that are not to be refused, whatever there is to do."""


class LeanClient:
    """One connection that is kept; requests are made beforehand, and answers are read."""

    def __init__(self, server: Server, rows: Array, slo_ms: float | None = None) -> None:
        """Make requests for rows; without an SLO they have the server's default."""
        (tensor,) = server.metadata["inputs"]
        parameters = {} if slo_ms is None else {"slo_ms": slo_ms}
        client, path = HttpClient(f"http://127.0.0.1:{server.port}"), infer_path(server.model)
        self._requests = []
        for row in rows:
            head = infer_head(tensor["name"], row, parameters, "")
            size, headers = len(head) + row.nbytes, {HEADER_LENGTH: len(head)}
            parts = client.head("POST", path, size, headers), head, row.tobytes()
            self._requests.append(b"".join(parts))
        self._socket = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = AnswerParser()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.close()

    def answer(self, at: int) -> Array:
        """Send a request; return what the model answered."""
        self._socket.sendall(self._requests[at % len(self._requests)])
        answers: Sequence[Answer] = ()
        while not answers:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the server closed the connection")
            answers = self._parser.feed(data)
        answer = self._parser.answers.pop()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {answer.json}")
        start = int(answer.headers[HEADER_LENGTH.lower()])
        return np.frombuffer(answer.body[start:], np.float32)


class TritonClient:
    """``tritonclient`` over HTTP or gRPC, with a tensor made for each request, as its users do."""

    def __init__(self, server: Server, rows: Array, protocol: Literal["http", "grpc"]) -> None:
        """Connect."""
        self._library = import_module(f"tritonclient.{protocol}")
        port = server.grpc_port if protocol == "grpc" else server.port
        metadata, self._model = server.metadata, server.model
        self._input, self._output = metadata["inputs"][0], metadata["outputs"][0]["name"]
        self._rows = [row[np.newaxis] for row in rows]
        self._client = self._library.InferenceServerClient(f"127.0.0.1:{port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def answer(self, at: int) -> Array:
        """Send a request; return what the model answered."""
        row = self._rows[at % len(self._rows)]
        tensor = self._library.InferInput(self._input["name"], row.shape, self._input["datatype"])
        tensor.set_data_from_numpy(row)
        output = self._library.InferRequestedOutput(self._output)
        result = self._client.infer(self._model, [tensor], outputs=[output])
        array: Array = result.as_numpy(self._output)[0]
        return array
