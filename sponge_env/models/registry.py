"""From a model's name to a model that a replica can serve."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sponge_env.errors import ConfigError, SpongeError, unknown
from sponge_env.models.efficientnet import EFFICIENTNETS, efficientnet
from sponge_env.models.model import (
    TEXT,
    Model,
    OnnxModel,
    TensorSpec,
    described,
    onnx_session,
    record,
)
from sponge_env.models.ocr import OCR_MODELS
from sponge_env.utils.installation import check_typed, imported, look_here, missing, require_extra

KNOWN = (*EFFICIENTNETS, *OCR_MODELS)  # Names of the models that come with the project
NUMBERS = "biuf"  # Kinds of NumPy types of numbers that tensors may have
TENSORS = {  # NumPy's types by those of the runtime
    **{"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": TEXT},
    **{f"tensor({name})": name for name in ("bool", "float16")},
    **{f"tensor({u}int{n})": f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}


def resolve_model(name: str) -> Model:
    """Find a model: a name in :data:`KNOWN`, a file or ``module:Class``; else a ``SpongeError``."""
    if "onnxruntime" in missing("live"):  # more is not needed to serve
        require_extra("live", "the real worker")
    if name.endswith(".onnx"):
        return inspect_onnx(Path(name).resolve())
    if name in EFFICIENTNETS:
        return efficientnet(name)
    if name in OCR_MODELS:
        require_extra("ocr", f"the model {name}")
        return OCR_MODELS[name].checked()
    if all(name.partition(":")):
        return _own(name)
    raise ConfigError(f"{unknown('model', name, KNOWN)}, or name an .onnx file or module:Class")


def resolve_variants(names: Sequence[str]) -> list[Model]:
    """Find models that answer alike, for one replica to hold; else a ``ConfigError``."""
    # They all take the largest of their inputs; smaller models of :data:`EFFICIENTNETS` resize it.
    models = [resolve_model(name) for name in names]
    largest = max(range(len(models)), key=lambda at: models[at].inputs.shape)
    inputs = models[largest].inputs
    for at, (name, model) in enumerate(zip(names, models, strict=True)):
        if model.inputs != inputs:
            try:
                models[at] = model.taking(inputs)
            except ConfigError as error:
                raise ConfigError(f"{name} is no variant of {names[largest]}: {error}") from None
        if (model.outputs, model.max_tasks) != (models[0].outputs, models[0].max_tasks):
            raise ConfigError(
                f"{name} answers with {_answers(model)}, {names[0]} with {_answers(models[0])}; "
                "variants must answer alike"
            )
    return models


def _answers(model: Model) -> str:
    return f"up to {model.max_tasks} times " * (model.max_tasks > 0) + described(model.outputs)


def _own(name: str) -> Model:
    check_typed(name, "model")
    look_here()
    try:
        model = imported(name)()
    except (SpongeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a user's module does when it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"model {name!r} cannot be made: {reason}") from error
    if not (
        isinstance(model, Model)
        and all(_is_fixed(getattr(model, side, None)) for side in ("inputs", "outputs"))
        and isinstance(model.max_tasks, int)
        and model.max_tasks >= 0
    ):
        raise ConfigError(
            f"model {name!r} must be a sponge_env.models.model.Model with inputs and outputs such "
            "as TensorSpec((3, 32, 32), 'float32'), and max_tasks of at least 0"
        )
    return model


def _is_fixed(tensor: Any) -> bool:
    try:
        return all(
            isinstance(each, TensorSpec)
            and np.dtype(each.dtype).kind in NUMBERS
            and min(each.shape, default=1) >= 1
            for each in tensor.tensors
        )
    except (AttributeError, TypeError, ValueError):
        return False


def inspect_onnx(path: Path) -> OnnxModel:
    """Check that an ONNX file can be served: with tensors of numbers or texts, batch axis first."""
    # The batch axis is open, or of one task; the others are fixed, of outputs perhaps by measuring.
    try:
        session = onnx_session(str(path), threads=1)
    except FileNotFoundError:
        raise ConfigError(f"there is no ONNX file {str(path)!r}") from None
    except Exception as error:  # the runtime's own error types are not public
        raise ConfigError(f"{path} is no ONNX model that can run: {error}") from error
    inputs = [_checked_input(path, value) for value in session.get_inputs()]
    if not inputs or len({tensor.shape[0] for tensor in inputs}) > 1:
        raise ConfigError(f"{path} must have inputs that all have the same batch axis, open or 1")
    if not (outputs := [_tensor(path, value) for value in session.get_outputs()]):
        raise ConfigError(f"{path} has no outputs")
    rows = [[replace(t, shape=t.shape[1:]) for t in side] for side in (inputs, outputs)]
    model, batch = OnnxModel(str(path), record(*rows[0]), record(*rows[1])), inputs[0].shape[0]
    if any(each.shape[:1] != (batch,) or 0 in each.shape[1:] for each in outputs):
        model = replace(model, outputs=record(*_measured(model, outputs, batch or 3)))
    return model


def _checked_input(path: Path, value: Any) -> TensorSpec:
    tensor = _tensor(path, value)
    shape = "({})".format(", ".join(str(axis or "open") for axis in value.shape))
    what = f"{path} has an input {tensor.name!r} of shape {shape}"
    if not tensor.shape or tensor.shape[0] > 1:
        raise ConfigError(f"{what}; export it with a dynamic batch axis in front, or one of size 1")
    if 0 in tensor.shape[1:]:
        name = next(n for n in value.shape[1:] if not isinstance(n, int) or not n) or "NAME"
        raise ConfigError(
            f"{what}, but only the batch may be open; fix the rest: python -m onnxruntime.tools."
            f"make_dynamic_shape_fixed --dim_param {name} --dim_value LENGTH {path.name} fixed.onnx"
        )
    return tensor


def _measured(model: OnnxModel, outputs: Sequence[TensorSpec], tasks: int) -> list[TensorSpec]:
    """Return the outputs in the shapes in which the file answers to some of its samples."""
    try:
        answers = list(model.run(model.load(threads=1), model.samples()[:tasks]))
    except Exception as error:  # whatever its nodes make of random numbers
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{model.path} cannot answer a batch of {tasks}: {reason}") from error
    shapes = [list(map(np.shape, a if len(outputs) > 1 else (a,))) for a in answers]
    if len(answers) != tasks or shapes[1:] != shapes[:-1]:
        raise ConfigError(
            f"{model.path} answers a batch of {tasks} with {len(answers)} rows of shapes {shapes}; "
            "each output must have the batch axis first, and then axes of fixed size"
        )
    return [replace(each, shape=shape) for each, shape in zip(outputs, shapes[0], strict=True)]


def _tensor(path: Path, value: Any) -> TensorSpec:
    """Return a graph value's tensor, its batch axis included, with 0 for open axes."""
    if value.type not in TENSORS:
        raise ConfigError(
            f"{path} has {value.name!r}, which is no tensor of numbers or texts; export it without"
        )
    shape = tuple(axis if isinstance(axis, int) else 0 for axis in value.shape)
    return TensorSpec(shape, TENSORS[value.type], value.name)
