"""From a model's name to a model that a replica can serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sponge_env.errors import ConfigError, SpongeError, unknown
from sponge_env.models.efficientnet import EFFICIENTNETS, efficientnet
from sponge_env.models.model import Model, OnnxModel, TensorSpec, described
from sponge_env.models.ocr import OCR_MODELS
from sponge_env.utils.installation import check_typed, imported, look_here, require_extra

KNOWN = (*EFFICIENTNETS, *OCR_MODELS)
"""Names of the models that come with the project."""

MAX_AXES = 5
"""Axes of an input, that of the batch included."""
NUMBERS = "biuf"
"""Kinds of NumPy types that tensors may have."""


def resolve_model(name: str) -> Model:
    """Find a model by its name in :data:`KNOWN`, an ONNX file's path, or ``module:Class``.

    What cannot be used is a ``ConfigError``, a missing extra a ``MissingExtraError``.
    """
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
    """Find models that answer the same question, for one replica to hold.

    They all take the largest of their inputs; smaller models of :data:`EFFICIENTNETS` resize it.
    Those that cannot take the same inputs, or answer in different shapes, are a ``ConfigError``.
    """
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
    up_to = f"up to {model.max_tasks} times " if model.max_tasks else ""
    return up_to + described(model.outputs)


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
        kind = np.dtype(tensor.dtype).kind
        return (
            isinstance(tensor, TensorSpec) and kind in NUMBERS and min(tensor.shape, default=1) >= 1
        )
    except (AttributeError, TypeError, ValueError):
        return False


def inspect_onnx(path: Path) -> OnnxModel:
    """Check that an ONNX file can be served in batches: with one input of numbers.

    That has two to five axes. All but the batch must be fixed, and the batch must not.
    """
    import onnx  # only needed here, and slow to import

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except FileNotFoundError:
        raise ConfigError(f"there is no ONNX file {str(path)!r}") from None
    except Exception as error:  # protobuf's own error types are not public
        raise ConfigError(f"{path} is not an ONNX model: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ConfigError(f"{path} has {len(inputs)} inputs, but a model must have one")
    shape, dtype = _dimensions(inputs[0]), _dtype(inputs[0])
    if not (2 <= len(shape) <= MAX_AXES and _is_batch(shape) and dtype in ("float32", "uint8")):
        raise ConfigError(
            f"{path} has an input of shape {shape} (0 is open) in {dtype or 'no numbers'}, but it "
            f"must have two to {MAX_AXES} axes, in float32 or uint8: first the batch, open, then "
            "fixed ones; export it with a dynamic batch axis"
        )
    output, answers = _dimensions(graph.output[0]), _dtype(graph.output[0])
    if not (_is_batch(output) and answers):
        raise ConfigError(
            f"{path} has a first output of shape {output} (0 is open) in "
            f"{answers or 'no numbers'}, but it must have first the batch, open, then fixed axes"
        )
    return OnnxModel(str(path), TensorSpec(shape[1:], dtype), TensorSpec(output[1:], answers))


def _is_batch(shape: tuple[int, ...]) -> bool:
    return shape[:1] == (0,) and 0 not in shape[1:]


def _dimensions(value: Any) -> tuple[int, ...]:
    """Return a graph value's shape, with 0 for an open dimension; () if nothing is known of it."""
    return tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)


def _dtype(value: Any) -> str:
    """Return the NumPy type of a graph value, or "" if it is no tensor of numbers."""
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    except KeyError:
        return ""
    return str(dtype) if dtype.kind in NUMBERS else ""
