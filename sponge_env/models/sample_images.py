"""Real images to run image models on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def sample_images(image_shape: tuple[int, int, int], dtype: str = "float32") -> NDArray[Any]:
    """Return real images, (4, *image_shape); in float in EfficientNet-Lite's form.

    They are crops of the photograph of Grace Hopper that matplotlib ships (public domain),
    resized bicubically, RGB (or of one channel), in float ``(value - 127) / 128``.
    """
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    channels, height, width = image_shape
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        photo = opened.convert("L" if channels == 1 else "RGB")
    crops = [_crop(photo, side, left, top, height, width) for side, left, top in _CROPS]
    images = np.stack(crops).reshape(len(crops), height, width, channels).transpose(0, 3, 1, 2)
    if dtype == "uint8":
        return np.ascontiguousarray(images)
    return np.ascontiguousarray((images.astype(dtype) - 127) / 128)


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
