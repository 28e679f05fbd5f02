"""The least that a server can do: bytes in, the model in a process of its own, bytes out.

No HTTP, no queue, no deadlines, one client. What a request costs here beyond the model is sockets,
copies and wake-ups on this machine, which no server can do without.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import CPUS, MODEL_CPU, OTHERS, ended, keeping_to
from sponge_env.models.efficientnet import efficientnet
from sponge_env.models.model import onnx_session, run_onnx

Array = NDArray[Any]


class RelayClient:
    """The only client of a relay."""

    def __init__(self, port: int, rows: Array, output: Array) -> None:
        """Connect; answers come as ``output`` is."""
        self._rows, self._output = rows, output
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer(self, at: int) -> Array:
        """Send a row; return what the model answered."""
        self._socket.sendall(self._rows[at % len(self._rows)])
        if not read_into(self._socket, self._output):
            raise ConnectionError("the relay closed the connection")
        return self._output

    def close(self) -> None:
        """Disconnect, which ends the relay."""
        self._socket.close()


@contextmanager
def relay(name: str, rows: Array) -> Iterator[RelayClient]:
    """Serve an EfficientNet by a relay within the context."""
    command = [sys.executable, "-m", "benchmarks.relay", name]
    with keeping_to(CPUS):
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ended(started) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        client = RelayClient(port, rows, np.empty(efficientnet(name).outputs.shape, np.float32))
        try:
            yield client
        finally:
            client.close()


def read_into(connection: socket.socket, array: Array) -> bool:
    """Fill an array with bytes that come; return False if the connection ends before."""
    room, filled = memoryview(array).cast("B"), 0
    while filled < len(room):
        size = connection.recv_into(room[filled:])
        if not size:
            return False
        filled += size
    return True


def serve(name: str) -> None:
    """Relay for one client, until it disconnects."""
    model = efficientnet(name)
    row = np.empty(model.inputs.shape, model.inputs.dtype)
    block = mmap.mmap(-1, row.nbytes + 4 * int(np.prod(model.outputs.shape)))
    inputs = np.ndarray((1, *row.shape), row.dtype, block)
    outputs = np.ndarray((1, *model.outputs.shape), np.float32, block, row.nbytes)
    near, far = socket.socketpair()
    if os.fork() == 0:
        near.close()
        os.sched_setaffinity(0, {MODEL_CPU})
        session = onnx_session(model.path, threads=1)
        while far.recv(1):
            outputs[:] = run_onnx(session, inputs)
            far.send(b"!")
        os._exit(0)
    far.close()
    os.sched_setaffinity(0, OTHERS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while read_into(connection, inputs):
        near.send(b"?")
        near.recv(1)
        connection.sendall(outputs)


if __name__ == "__main__":
    serve(sys.argv[1])
