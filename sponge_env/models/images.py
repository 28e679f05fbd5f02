"""Images that models are shown: photographs, and drawn text that is known.

Small letters, little contrast and noise make the text hard enough for models to differ. A replica's
process imports this, so that Pillow is imported only where something is drawn.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

PAGE = (3, 320, 320)  # Shape of an image of text, RGB
MAX_LINES = 12  # Lines of text in it
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
"""Of those that matplotlib carries; a fifth is Pillow's own."""
SIZES = (9, 26)  # Smallest and largest size of the text, in pixels
NOISE = 14.0  # Standard deviation of the pixels' noise, of 255
MARGIN = 8  # Pixels between text and the edge of its cell
VOCABULARY = (
    "account address amount invoice balance batch bridge cabin camera card city coffee contract "
    "copy daily date delivery door engine error exit floor garden gate green harbour hotel house "
    "image item label lake letter light limit line market message month morning museum name night "
    "number office open order page paper park payment platform price printer quick receipt report "
    "river room sale school server silver station stop street summer table tax ticket total tower "
    "train update village water weather window winter yellow zone"
)
WORDS = VOCABULARY.split()

_CROPS = ((1.0, 0.5, 0.5), (0.95, 0.25, 0.5), (0.95, 0.75, 0.5), (0.9, 0.25, 0.5))
"""Side relative to the photograph's shorter one, and left and top as shares of the room
that is left; the uniform is in full view in all of them."""


def photographs(image_shape: tuple[int, int, int], dtype: str = "float32") -> NDArray[Any]:
    """Return real images, (4, *image_shape); in float in EfficientNet-Lite's form."""
    # They are crops of the photograph of Grace Hopper that matplotlib ships (public domain),
    # resized bicubically, RGB (or of one channel), in float ``(value - 127) / 128``.
    from sponge_env.utils.installation import require_extra  # never called in a replica

    require_extra("live", "the photograph that models are shown")
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    channels, height, width = image_shape
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        photo = opened.convert("L" if channels == 1 else "RGB")
    crops: list[Any] = []
    for side_share, left, top in _CROPS:
        side = min(photo.size) * side_share
        x, y = (photo.width - side) * left, (photo.height - side) * top
        crops.append(photo.resize((width, height), resample=3, box=(x, y, x + side, y + side)))
    images = np.stack(crops).reshape(len(crops), height, width, channels).transpose(0, 3, 1, 2)
    if dtype == "uint8":
        return np.ascontiguousarray(images)
    return np.ascontiguousarray((images.astype(dtype) - 127) / 128)


class Box(NamedTuple):
    """A rectangle of pixels: from left and top up to, but without, right and bottom."""

    left: int
    top: int
    right: int
    bottom: int


class TextLine(NamedTuple):
    """A line of text and where it stands."""

    text: str
    box: Box  # Of the width of the text, and from the top of the font's letters to their bottom


class TextImage(NamedTuple):
    """An image and the text in it."""

    pixels: NDArray[np.uint8]  # (3, 320, 320), RGB
    lines: tuple[TextLine, ...]  # In reading order


def draw(seed: int) -> TextImage:
    """Draw 0 to 12 lines of text in one or two columns, by a seed; ConfigError without a font."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    _, height, width = PAGE
    count, columns = int(rng.integers(MAX_LINES + 1)), int(rng.integers(1, 3))
    rows = -(-count // columns)
    light, dark = rng.integers(170, 256, 3).tolist(), rng.integers(0, 110, 3).tolist()
    paper, ink = (light, dark) if rng.random() < 0.75 else (dark, light)
    image = Image.new("RGB", (width, height), tuple(paper))
    pen, lines = ImageDraw.Draw(image), []
    for number in range(count):
        row, column = divmod(number, columns)
        cell = Box(
            column * width // columns, row * height // rows,
            (column + 1) * width // columns, (row + 1) * height // rows,
        )  # fmt: skip
        lines.append(_write(pen, cell, tuple(ink), rng))
    noisy = np.asarray(image) + rng.normal(0.0, NOISE, (height, width, 3))
    pixels = np.rint(noisy).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return TextImage(np.ascontiguousarray(pixels), tuple(lines))


@cache
def draw_evenly(each: int) -> tuple[TextImage, ...]:
    """Draw so many images with every number of lines, in the order of their seeds."""
    images: list[TextImage] = []
    drawn, seed = Counter[int](), 0
    while len(images) < each * (MAX_LINES + 1):
        image = draw(seed)
        if drawn[len(image.lines)] < each:
            drawn[len(image.lines)] += 1
            images.append(image)
        seed += 1
    return tuple(images)


def _write(pen: "ImageDraw", cell: Box, ink: tuple[int, ...], rng: np.random.Generator) -> TextLine:
    """Write as many words as fit, up to four, somewhere in a cell."""
    min_size, max_size = SIZES
    size = int(rng.integers(min_size, min(max_size, (cell.bottom - cell.top) * 3 // 5) + 1))
    font = _font(int(rng.integers(len(FONTS) + 1)), size)
    width, text = cell.right - cell.left - 2 * MARGIN - 1, _word(rng)
    while font.getlength(text) > width:
        text = _word(rng)
    for _ in range(int(rng.integers(4))):
        longer = f"{text} {_word(rng)}"
        text = longer if font.getlength(longer) <= width else text
    line_height, line_width = sum(font.getmetrics()), math.ceil(font.getlength(text))
    # whole pixels, else Pillow cuts the ink off
    x = cell.left + MARGIN + int(rng.integers(width - line_width + 1))
    y = cell.top + int(rng.integers(cell.bottom - cell.top - line_height + 1))
    pen.text((x, y), text, font=font, fill=ink)
    return TextLine(text, Box(x, y, x + line_width, y + line_height))


def _word(rng: np.random.Generator) -> str:
    """Draw a word, in capitals now and then, a number, a price or a date."""
    kind, word = rng.random(), WORDS[rng.integers(len(WORDS))]
    if kind < 0.1:
        return f"{rng.integers(1, 100_000)}"
    if kind < 0.2:
        return f"{rng.integers(1, 1000)}.{rng.integers(100):02}"
    if kind < 0.25:
        return f"{rng.integers(1990, 2031)}-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}"
    return word.upper() if kind < 0.35 else word.capitalize() if kind < 0.6 else word


@cache
def _font(number: int, size: int) -> "FreeTypeFont":
    """Open one of :data:`FONTS`, or Pillow's own after them."""
    from PIL import ImageFont

    if number == len(FONTS):
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "of every Pillow on PyPI"
        return font
    # not imported: that takes longer than to draw
    spec = importlib.util.find_spec("matplotlib")
    folders: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    files = [Path(folder, "mpl-data", "fonts", "ttf", f"{FONTS[number]}.ttf") for folder in folders]
    try:
        return ImageFont.truetype(next(iter(files), Path(FONTS[number])), size)
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"the font {FONTS[number]} cannot be read ({error}); it comes with matplotlib: "
            "pip install 'sponge-env[live]'"
        ) from error
