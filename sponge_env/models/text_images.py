"""Images of text that is known, drawn with fonts that a package carries.

Small letters, little contrast and noise make them hard enough for models to differ.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sponge_env.errors import ConfigError
from sponge_env.models.ocr import IMAGE, MOST_LINES, Box

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
"""Of those that matplotlib carries; a fifth is Pillow's own."""
SIZES = (9, 26)
"""Smallest and largest size of the text, in pixels."""
NOISE = 14.0
"""Standard deviation of the pixels' noise, of 255."""
MARGIN = 8
"""Pixels between text and the edge of its cell."""
VOCABULARY = (
    "account address amount invoice balance batch bridge cabin camera card city coffee contract "
    "copy daily date delivery door engine error exit floor garden gate green harbour hotel house "
    "image item label lake letter light limit line market message month morning museum name night "
    "number office open order page paper park payment platform price printer quick receipt report "
    "river room sale school server silver station stop street summer table tax ticket total tower "
    "train update village water weather window winter yellow zone"
)
WORDS = VOCABULARY.split()

Font = ImageFont.FreeTypeFont


class TextLine(NamedTuple):
    """A line of text and where it stands."""

    text: str
    box: Box
    """Of the width of the text, and from the top of the font's letters to their bottom."""


class TextImage(NamedTuple):
    """An image and the text in it."""

    pixels: NDArray[np.uint8]
    """(3, 320, 320), RGB."""
    lines: tuple[TextLine, ...]
    """In reading order."""


def draw(seed: int) -> TextImage:
    """Draw an image with 0 to 12 lines of text, in one column or two; the same for a seed.

    A font that is not there is a ``ConfigError``.
    """
    rng = np.random.default_rng(seed)
    _, height, width = IMAGE.shape
    count = int(rng.integers(MOST_LINES + 1))
    columns = int(rng.integers(1, 3))
    rows = -(-count // columns)
    paper, ink = _colours(rng)
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    lines = []
    for number in range(count):
        row, column = divmod(number, columns)
        cell = Box(
            column * width // columns, row * height // rows,
            (column + 1) * width // columns, (row + 1) * height // rows,
        )  # fmt: skip
        lines.append(_write(pen, cell, ink, rng))
    noisy = np.asarray(image) + rng.normal(0.0, NOISE, (height, width, 3))
    pixels = np.rint(noisy).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return TextImage(np.ascontiguousarray(pixels), tuple(lines))


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a light and a dark colour, in either order."""
    light, dark = rng.integers(170, 256, 3).tolist(), rng.integers(0, 110, 3).tolist()
    pair = (tuple(light), tuple(dark))
    return pair if rng.random() < 0.75 else pair[::-1]


@cache
def draw_evenly(each: int) -> tuple[TextImage, ...]:
    """Draw so many images with every number of lines, in the order of their seeds."""
    images: list[TextImage] = []
    drawn, seed = Counter[int](), 0
    while len(images) < each * (MOST_LINES + 1):
        image = draw(seed)
        if drawn[len(image.lines)] < each:
            drawn[len(image.lines)] += 1
            images.append(image)
        seed += 1
    return tuple(images)


def _write(
    pen: ImageDraw.ImageDraw, cell: Box, ink: tuple[int, ...], rng: np.random.Generator
) -> TextLine:
    """Write as many words as fit, up to four, somewhere in a cell."""
    smallest, largest = SIZES
    size = int(rng.integers(smallest, min(largest, (cell.bottom - cell.top) * 3 // 5) + 1))
    font = _font(int(rng.integers(len(FONTS) + 1)), size)
    room = cell.right - cell.left - 2 * MARGIN - 1
    text = _word(rng)
    while font.getlength(text) > room:
        text = _word(rng)
    for _ in range(int(rng.integers(4))):
        longer = f"{text} {_word(rng)}"
        text = longer if font.getlength(longer) <= room else text
    high, wide = sum(font.getmetrics()), math.ceil(font.getlength(text))
    # whole pixels, else Pillow cuts the ink off
    x = cell.left + MARGIN + int(rng.integers(room - wide + 1))
    y = cell.top + int(rng.integers(cell.bottom - cell.top - high + 1))
    pen.text((x, y), text, font=font, fill=ink)
    return TextLine(text, Box(x, y, x + wide, y + high))


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
def _font(number: int, size: int) -> Font:
    """Open one of :data:`FONTS`, or Pillow's own after them."""
    if number == len(FONTS):
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise ConfigError("this Pillow was built without FreeType; install one from PyPI")
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
