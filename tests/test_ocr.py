"""OCR reads what was drawn, and its parts do what they say."""

import math

import numpy as np
import pytest
from project import ROOT, python
from scipy import ndimage
from test_models import served

from sponge_env.errors import ConfigError
from sponge_env.models import images as image_module
from sponge_env.models import ocr
from sponge_env.models.images import draw, draw_evenly
from sponge_env.models.registry import resolve_model, resolve_variants

VERSIONS = ("v5", "v6")


def detection(version):
    return resolve_model(f"ocr-det-{version}")


def recognition(version):
    return resolve_model(f"ocr-rec-{version}")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pipeline_of_two_replicas_reads_what_was_drawn(version):
    images = [draw(seed) for seed in range(100)]
    nothing = next(image for image in images if not image.lines)
    fours = (image for image in images if len(image.lines) == 4)
    page = next(i for i in fours if min(box.bottom - box.top for _, box in i.lines) >= 16)
    with served([detection(version)], 2) as (server, tensors):
        tensors.inputs[:] = page.pixels, nothing.pixels
        server.run(2, threads=1)
        assert tensors.counts.tolist() == [4, 0]
        crops = tensors.answers[0, :4].copy()
    reader = recognition(version)
    with served([reader], 4) as (server, tensors):
        tensors.inputs[:] = crops
        server.run(4, threads=1)
        _, alphabet = reader.load(1)
        for answer, (text, drawn) in zip(tensors.answers, page.lines, strict=True):
            assert answer["text"].decode() == text
            indices = answer["indices"]
            assert "".join(alphabet[index] for index in indices[indices >= 0]) == text
            middle = (drawn.left + drawn.right) / 2, (drawn.top + drawn.bottom) / 2
            left, top, right, bottom = answer["box"]
            assert left < middle[0] < right
            assert top < middle[1] < bottom


def test_versions_are_variants_of_each_other_and_shown_what_they_serve():
    for kind in ("det", "rec"):
        models = resolve_variants([f"ocr-{kind}-{version}" for version in VERSIONS])
        assert models == [ocr.OCR_MODELS[f"ocr-{kind}-{version}"] for version in VERSIONS]
        shown, inputs = models[0].samples(), models[0].inputs
        assert (shown.shape[1:], shown.dtype) == (inputs.shape, inputs.element)
        assert len(shown) >= 16
    assert detection("v5").outputs == recognition("v5").inputs
    with pytest.raises(ConfigError, match=r"rapidocr that is installed has no file models/old\.on"):
        ocr.Detection("rapidocr", "models/old.onnx").checked()


@pytest.mark.parametrize("seed", range(9))
def test_regions_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((1 + rng.integers(60), 1 + rng.integers(60))) < seed / 8  # none to all
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    expected = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    assert sorted(ocr.regions(mask)) == sorted(expected)


def test_lines_are_regions_that_are_large_and_sure_grown_by_area_over_perimeter():
    probability = np.zeros((100, 100), np.float32)
    probability[10:12, 10:60] = 0.9  # small
    probability[70:80, 10:60] = 0.5  # doubtful
    probability[40:50, 20:60] = 0.9
    by = round(1.5 * 400 / 100)
    assert ocr.find_lines(probability) == [(20 - by, 40 - by, 60 + by, 50 + by)]
    assert ocr.find_lines(probability[40:50, 20:60]) == [(0, 0, 40, 10)], "not out of the image"
    many = np.zeros((320, 320), np.float32)
    for top in range(5, 315, 20):
        many[top : top + 4, 100:200] = 1.0
    lines = ocr.find_lines(many)
    assert (len(lines), lines) == (ocr.MAX_LINES, sorted(lines, key=lambda line: line.top))


def test_reading_order_is_by_rows_then_from_the_left():
    rows = [[ocr.Box(10, 12, 50, 32), ocr.Box(60, 10, 90, 28)], [ocr.Box(5, 40, 90, 60)]]
    boxes = [box for row in rows for box in row]
    assert ocr.in_reading_order(boxes[::-1]) == boxes


def test_a_crop_keeps_its_ratio_and_is_squeezed_where_it_is_too_long():
    image = np.zeros(ocr.IMAGE.shape, np.uint8)
    image[0] = np.arange(320)[None] // 2  # red grows to the right
    short, long = ocr.cut(image, [ocr.Box(100, 10, 148, 34), ocr.Box(0, 20, 320, 30)])["crop"]
    assert short.shape == ocr.CROP.shape
    assert (short[:, :, 96:] == 127).all()
    assert (short[1:, :, :96] == 0).all()
    assert short[0, 24, [0, 95]].tolist() == pytest.approx([50, 73], abs=1)
    assert long[0, 24, [0, 319]].tolist() == pytest.approx([0, 159], abs=1)


def test_characters_that_repeat_count_once_unless_a_blank_is_between():
    columns = [0, 5, 5, 0, 5, 7, 7, 0]
    scores = np.zeros((1, len(columns), 9), np.float32)
    scores[0, range(len(columns)), columns] = 1.0
    line = np.zeros(1, ocr.Recognition.inputs.element)
    (answer,) = ocr.Recognition("", "").finish(line, (scores, "-abcdefgh"))
    assert answer["indices"].tolist() == [5, 5, 7] + [-1] * (ocr.COLUMNS - 3)
    assert answer["text"] == b"eeg"


def touch(one, other):
    beside = one.right <= other.left or other.right <= one.left
    return not (beside or one.bottom <= other.top or other.bottom <= one.top)


def test_drawn_images_are_the_same_for_a_seed_and_true_to_their_boxes():
    images = [draw(seed) for seed in range(60)]
    assert {len(image.lines) for image in images} == set(range(ocr.MAX_LINES + 1))
    for image, again in zip(images[:5], map(draw, range(5)), strict=True):
        assert np.array_equal(image.pixels, again.pixels)
        assert image.lines == again.lines
    for image in images:
        assert (image.pixels.shape, image.pixels.dtype) == (ocr.IMAGE.shape, ocr.IMAGE.dtype)
        outside = np.ones(ocr.IMAGE.shape[1:], bool)
        for number, (_, box) in enumerate(image.lines):
            assert 0 <= box.left < box.right <= 320
            assert 0 <= box.top < box.bottom <= 320
            assert not any(touch(box, other.box) for other in image.lines[:number])
            outside[max(0, box.top - 1) : box.bottom + 1, box.left - 1 : box.right + 1] = False
        # nothing but noise is outside of them
        assert image.pixels[:, outside].std(axis=1).max() < 1.5 * image_module.NOISE


def written(text):
    answer = np.zeros((), ocr.Recognition.outputs.element)
    answer["text"] = text.encode()
    return answer


def test_lines_that_a_live_run_read_are_those_drawn_whatever_their_order():
    counted = ocr.lines_read([["ocr-det-v5", "ocr-det-v6"], ["ocr-rec-v5"]])
    assert ocr.lines_read([["ocr-rec-v5"], ["ocr-rec-v5"]]) is None, "nothing finds lines"
    assert math.isnan(counted.share)
    images = [image for image in draw_evenly(ocr.SAMPLES_EACH) if len(image.lines) == 3]
    texts = [[line.text for line in image.lines] for image in images]
    counted.add(images[0].pixels, [written(text) for text in reversed(texts[0])])
    assert counted.share == 1.0
    # One of three is not there, one has a mistake, and one was found twice.
    wrong = [texts[1][0], texts[1][1] + "x", texts[1][0]]
    counted.add(images[1].pixels, [written(text) for text in wrong])
    assert counted.share == 4 / 6
    nothing = next(image for image in draw_evenly(ocr.SAMPLES_EACH) if not image.lines)
    counted.add(nothing.pixels, [])
    counted.add(images[0].pixels, [])
    assert counted.share == 4 / 9


LIGHT = """
import sys
import child
child.import_light(sys.path)
from sponge_env.models.ocr import OCR_MODELS
model = OCR_MODELS["ocr-det-v5"]
images = child.np.zeros((1, 3, 320, 320), "uint8")
assert not len(model.finish(images, model.run(model.load(1), images))[0])
heavy = {"gymnasium", "scipy", "matplotlib", "onnx", "torch", "rapidocr", "cv2", "numba"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""


def test_a_replica_imports_little():
    done = python("-c", LIGHT, PYTHONPATH=str(ROOT / "sponge_env" / "live"))
    assert done.returncode == 0, done.stderr
