"""The process that runs the model, and nothing else.

Started as a script by :mod:`sponge_env.live.local`. It lives under its CPU limit from
its first moment, so it imports no more than it needs: under a small share every import is
felt. Everything it does is charged to its quota. It leaves it to the parent to read its CPU
clock: reading one's own settles the quota's accounts there and then, and a batch that had
just ended under an exhausted quota would wait for the next period with its answer.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDER = struct.Struct("=qII")
"""What the parent sends: batch id, batch size, threads."""

REPORT = struct.Struct("=qdd")
"""What the child sends: batch id, monotonic start and end."""

SESSIONS_KEPT = 2
"""Numbers of threads the model is kept ready for: EfficientNet-Lite0 takes 170 MB for each
after a batch of 16, and 60 ms to make ready for another."""

READY = -1
"""Batch id of the report that the child is ready."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is told when it starts."""

    model: str
    """Path of the ONNX file."""
    batch_max: int
    image_shape: tuple[int, int, int]
    """Channels, height and width of one input image."""
    outputs: int
    """Numbers the model answers for one image."""
    threads: int = 1
    """Threads to be ready for at first."""
    socket: int = -1
    """File descriptor of the channel to the parent."""
    memory: int = -1
    """File descriptor of the memory that holds the tensors."""

    @property
    def memory_bytes(self) -> int:
        """Size of the shared memory."""
        return 4 * self.batch_max * (int(np.prod(self.image_shape)) + self.outputs)

    def map_tensors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lay (batch_max, *image_shape) inputs and (batch_max, outputs) over the memory."""
        block = np.frombuffer(mmap.mmap(self.memory, self.memory_bytes), dtype=np.float32)
        size = self.batch_max * int(np.prod(self.image_shape))
        inputs = block[:size].reshape(self.batch_max, *self.image_shape)
        return inputs, block[size:].reshape(self.batch_max, self.outputs)


class Model:
    """The model, made ready for a number of threads when that is first asked for."""

    def __init__(self, job: Job) -> None:
        self._inputs, self._outputs = job.map_tensors()
        make_session = functools.partial(_session, job.model)
        self._session = functools.lru_cache(SESSIONS_KEPT)(make_session)
        self._input_name = self._session(job.threads).get_inputs()[0].name
        # the first large batch allocates: that belongs to the cold start
        self.run(job.batch_max, job.threads)

    def run(self, size: int, threads: int) -> None:
        """Answer the first ``size`` images."""
        images = {self._input_name: self._inputs[:size]}
        answer = self._session(threads).run(None, images)[0]
        self._outputs[:size] = answer.reshape(size, -1)


def _session(path: str, threads: int) -> Any:
    import onnxruntime  # the parent imports this module too, but not the runtime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a spinning thread burns the quota of the thread that works
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Load the model, then answer orders until the parent closes the channel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    started_s = time.monotonic()
    job = Job(**json.loads(sys.argv[1]))
    model = Model(job)
    report = (READY, started_s, time.monotonic())
    while True:
        os.write(job.socket, REPORT.pack(*report))
        order = os.read(job.socket, ORDER.size)
        if not order:
            return
        batch_id, size, threads = ORDER.unpack(order)
        started_s = time.monotonic()
        model.run(size, threads)
        report = (batch_id, started_s, time.monotonic())


if __name__ == "__main__":
    main()
