"""Clients of the Open Inference Protocol: lean ones, and tritonclient as it comes.

Each is a context whose value sends one of the rows and returns what the model answered.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from typing import Any, Literal

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
Call = Callable[[int], Array]
"""Has the model answer one of the rows."""
TIMEOUT_S = 60.0
LONG_MS = 60_000
"""SLO of requests that are not to be refused, whatever there is to do."""


@contextmanager
def lean_client(server: Server, rows: Array, slo_ms: float | None = None) -> Iterator[Call]:
    """Use one connection that is kept, with requests that are made beforehand.

    Without an SLO they have the server's default.
    """
    (tensor,) = server.metadata["inputs"]
    parameters = {} if slo_ms is None else {"slo_ms": slo_ms}
    client, path = HttpClient(f"http://127.0.0.1:{server.port}"), infer_path(server.model)
    requests, parser = [], AnswerParser()
    for row in rows:
        head = infer_head(tensor["name"], row, parameters, "")
        size, headers = len(head) + row.nbytes, {HEADER_LENGTH: len(head)}
        requests.append(client.head("POST", path, size, headers) + head + row.tobytes())
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call(at: int) -> Array:
            connection.sendall(requests[at % len(requests)])
            answers: Sequence[Answer] = ()
            while not answers:
                data = connection.recv(1 << 20)
                if not data:
                    raise ConnectionError("the server closed the connection")
                answers = parser.feed(data)
            answer = parser.answers.pop()
            if answer.status != 200:
                raise ConnectionError(f"status {answer.status}: {answer.json}")
            start = int(answer.headers[HEADER_LENGTH.lower()])
            return np.frombuffer(answer.body[start:], np.float32)

        yield call


@contextmanager
def triton_client(server: Server, rows: Array, protocol: Literal["http", "grpc"]) -> Iterator[Call]:
    """Use ``tritonclient``, with a tensor made for each request, as its users do."""
    library = import_module(f"tritonclient.{protocol}")
    port = server.grpc_port if protocol == "grpc" else server.port
    (inputs,), (outputs,) = server.metadata["inputs"], server.metadata["outputs"]
    with closing(library.InferenceServerClient(f"127.0.0.1:{port}")) as client:

        def call(at: int) -> Array:
            row = rows[at % len(rows)][np.newaxis]
            tensor = library.InferInput(inputs["name"], row.shape, inputs["datatype"])
            tensor.set_data_from_numpy(row)
            output = library.InferRequestedOutput(outputs["name"])
            answer = client.infer(server.model, [tensor], outputs=[output])
            array: Array = answer.as_numpy(outputs["name"])[0]
            return array

        yield call
