"""What a model is to a replica, and any ONNX file as one."""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.models.images import photographs

Array = NDArray[Any]

NO_REPORTS = {"ORT_DISABLE_TELEMETRY": "1"}  # By ONNX Runtime to its maker
os.environ |= NO_REPORTS

SAMPLES = 4  # Inputs that a model is shown where requests bring none

TEXT_BYTES = 4096  # Longest text in a tensor, in UTF-8: shared memory has places of fixed size
TEXT = f"S{TEXT_BYTES + 1}"  # Type of a tensor of texts; ONNX Runtime reads on to a zero byte


@dataclass(frozen=True)
class TensorSpec:
    """Shape and NumPy type of one task's tensor, or of several tensors in one record."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str = field(default="", compare=False)  # What clients call it
    fields: tuple["TensorSpec", ...] = ()  # The tensors of a record; see :func:`record`

    @property
    def tensors(self) -> tuple["TensorSpec", ...]:
        """The tensors of the record, or the one that it is."""
        return self.fields or (self,)

    @property
    def layout(self) -> Any:
        """The type of a row's elements, as NumPy takes it and JSON can say it."""
        if not self.fields:
            return self.dtype
        formats = [f"{each.shape}{each.dtype}" for each in self.fields]
        return {"names": [each.name for each in self.fields], "formats": formats}

    @cached_property
    def element(self) -> np.dtype[Any]:
        """The same as NumPy's own."""
        element: np.dtype[Any] = np.dtype(self.layout, align=True)
        return element

    def parts(self, rows: Any) -> dict[str, Any]:
        """Return the tensors by name of which rows, or one row, consist."""
        return {each.name: rows[each.name] for each in self.fields} or {self.name: rows}


def record(*tensors: TensorSpec) -> TensorSpec:
    """Return one specification for all tensors that a model takes, or answers with."""
    # Of several the rows are records (structured arrays), whose fields have the tensors' names.
    return tensors[0] if len(tensors) == 1 else TensorSpec((), "", fields=tensors)


class Model(ABC):
    """Answers batches of tasks in a replica's process. Derive from it, and name ``module:Class``.

    The process makes its own copy, from the fields if the class is a dataclass, which must be of
    JSON's types, else without arguments. Every cold start pays for a module's imports.
    """

    max_tasks: int = 0  # Most tasks of the next stage that an answer leads to; 0 for none

    inputs: TensorSpec  # Shape and type of one task's input, or a :func:`record` of several
    outputs: TensorSpec  # Of one task's answer; with ``max_tasks``, of one of the next tasks'

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
        """Turn what :meth:`run` returned into each task's answer, or ``max_tasks`` of them."""
        answers: Array = result
        return answers

    def samples(self) -> Array:
        """Return (n, *inputs.shape) inputs to show; never called in a replica's process."""
        rng, inputs = np.random.default_rng(0), self.inputs
        samples = np.zeros((SAMPLES, *inputs.shape), inputs.element)
        for values in inputs.parts(samples).values():
            if values.dtype.kind == "f":
                values[...] = rng.standard_normal(values.shape)
            else:  # 0 and 1 are tokens of every vocabulary
                values[...] = rng.integers(256 if values.dtype == "uint8" else 2, size=values.shape)
        return samples

    def taking(self, inputs: TensorSpec) -> "Model":
        """Return the same model for other inputs, or raise ``ConfigError`` if it has no such."""
        raise ConfigError(f"it takes inputs of {described(self.inputs)}, not {described(inputs)}")


def shares_of_tasks(model: Model) -> tuple[float, ...]:
    """Return the shares of samples that lead to 0, 1, ... tasks; empty if none may lead to any."""
    if not model.max_tasks:
        return ()
    session, images = model.load(threads=1), model.samples()[:, None]
    counts = [len(model.finish(image, model.run(session, image))[0]) for image in images]
    return tuple((np.bincount(counts) / len(counts)).tolist())


def described(tensor: TensorSpec) -> str:
    """Describe tensors, as in ``3 x 224 x 224 float32``."""
    return " and ".join(f"{' x '.join(map(str, t.shape))} {t.dtype}" for t in tensor.tensors)


class OnnxFile(Model):
    """A model whose network is an ONNX file."""

    path: str

    def load(self, threads: int) -> Any:
        """Open the file in the CPU's runtime."""
        return onnx_session(self.path, threads)

    def open(self, load: Callable[[int], Any]) -> None:
        """Open the file."""
        open_onnx(self.path)


@dataclass(frozen=True)
class OnnxModel(OnnxFile):
    """An ONNX file, as :func:`sponge_env.models.registry.inspect_onnx` takes it."""

    path: str
    inputs: TensorSpec
    outputs: TensorSpec
    resizes: bool = False  # Whether the file itself resizes images of any height and width

    def run(self, session: Any, batch: Array) -> Any:
        """Return the outputs."""
        return run_onnx(session, batch)

    def samples(self) -> Array:
        """Return photographs where the input is an image, else random numbers."""
        shape, dtype = self.inputs.shape, self.inputs.dtype
        if len(shape) != 3 or shape[0] not in (1, 3) or not dtype.startswith(("float", "uint8")):
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
    import onnxruntime  # takes a while, and most parents of replicas do without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a spinning thread burns the quota of the thread that works
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # a warning would be a dead replica's last words
    file = open_onnx(path)
    model = path if os.access(path, os.R_OK) else os.pread(file, os.fstat(file).st_size, 0)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, batch: Array) -> Any:
    """Return the output for a batch; of several outputs a tuple for each task."""
    # A record's fields are the inputs, in order. A file whose batch axis is 1 runs task after task.
    inputs = session.get_inputs()
    if len(batch) > 1 and inputs[0].shape[0] == 1:
        return [run_onnx(session, batch[k : k + 1])[0] for k in range(len(batch))]
    fields = [batch[name] for name in batch.dtype.names] if batch.dtype.names else [batch]
    feeds = {value.name: values for value, values in zip(inputs, fields, strict=True)}
    outputs = [_in_utf8(a) if a.dtype == object else a for a in session.run(None, feeds)]
    return outputs[0] if len(outputs) == 1 else list(zip(*outputs, strict=True))


def _in_utf8(texts: Array) -> Array:
    encoded = np.char.encode(texts.astype(str), "utf-8")
    if encoded.dtype.itemsize > TEXT_BYTES:
        raise ValueError(f"it answers with a text of more than {TEXT_BYTES} bytes")
    return encoded
