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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import CPUS, MODEL_CPU, OTHERS, ended, keeping_to
from sponge_env.models.efficientnet import efficientnet
from sponge_env.models.model import onnx_session, run_onnx

Array = NDArray[Any]


@contextmanager
def relay(name: str, rows: Array) -> Iterator[Callable[[int], Array]]:
    """Serve an EfficientNet by a relay; return what sends one of the rows and has its answer."""
    output = np.empty(efficientnet(name).outputs.shape, np.float32)
    command = [sys.executable, "-m", "benchmarks.relay", name]
    with keeping_to(CPUS):
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ended(started) as process:
        assert process.stdout is not None
        address = "127.0.0.1", int(process.stdout.readline())
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def answer(at: int) -> Array:
                connection.sendall(rows[at % len(rows)])
                if not read_into(connection, output):
                    raise ConnectionError("the relay closed the connection")
                return output

            yield answer


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
