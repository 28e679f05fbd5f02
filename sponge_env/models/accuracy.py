"""How often the models are right: OCR on images of known text, image classes as published."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

from sponge_env.errors import ConfigError
from sponge_env.models.efficientnet import TOP_1, TOP_1_SOURCE
from sponge_env.models.images import Box, TextImage, TextLine, draw, draw_evenly
from sponge_env.models.model import Array
from sponge_env.models.ocr import OCR_MODELS, SAMPLES_EACH, Detection, Recognition, cut, find_lines
from sponge_env.models.registry import resolve_model
from sponge_env.utils.console import Progress
from sponge_env.utils.installation import require_extra

OVERLAP = 0.5
"""Intersection over union from which a box has found a line."""


class TextAccuracy(NamedTuple):
    """How well lines were found and read. Shares of all lines, or characters, that were drawn."""

    recall: float
    """Lines that were found."""
    lines: float
    """Lines that were found and read without a mistake."""
    characters: float
    """Characters, less the edits that make what was read what was drawn; not found is not read."""


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over the union of two boxes."""
    common = Box(*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:])).area
    return common / (first.area + second.area - common)


def edits(read: str, drawn: str) -> int:
    """Return how many characters must be inserted, deleted or replaced (Levenshtein)."""
    row = list(range(len(drawn) + 1))
    for at, character in enumerate(read, start=1):
        diagonal, row[0] = row[0], at
        for j, other in enumerate(drawn, start=1):
            replaced = diagonal + (character != other)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]


def measure(
    drawn: Sequence[Sequence[TextLine]], found: Sequence[Sequence[TextLine]]
) -> TextAccuracy:
    """Compare the lines of images with what was found in each."""
    count = recalled = exact = characters = wrong = 0
    for lines, boxes in zip(drawn, found, strict=True):
        left = list(boxes)
        for line in lines:
            count, characters = count + 1, characters + len(line.text)
            best = max(left, key=lambda f: overlap(f.box, line.box), default=None)
            if best is None or overlap(best.box, line.box) < OVERLAP:
                wrong += len(line.text)
                continue
            left.remove(best)
            recalled += 1
            exact += best.text == line.text
            wrong += min(len(line.text), edits(best.text, line.text))
    if not count:
        raise ConfigError("there is no text in these images; take more of them")
    return TextAccuracy(recalled / count, exact / count, 1 - wrong / characters)


def find(detection: Detection, images: Iterable[TextImage]) -> list[list[Box]]:
    """Find the lines of each image, in this process on one thread."""
    session = detection.load(threads=1)
    return [find_lines(detection.run(session, image.pixels[None])[0]) for image in images]


def read(
    recognition: Recognition, images: Iterable[TextImage], boxes: Sequence[Sequence[Box]]
) -> list[list[TextLine]]:
    """Read what is within the boxes of each image, in this process on one thread."""
    session, found = recognition.load(threads=1), []
    for image, own in zip(images, boxes, strict=True):
        crops = cut(image.pixels, own)
        answers = recognition.finish(crops, recognition.run(session, crops)) if own else ()
        texts = map(recognition.text, answers)
        found.append([TextLine(text, box) for box, text in zip(own, texts, strict=True)])
    return found


class LinesRead:
    """Counts the drawn lines that replicas read without a mistake, image by image.

    Answers are kept and compared later: that takes longer than a live run can wait.
    """

    def __init__(self, recognition: Recognition, images: Iterable[TextImage]) -> None:
        self._text = recognition.text
        self._drawn = {
            image.pixels.tobytes(): Counter(line.text for line in image.lines) for image in images
        }
        self._kept: list[tuple[Array, Sequence[Array]]] = []
        self._right = self._lines = 0

    def add(self, image: Array, answers: Sequence[Array]) -> None:
        """Take all answers to an image, in whatever order."""
        self._kept.append((image, answers))

    @property
    def share(self) -> float:
        """Lines read right; NaN as long as there was none to read."""
        for image, answers in self._kept:
            drawn = self._drawn[image.tobytes()]
            self._right += (Counter(map(self._text, answers)) & drawn).total()
            self._lines += drawn.total()
        self._kept.clear()
        return self._right / self._lines if self._lines else math.nan


def lines_read(stages: Sequence[Sequence[str]]) -> LinesRead | None:
    """Return what counts the lines that stages of these variants read from drawn images.

    None where they are not one that finds text and one that reads it, or where several variants
    read it, in alphabets of their own.
    """
    names = {name for stage in stages for name in stage}
    if len(stages) != 2 or len(stages[1]) > 1 or not names <= OCR_MODELS.keys():
        return None
    require_extra("ocr", "reading text")
    finds, reads = (resolve_model(stage[0]) for stage in stages)
    if not isinstance(finds, Detection) or not isinstance(reads, Recognition):
        return None
    return LinesRead(reads, draw_evenly(SAMPLES_EACH))


def accuracy_table(count: int, command: str, shown: bool = False) -> str:
    """Measure each detection with each recognition on images 0 to ``count`` - 1.

    Returned is a table, with what is published of other models. Without the extra ``ocr`` that is
    a ``MissingExtraError``.
    """
    models = {name: resolve_model(name) for name in OCR_MODELS}
    readers = {name: m for name, m in models.items() if isinstance(m, Recognition)}
    finders = {name: m for name, m in models.items() if isinstance(m, Detection)}
    images = [draw(seed) for seed in range(count)]
    drawn = [image.lines for image in images]
    table = [
        f"{command}, {datetime.now(UTC).date()}: {sum(map(len, drawn))} lines of text in {count} "
        "drawn images",
        "",
        f"{'detection':12}{'recognition':12}{'found':>12}{'read right':>12}{'characters':>12}",
    ]
    with closing(Progress("reading", len(finders) * len(readers), "pair", shown=shown)) as bar:
        for finder, detection in finders.items():
            boxes = find(detection, images)
            for reader, recognition in readers.items():
                shares = measure(drawn, read(recognition, images, boxes))
                cells = (f"{share:12.1%}" for share in shares)
                table.append(f"{finder:12}{reader:12}{''.join(cells)}")
                bar.show(len(table) - 3)
    table += ["", f"top-1 on ImageNet as published ({TOP_1_SOURCE})"]
    table += [f"{name:24}{share:12.1%}" for name, share in TOP_1.items()]
    return "\n".join(table)
