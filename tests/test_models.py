"""Models are real, exported once, and refused with a reason when they cannot be served."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sponge_env.errors import ConfigError, MissingExtraError
from sponge_env.live import child, sandbox
from sponge_env.live.child import MAX_REASONS, REPORT, ModelServer
from sponge_env.live.local import MAX_REPORT_BYTES, LocalReplica
from sponge_env.live.protocol import Answered, Death
from sponge_env.live.stages import make_job
from sponge_env.models import efficientnet
from sponge_env.models import model as model_module
from sponge_env.models.model import TEXT, TEXT_BYTES, Model, TensorSpec, onnx_session, run_onnx
from sponge_env.models.registry import inspect_onnx, resolve_model, resolve_variants
from sponge_env.utils.installation import typing

MILITARY_UNIFORM = 652  # ImageNet class of what the photograph shows


IMAGES = ("batch", 3, 8, 8)


def write_model(path, inputs=(IMAGES,), output=IMAGES, dtype=TensorProto.FLOAT, op="Relu"):
    """Write an ONNX file with one node."""
    named, info = {f"in{i}": each for i, each in enumerate(inputs)}, helper.make_tensor_value_info
    casts = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    node = helper.make_node(op, [*named], ["out"], **casts)
    takes = [info(name, dtype, shape) for name, shape in named.items()]
    answers = [info("out", casts.get("to", dtype), output)]
    onnx.save(helper.make_model(helper.make_graph([node], "graph", takes, answers)), path)
    return path


@contextlib.contextmanager
def memory_of(job):
    memory = os.memfd_create("tensors")
    try:
        os.ftruncate(memory, job.tensors_dtype.itemsize)
        yield dataclasses.replace(job, memory=memory)
    finally:
        os.close(memory)


@contextlib.contextmanager
def served(models, batch_max=4):
    """Serve models as a replica's process does, in this one."""
    with memory_of(make_job(models, batch_max)) as job:
        server = ModelServer(job)
        server.make_ready(job.threads)
        yield server, job.map_tensors()


def counted_sessions(monkeypatch):
    """Return for how many threads each session is asked; all that are made have one."""
    made = []

    def make(path, threads):
        made.append(threads)
        return onnx_session(path, 1)

    monkeypatch.setattr(model_module, "onnx_session", make)
    return made


@pytest.mark.parametrize("threads", [1, 2])
def test_a_replica_of_root_opens_each_session_once(threads, tmp_path, monkeypatch):
    opened = counted_sessions(monkeypatch)
    monkeypatch.setattr(sandbox, "keep_capabilities", lambda kept: kept)
    with memory_of(make_job([inspect_onnx(write_model(tmp_path / "own.onnx"))], 2)) as job:
        child.load(dataclasses.replace(job, threads=threads))
    assert opened == [threads]


def test_onnx_runtime_tells_its_maker_nothing(tmp_path):
    """It would name this machine in the cache, and ask for its maker's address."""
    code = "import sponge_env.models.model, onnxruntime; onnxruntime.get_device()"
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, check=True
    )
    assert not list(tmp_path.iterdir())


def test_the_weights_are_real():
    model, larger = resolve_model("efficientnet-lite0"), TensorSpec((3, 260, 260))
    resizing = model.taking(larger)
    assert (resizing.inputs, resizing.outputs) == (larger, model.outputs)
    for each in (model, resizing):
        assert set(np.argmax(each.run(each.load(1), each.samples()), axis=1)) == {MILITARY_UNIFORM}


def test_a_model_is_exported_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def half(name, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    def files():
        return [str(path) for path in tmp_path.rglob("*") if path.is_file()]

    with monkeypatch.context() as patch:
        patch.setattr(efficientnet, "_export_torch", half)
        with pytest.raises(KeyboardInterrupt):
            resolve_model("efficientnet-lite0")
    assert not files()
    first = resolve_model("efficientnet-lite0")
    assert files() == [first.path]
    assert (first.inputs.shape, first.outputs.shape) == ((3, 224, 224), (1000,))
    monkeypatch.setattr(efficientnet, "_export_torch", lambda name, path: pytest.fail("again"))
    assert resolve_model("efficientnet-lite0") == first


@pytest.mark.parametrize(
    ("shape", "dtype", "name"),
    [((5,), TensorProto.FLOAT, "float32"), ((3, 8, 8), TensorProto.FLOAT, "float32"),
     ((3, 8, 8), TensorProto.UINT8, "uint8"), ((2, 3, 4, 5), TensorProto.UINT8, "uint8"),
     ((), TensorProto.INT64, "int64"), ((3, 4, 4), TensorProto.BOOL, "bool")],
)  # fmt: skip
def test_any_onnx_file_will_do(tmp_path, shape, dtype, name):
    whole = ("batch", *shape)
    model = resolve_model(str(write_model(tmp_path / "own.onnx", (whole,), whole, dtype, "Cast")))
    assert (model.inputs, model.outputs) == (TensorSpec(shape, name), TensorSpec(shape, "float32"))
    shown = model.samples()
    assert (shown.shape[1:], shown.dtype) == (shape, name)
    with served([model]) as (server, tensors):
        tensors.inputs[:2] = shown[:2]
        server.run(2, threads=1)
        assert np.array_equal(tensors.answers[:2], shown[:2].astype(np.float32))


def test_a_replica_is_ready_only_for_threads_that_are_asked_for(tmp_path, monkeypatch):
    made = counted_sessions(monkeypatch)
    with served([resolve_model(str(write_model(tmp_path / "own.onnx")))]) as (server, tensors):
        tensors.inputs[:2] = np.arange(192).reshape(3, 8, 8)
        for threads in (3, 1, 3, 1):
            server.run(2, threads)
        assert np.array_equal(tensors.answers[1].ravel(), np.arange(192))
    assert made == [1, 3]


class Doubled(Model):
    inputs, outputs, factor = TensorSpec((2,)), TensorSpec((2,)), 2

    def run(self, session, batch):
        return self.factor * batch


class Halved(Doubled):
    factor = 0.5


class Longer(Doubled):
    outputs = TensorSpec((3,))


def test_an_order_names_the_variant():
    with served([Doubled(), Halved()]) as (server, tensors):
        tensors.inputs[:] = [[1, 2], [3, 4], [5, 6], [7, 8]]
        server.run(2, threads=1, variant=1)
        assert tensors.answers.tolist() == [[0.5, 1], [1.5, 2], [0, 0], [0, 0]]
        server.run(1, threads=1, variant=0)
        assert tensors.answers.tolist() == [[2, 4], [1.5, 2], [0, 0], [0, 0]]


class Picky(Doubled):
    """Fails on large numbers."""

    def run(self, session, batch):
        if (batch > 9).any():
            raise ValueError("a number\nis too large")
        return super().run(session, batch)


def test_a_model_that_fails_on_a_task_answers_the_others():
    with served([Picky()]) as (server, tensors):
        tensors.inputs[:3] = [[1, 2], [10, 0], [3, 4]]
        assert server.answer(3, threads=1) == {1: "a number is too large"}
        assert tensors.answers[[0, 2]].tolist() == [[2, 4], [6, 8]]
        server.make_ready(threads=1)  # on whatever lies there


class Loud(Picky):
    """Repeats what takes JSON six characters each."""

    def run(self, session, batch):
        raise ValueError("\x01\u20ac" * MAX_REASONS)


def test_the_reasons_for_all_tasks_fit_into_a_report():
    with served([Loud()]) as (server, tensors):
        reasons = server.answer(len(tensors.inputs), threads=1)
        assert set("".join(reasons.values())) == {"?"}
        assert REPORT.size + len(json.dumps(reasons)) < MAX_REPORT_BYTES


class Repeated(Model):
    """Leads to as many tasks as its first number says."""

    inputs, outputs = TensorSpec((2,), "uint8"), TensorSpec((1, 2), "uint8")
    max_tasks = 3

    def run(self, session, batch):
        return [np.tile(task, (task[0], 1, 1)) for task in batch]


class Scalar(Repeated):
    outputs, max_tasks = TensorSpec(()), 0


def test_an_answer_leads_to_some_tasks_or_none():
    with served([Repeated()]) as (server, tensors):
        assert (tensors.counts.shape, tensors.answers.shape) == ((4,), (4, 3, 1, 2))
        tensors.inputs[:3] = [[2, 9], [0, 9], [3, 7]]
        server.run(3, threads=1)
        assert tensors.counts[:3].tolist() == [2, 0, 3]
        assert tensors.answers[0, :2].tolist() == [[[2, 9]], [[2, 9]]]
        assert tensors.answers[2].tolist() == [[[3, 7]]] * 3
        tensors.inputs[0] = [4, 1]
        with pytest.raises(ValueError, match="broadcast"):
            server.run(1, threads=1)


class Shapeless(Doubled):
    inputs = TensorSpec((0, 2))


class Unfinished(Model):
    inputs = outputs = TensorSpec((2,))


@pytest.mark.parametrize(
    ("name", "reason"), [("test_models:Shapeless", r"inputs and outputs such as TensorSpec\("),
     ("test_models:Unfinished", "cannot be made: TypeError: .*'?run'?"),
     ("test_models:Path", "must be a sponge_env.models.model.Model with inputs"),
     ("test_models:Missing", "cannot be made: AttributeError: .*'Missing'"),
     ("no_such_module:Model", "cannot be made: ModuleNotFoundError: .*'no_such_module'"),
     ("test_models:", "unknown model 'test_models:'; .* or name an .onnx file or module:Class"),
     ("eficientnet-lite1", "did you mean 'efficientnet-lite1'"),
     ("brief.onnx", "is no ONNX model that can run"), ("none.onnx", "there is no ONNX file")],
)  # fmt: skip
def test_a_name_that_is_of_no_model_says_why(own_folder, name, reason):
    Path("brief.onnx").write_text("not a model")
    with pytest.raises(ConfigError, match=reason) as said:
        resolve_model(name)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("words", ["--model {}", "--model={}", "--profile local:{}", "--trust"])
def test_a_class_is_imported_where_its_name_is_typed(words):
    name = "test_models:Doubled"
    with typing(words.format(name).split()):
        assert isinstance(resolve_model(name), Doubled)
    with typing(["--profile", "own.json"]), pytest.raises(ConfigError, match="add --trust if"):
        resolve_model(name)


def test_variants_must_take_and_answer_the_same(tmp_path):
    assert resolve_model("test_models:Scalar").outputs.shape == ()
    assert len(resolve_variants(["test_models:Doubled", "test_models:Halved"])) == 2
    with pytest.raises(ConfigError, match=r"Longer answers with 3 float32, .* with 2 float32; var"):
        resolve_variants(["test_models:Doubled", "test_models:Longer"])
    with pytest.raises(ConfigError, match=r"it takes inputs of 2 float32, not 2 uint8"):
        resolve_variants(["test_models:Repeated", "test_models:Doubled"])
    with pytest.raises(ConfigError, match=r"Doubled is no variant .* it takes inputs of 2 float32"):
        resolve_variants(["efficientnet-lite0", "test_models:Doubled"])
    shape = ("batch", 2)
    path = write_model(tmp_path / "a.onnx", (shape,), shape, TensorProto.UINT8, "Identity")
    with pytest.raises(ConfigError, match=r"a.onnx answers with 2 uint8, .* with  float32; var"):
        resolve_variants(["test_models:Scalar", str(path)])


def test_a_model_of_an_extra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"ocr-det-v6 needs .*pip install 'sponge-env\[ocr"):
        resolve_model("ocr-det-v6")


ADDED = {"inputs": (("batch", 3), (1, 3)), "op": "Add"}
WIDE = {"dtype": TensorProto.BFLOAT16, "op": "Identity"}
SUMMED = {"output": (1, 1, 1, 1), "op": "ReduceSum"}
RESHAPED = {"inputs": (("batch", 5), ("batch",)), "output": ("x", "y"), "op": "Reshape"}


@pytest.mark.parametrize(
    ("graph", "reason"),
    [({"inputs": ((4, 3, 8, 8),)}, r"of shape \(4, 3, 8, 8\); export it with a dynamic batch"),
     (ADDED, "all have the same batch axis, open or 1"),
     ({"inputs": ((),)}, r"of shape \(\); .* dynamic batch axis in front, or one of size 1"),
     ({"inputs": (("batch", 3, "h", "w"),)}, r"\(batch, 3, h, w\), .*--dim_param h --dim_val"),
     (WIDE, "'in0', which is no tensor of numbers or texts"),
     (RESHAPED | {"dtype": TensorProto.INT64}, "cannot answer a batch of 3: "),
     (SUMMED, "with 1 rows .* each output must have the batch")],
    ids=str,
)  # fmt: skip
def test_a_model_that_cannot_be_served_says_why(tmp_path, graph, reason):
    path = write_model(tmp_path / "bad.onnx", **graph)
    with pytest.raises(ConfigError, match=reason):
        inspect_onnx(path)


def test_a_model_without_outputs_is_refused(tmp_path):
    model = onnx.load(write_model(tmp_path / "mute.onnx"))
    del model.graph.output[:]
    onnx.save(model, tmp_path / "mute.onnx")
    with pytest.raises(ConfigError, match=r"mute.onnx has no outputs"):
        inspect_onnx(tmp_path / "mute.onnx")


def test_a_text_ends_where_it_does_however_long(tmp_path):
    path = write_model(tmp_path / "texts.onnx", [["n"]], ["n"], TensorProto.STRING, "Identity")
    texts = [b"x" * TEXT_BYTES, b"of another client"]
    assert run_onnx(onnx_session(str(path), 1), np.array(texts, TEXT)).tolist() == texts


BAD_REPORTS = [
    *((1.0, 2.0, text) for text in (b"{", b"[1]", b'{"2": "x"}', b'{"%d": ""}' % 10**30)),
    *((*times_s, b"") for times_s in ((0.4, 1.0), (2.0, 1.0), (np.nan, 1.0), (1.0, 1e12))),
]


@pytest.mark.parametrize("report", BAD_REPORTS, ids=str)
def test_a_report_that_cannot_be_is_a_death(report):
    replica, (replica._channel, child) = object.__new__(LocalReplica), socket.socketpair()
    replica._asked, replica._asked_s, replica._reported_cpu_s, replica.cpu_s = 2, 0.5, 0.0, float
    with replica._channel, child:
        child.send(REPORT.pack(7, 1.0, 2.0) + b'{"1": "no"}')
        assert replica.poll() == Answered(7, 1.0, 2.0, 0.0, {1: "no"})
        child.send(REPORT.pack(7, *report[:2]) + report[2])
        assert isinstance(replica.poll(), Death)
