"""What a model is to a replica, and any ONNX file as one."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.models.images import photographs

Array = NDArray[Any]

SAMPLES = 4
"""Inputs that a model is shown where requests bring none."""


class TensorSpec(NamedTuple):
    """Shape and NumPy type of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class Model(ABC):
    """Answers batches of tasks in a replica's process. Derive from it, and name ``module:Class``.

    The process makes its own copy, from the fields if the class is a dataclass, which must be of
    JSON's types, else without arguments. Every cold start pays for a module's imports.
    """

    max_tasks: int = 0
    """How many tasks of the next stage an answer can lead to; 0 where it leads to none."""

    inputs: TensorSpec
    """Shape and type of one task's input."""
    outputs: TensorSpec
    """Shape and type of one task's answer; with ``max_tasks``, of one of the next tasks'."""

    def load(self, threads: int) -> Any:
        """Make what :meth:`run` needs, for so many threads."""
        return None

    def open(self, load: Callable[[int], Any]) -> None:
        """Read what root alone may read; no thread may start here, for it would keep that right."""
        load(1)

    @abstractmethod
    def run(self, session: Any, batch: Array) -> Any:
        """Run the network on a (size, *inputs.shape) batch, with what :meth:`load` made."""

    def finish(self, batch: Array, result: Any) -> Sequence[Array] | Array:
        """Turn what :meth:`run` returned into one answer for each task of the batch.

        An answer has the shape of ``outputs``; with ``max_tasks`` it is a stack of up to so many.
        """
        answers: Array = result
        return answers

    def samples(self) -> Array:
        """Return (n, *inputs.shape) inputs to show; never called in a replica's process."""
        rng, shape = np.random.default_rng(0), (SAMPLES, *self.inputs.shape)
        if np.dtype(self.inputs.dtype).kind == "f":
            return rng.standard_normal(shape).astype(self.inputs.dtype)
        return rng.integers(0, 256, shape).astype(self.inputs.dtype)

    def taking(self, inputs: TensorSpec) -> Model:
        """Return the same model for other inputs, or raise ``ConfigError`` if it has no such."""
        raise ConfigError(
            f"it takes inputs of {described(self.inputs)}, not of {described(inputs)}"
        )


def shares_of_tasks(model: Model) -> tuple[float, ...]:
    """Return the shares of a model's samples whose answer leads to 0, 1, 2, ... tasks.

    It runs in this process; of a model whose answers lead to none it is empty.
    """
    if not model.max_tasks:
        return ()
    session, images = model.load(threads=1), model.samples()[:, None]
    counts = [len(model.finish(image, model.run(session, image))[0]) for image in images]
    return tuple((np.bincount(counts) / len(counts)).tolist())


def described(tensor: TensorSpec) -> str:
    """Describe a tensor, as in ``3 x 224 x 224 float32``."""
    return f"{' x '.join(map(str, tensor.shape))} {tensor.dtype}"


@dataclass(frozen=True)
class OnnxModel(Model):
    """An ONNX file with one input and a dynamic batch axis; the answer is its first output."""

    path: str
    inputs: TensorSpec
    outputs: TensorSpec
    resizes: bool = False
    """Whether the file itself resizes images of any height and width."""

    def load(self, threads: int) -> Any:
        """Open the file in the CPU's runtime."""
        return onnx_session(self.path, threads)

    def open(self, load: Callable[[int], Any]) -> None:
        """Open the file."""
        open_onnx(self.path)

    def run(self, session: Any, batch: Array) -> Array:
        """Return the first output."""
        return run_onnx(session, batch)

    def samples(self) -> Array:
        """Return photographs where the input is an image, else random numbers."""
        shape, dtype = self.inputs
        if len(shape) != 3 or shape[0] not in (1, 3):
            return super().samples()
        return photographs((shape[0], shape[1], shape[2]), dtype)

    def taking(self, inputs: TensorSpec) -> Model:
        """Return the same file for images of another size, if it resizes them."""
        own = self.inputs
        if self.resizes and (inputs.dtype, inputs.shape[:1]) == (own.dtype, own.shape[:1]):
            return dataclasses.replace(self, inputs=inputs)
        return super().taking(inputs)


@cache
def open_onnx(path: str) -> int:
    """Open a file for good: what root alone may open a replica cannot open a second time."""
    import onnxruntime  # noqa: F401  # from where root alone may read, too

    return os.open(path, os.O_RDONLY)


def onnx_session(path: str, threads: int) -> Any:
    """Open an ONNX file in the CPU's runtime."""
    import onnxruntime  # a replica's process imports it, its parent does not

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a spinning thread burns the quota of the thread that works
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # a warning would be a dead replica's last words
    file = open_onnx(path)
    model = path if os.access(path, os.R_OK) else os.pread(file, os.fstat(file).st_size, 0)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, batch: Array) -> Array:
    """Return the first output for a batch of the only input."""
    (name,) = (value.name for value in session.get_inputs())
    answers: Array = session.run(None, {name: batch})[0]
    return answers
