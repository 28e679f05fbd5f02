"""From the client's bytes to the model and back: text is read, and dying replicas cost no answer.

On fakes first, which shows that the client sees what it should, then on real replicas.
"""

import json
import os
import signal
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_engine import FakeEngine, answered
from machine import needs_two_cpus
from served import running
from test_live_models import MODELS, ocr
from test_live_serve_engine import engine_of, one_stage
from test_serve_clients import CLIENTS, Client, InferenceServerException, plain
from tritonclient.utils import np_to_triton_dtype

from sponge_env.__main__ import main
from sponge_env.models.images import draw
from sponge_env.models.ocr import Detection, Recognition
from sponge_env.serve.interface import ServedModel, Status

IMAGES = [draw(seed) for seed in range(8)]
LONG_S = 60.0


def texts(server, images, slo_ms):
    client, rows = Client("http", server), np.stack([image.pixels for image in images])
    tensor = client.tensors.InferInput("image", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    found = client.infer(server.engine.served.name, [tensor], headers={"x-slo-ms": str(slo_ms)})
    assert found.get_response()["parameters"]["deadline_met"] is True
    ends = np.cumsum(found.as_numpy("tasks"))
    lines = [text.decode() for text in found.as_numpy("text")]
    assert len(lines) == ends[-1] == len(found.as_numpy("box"))
    return [lines[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def read_over_the_wire(server):
    """Return the share of the drawn lines that a client gets right, image by image and at once."""
    read = [texts(server, [image], LONG_S * 1000)[0] for image in IMAGES[:4]]
    read += texts(server, IMAGES[4:], LONG_S * 1000)
    drawn = [Counter(line.text for line in image.lines) for image in IMAGES]
    right = sum((own & Counter(lines)).total() for own, lines in zip(drawn, read, strict=True))
    return right / sum(own.total() for own in drawn)


def test_a_client_gets_the_text_that_a_pipeline_read():
    outputs, known = Recognition.outputs, {image.pixels.tobytes(): image for image in IMAGES}

    def answer(call):
        lines = known[call.tensor.tobytes()].lines
        rows = np.zeros(len(lines), outputs.element)
        rows["text"] = [line.text.encode() for line in lines]
        return answered(rows)

    served = ServedModel("ocr", Detection.inputs, outputs, 4, 1.0, MODELS, MODELS)
    with running(FakeEngine(served, answer)) as server:
        assert read_over_the_wire(server) == 1.0


@pytest.mark.live
@needs_two_cpus
def test_text_is_read_with_one_deadline_for_both_stages(tmp_path):
    with engine_of(ocr(tmp_path), "static-8") as engine, running(engine) as server:
        assert read_over_the_wire(server) > 0.7
        with pytest.raises(InferenceServerException) as refused:
            texts(server, IMAGES[:1], 2.0)  # less than any detection takes
        assert refused.value.status() in ("503", "504")
    statuses = [reply.status for _, reply, _ in server.recorder.ended]
    assert statuses.count(Status.ANSWERED) == len(statuses) - 1 == len(IMAGES)


PICTURES = np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4)
TOKENS = np.array([[1, 2, 0], [3, 3, 3]])
TEXTS = np.array([["yes", "\N{EURO SIGN}"], ["", "x" * 4096]], object)
USER_MODELS = [  # graphs as users bring them, and a request of two rows to each with its answer
    ("""(float[n, 3, 4, 4] picture) => (float[n, 3, 1, 1] scores) {
               scores = GlobalAveragePool (picture) }""",
     {"picture": PICTURES}, {"scores": PICTURES.mean((2, 3), keepdims=True)}),
    ("""(float[n, 2] features) => (int64[n] label, double[n, 2] hidden) {
               w = Constant <value = float[2, 2] {1, 0, 1, 1}> ()
               sums = MatMul (features, w)
               hidden = Cast <to = 11> (sums)
               label = ArgMax <axis = 1, keepdims = 0> (sums) }""",
     {"features": np.array([[1, 0], [0, 2]], np.float32)},
     {"label": np.array([0, 0]), "hidden": np.array([[1.0, 0.0], [2.0, 2.0]])}),
    ("""(int64[n, 3] ids, bool[n, 3] mask) => (float[n, unknown] words, bool[n, 3] left) {
               table = Constant <value = float[4] {0.5, 1.5, 2.5, 3.5}> ()
               found = Gather (table, ids)
               kept = Cast <to = 1> (mask)
               words = Mul (found, kept)
               left = Not (mask) }""",
     {"ids": TOKENS, "mask": TOKENS != 0},
     {"words": np.array([[1.5, 2.5, 0], [3.5] * 3], np.float32), "left": TOKENS == 0}),
    ("(string[1, 2] t) => (string[1, 2] o) { o = Identity (t) }", {"t": TEXTS}, {"o": TEXTS}),
]  # fmt: skip


def flat(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values.flatten().tolist()]


@pytest.mark.live
@needs_two_cpus
@pytest.mark.parametrize(
    ("graph", "inputs", "outputs"), USER_MODELS, ids=["cnn", "mlp", "tokens", "texts"]
)
def test_a_users_model_is_served_as_it_is(graph, inputs, outputs, tmp_path):
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> own {graph}')
    onnx.save(model, tmp_path / "own.onnx")
    scenario = one_stage(tmp_path, str(tmp_path / "own.onnx"))
    kinds = {name: np_to_triton_dtype(rows.dtype) for name, rows in inputs.items()}

    def asked(client, given):
        tensors = []
        for name, rows in given.items():
            tensors.append(client.tensors.InferInput(name, list(rows.shape), kinds[name]))
            tensors[-1].set_data_from_numpy(rows)
        return client.infer("own", tensors)

    with (
        engine_of(scenario, "static-16", name="own", slo_s=LONG_S) as engine,
        running(engine) as server,
    ):
        for kind in CLIENTS:
            client = Client(kind, server)
            about = plain(client, client.get_model_metadata("own"))
            assert {each["name"]: each["datatype"] for each in about["inputs"]} == kinds
            for given in (inputs, dict(reversed([*inputs.items()]))):
                found = asked(client, given)
                for name, expected in outputs.items():
                    assert found.as_numpy(name).dtype == expected.dtype
                    assert found.as_numpy(name).shape == expected.shape
                    assert flat(found.as_numpy(name)) == flat(expected)
            if "ids" in inputs:
                with pytest.raises(InferenceServerException, match="idx=7 must be within"):
                    asked(client, inputs | {"ids": TOKENS + 6})
        body = [
            {"name": name, "datatype": kinds[name], "shape": rows.shape, "data": rows.tolist()}
            for name, rows in inputs.items()
        ]
        url, data = f"http://{server.http}/v2/models/own/infer", json.dumps({"inputs": body})
        with urllib.request.urlopen(url, data.encode()) as answer:
            told = {each["name"]: each["data"] for each in json.load(answer)["outputs"]}
        assert told == {name: flat(expected) for name, expected in outputs.items()}
        assert engine._system.worker.status().restarts == 0


KILLS = """
duration_s = 8.0
slo_s = 60.0
profile = "lite0"
arrivals = { kind = "poisson", rate_rps = 10.0 }
network = { trace = "none" }
"""


@pytest.mark.live
@needs_two_cpus
def test_each_request_has_one_answer_though_replicas_are_killed(own_folder):
    """``sponge load`` sends open loop, and every two seconds something is killed."""
    Path("kills.toml").write_text(KILLS)
    name, killed, over = "efficientnet-lite0-uint8", [], threading.Event()
    with engine_of(one_stage(own_folder, name), "static-16") as engine, running(engine) as server:
        worker = engine._system.worker

        def kill_again_and_again():
            while not over.wait(2.0):
                (pid, *_) = [r.pid for r in worker.replicas]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        try:
            line = f"load --url http://{server.http} --scenario kills.toml --json out.json"
            assert main(line.split()) == 0
        finally:
            over.set()
            killer.join()
        (summary,) = json.loads(Path("out.json").read_text())
        assert summary["offered"] > 20
        assert summary["on_time"] == summary["offered"] == len(server.recorder.ended)
        assert worker.status().restarts == len(killed) >= 3
