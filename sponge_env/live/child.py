"""The process that runs the models of a replica, and nothing else.

Started as a script by :mod:`sponge_env.live.local`. It lives under its CPU limit from
its first moment, so it imports no more than it needs: under a small share every import is
felt. Everything it does is charged to its quota. It leaves it to the parent to read its CPU
clock: reading one's own settles the quota's accounts there and then, and a batch that had
just ended under an exhausted quota would wait for the next period with its answer.
"""

import functools
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER = struct.Struct("=qIII")  # From the parent: batch id, its size, threads, index of the variant

REPORT = struct.Struct("=qdd")
"""What the child sends: batch id, monotonic start and end. Where the model failed on some tasks of
the batch, ``{place: reason}`` follows in JSON."""

MAX_REASONS = 1 << 14  # Characters of all reasons of a report together

STATUS = "Status Message: "  # Before the reason in what ONNX Runtime says

SESSIONS_KEPT = 2
"""Numbers of threads that each variant is kept ready for: each holds memory of its own, and takes
its time to be made ready (``sponge calibrate`` measures both)."""

READY = -1  # Batch id of the report that the child is ready


def plain(text: str, most: int) -> str:
    """Return the beginning of a text in characters that logs show, and JSON, as they are."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:most])


class Tensors(NamedTuple):
    """What parent and child share."""

    inputs: NDArray[Any]  # (batch_max, *shape of an input)
    counts: NDArray[np.int32]  # (batch_max,) tasks that each answer leads to, where it leads to any
    answers: NDArray[Any]  # (batch_max, *shape of an answer), or (batch_max, max_tasks, *shape)


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is to do, passed to it in JSON when it starts."""

    models: Sequence[tuple[str, dict[str, Any]]]  # ``module:Class`` and arguments of each variant
    batch_max: int
    inputs: tuple[Sequence[int], Any]  # Shape and type of one task's input
    outputs: tuple[Sequence[int], Any]  # Of a task's answer, or of one of the tasks it leads to
    max_tasks: int = 0  # How many tasks an answer can lead to
    path: Sequence[str] = ()  # Where modules are looked for
    threads: int = 1  # Threads to be ready for at first
    socket: int = -1  # File descriptor of the channel to the parent
    memory: int = -1  # File descriptor of the memory that holds the tensors

    @property
    def tensors_dtype(self) -> np.dtype[Any]:
        """Layout of the shared memory."""
        (task, task_type), (answer, answer_type) = self.inputs, self.outputs
        several = (self.max_tasks,) if self.max_tasks else ()
        answers = (self.batch_max, *several, *answer)
        fields = [
            ("inputs", np.dtype(task_type, align=True), (self.batch_max, *task)),
            ("counts", np.dtype("int32"), (self.batch_max,)),
            ("answers", np.dtype(answer_type, align=True), answers),
        ]
        return np.dtype(fields, align=True)

    def map_tensors(self) -> Tensors:
        """Lay the tensors over the memory."""
        dtype = self.tensors_dtype
        block = np.ndarray((), dtype, mmap.mmap(self.memory, dtype.itemsize))
        return Tensors(*(block[name] for name in Tensors._fields))


class ModelServer:
    """The variants, each made ready for a number of threads when that is first asked for."""

    def __init__(self, job: Job) -> None:
        self._tensors = job.map_tensors()
        self._models = []
        for place, arguments in job.models:
            module, _, name = place.partition(":")
            self._models.append(getattr(importlib.import_module(module), name)(**arguments))
        self._sessions = [functools.lru_cache(SESSIONS_KEPT)(m.load) for m in self._models]

    def open(self) -> None:
        """Open the files of all variants."""
        for model, session in zip(self._models, self._sessions, strict=True):
            model.open(session)

    def make_ready(self, threads: int) -> None:
        """Run all variants: the first large batch allocates, and belongs to the cold start."""
        for variant in range(len(self._models)):
            self.answer(len(self._tensors.inputs), threads, variant)  # it may fail on zeros

    def answer(self, size: int, threads: int, variant: int = 0) -> dict[int, str]:
        """Answer the first ``size`` tasks; where the model fails, return on which, and why."""
        # It fails on what a client sent, such as an unknown token; others are answered one by one.
        self._sessions[variant](threads)  # if it cannot be made, that is no task's fault
        try:
            self.run(size, threads, variant)
            return {}
        except Exception:
            reasons, counts = {}, self._tensors.counts
        for task in range(size):
            try:
                self.run(1, threads, variant, task)
            except Exception as error:
                text = " ".join(str(error).rpartition(STATUS)[2].split()) or type(error).__name__
                reasons[task] = plain(text, MAX_REASONS // size)
                counts[task] = 0
        return reasons

    def run(self, size: int, threads: int, variant: int = 0, first: int = 0) -> None:
        """Answer ``size`` tasks from the ``first`` on with one of the variants."""
        model, session = self._models[variant], self._sessions[variant](threads)
        inputs, counts, slots = self._tensors
        batch = inputs[first : first + size]
        answers = model.finish(batch, model.run(session, batch))
        for task, answer in zip(range(first, first + size), answers, strict=True):
            if model.max_tasks:
                counts[task] = len(answer)
                slots[task, : len(answer)] = answer
            else:
                slots[task] = answer


def import_light(path: Sequence[str]) -> None:
    """Look for modules where the parent does, but leave out what the project imports at its top."""
    # That registers environments, which takes a fifth of a cold start, and a model needs none.
    sys.path[:] = path
    package = types.ModuleType("sponge_env")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules.setdefault("sponge_env", package)


def load(job: Job) -> ModelServer:
    """Load the models, then give up root's right to read what others may not."""
    # Each thread has that right from the one that starts it: none may be started before.
    from sponge_env.live.sandbox import KEPT, keep_capabilities

    server = ModelServer(job)
    if keep_capabilities(KEPT):
        server.open()
    keep_capabilities(0)
    server.make_ready(job.threads)
    return server


def main() -> None:
    """Load the models, then answer orders until the parent closes the channel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    started_s = time.monotonic()
    job = Job(**json.loads(sys.argv[1]))
    import_light(job.path)
    server = load(job)
    report = REPORT.pack(READY, started_s, time.monotonic())
    failed: dict[int, str] = {}
    while True:
        os.write(job.socket, report + (json.dumps(failed).encode() if failed else b""))
        if not (order := os.read(job.socket, ORDER.size)):
            return
        batch_id, size, threads, variant = ORDER.unpack(order)
        started_s = time.monotonic()
        failed = server.answer(size, threads, variant)
        report = REPORT.pack(batch_id, started_s, time.monotonic())


if __name__ == "__main__":
    main()
