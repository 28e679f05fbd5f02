"""From the client's bytes to the model and back: text is read, and dying replicas cost no answer.

On fakes first, which shows that the client sees what it should, then on real replicas.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, answered
from machine import needs_two_cpus
from served import Running, running
from test_live_ocr import MODELS, ocr
from test_live_serve_engine import engine_of, one_stage
from test_serve_clients import Client, InferenceServerException

from sponge_env.__main__ import main
from sponge_env.models.images import TextImage, draw
from sponge_env.models.ocr import Recognition, read_alphabet
from sponge_env.models.registry import resolve_model
from sponge_env.serve.interface import Call, Reply, ServedModel, Status

IMAGES = [draw(seed) for seed in range(8)]
LONG_S = 60.0
SHORT_MS = 2.0
"""Less than any detection takes."""


def reader() -> Recognition:
    model = resolve_model(MODELS[1])
    assert isinstance(model, Recognition)
    return model


def texts(server: Running, images: Sequence[TextImage], slo_ms: float) -> list[list[str]]:
    """Have images read in one request, by Triton's client; return the lines of each."""
    client, rows = Client("http", server), np.stack([image.pixels for image in images])
    tensor = client.tensors.InferInput("input", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    told = {"x-slo-ms": str(slo_ms)}
    found = client.infer(server.engine.served.name, [tensor], headers=told)
    assert found.get_response()["parameters"]["deadline_met"] is True
    ends = np.cumsum(found.as_numpy("tasks"))
    lines = [reader().text(row) for row in found.as_numpy("output")]
    assert len(lines) == ends[-1]
    return [lines[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def read_over_the_wire(server: Running) -> float:
    """Return the share of the drawn lines that a client gets right, image by image and at once."""
    read = [texts(server, [image], LONG_S * 1000)[0] for image in IMAGES[:4]]
    read += texts(server, IMAGES[4:], LONG_S * 1000)
    drawn = [Counter(line.text for line in image.lines) for image in IMAGES]
    right = sum((own & Counter(lines)).total() for own, lines in zip(drawn, read, strict=True))
    return right / sum(own.total() for own in drawn)


def test_a_client_gets_the_text_that_a_pipeline_read() -> None:
    model, known = reader(), {image.pixels.tobytes(): image for image in IMAGES}
    places = {character: at for at, character in enumerate(read_alphabet(model))}

    def answer(call: Call) -> Reply:
        lines = known[call.tensor.tobytes()].lines
        rows = np.full((len(lines), *model.outputs.shape), -1, np.int32)
        for row, line in zip(rows, lines, strict=True):
            row[: len(line.text)] = [places[character] for character in line.text]
        return answered(rows)

    inputs = resolve_model(MODELS[0]).inputs
    served = ServedModel("ocr", inputs, model.outputs, 4, 1.0, MODELS, MODELS)
    with running(FakeEngine(served, answer)) as server:
        assert read_over_the_wire(server) == 1.0


@pytest.mark.live
@needs_two_cpus
def test_text_is_read_with_one_deadline_for_both_stages(tmp_path: Path) -> None:
    with engine_of(ocr(tmp_path), "static-8") as engine, running(engine) as server:
        assert read_over_the_wire(server) > 0.7
        with pytest.raises(InferenceServerException) as refused:
            texts(server, IMAGES[:1], SHORT_MS)
        assert refused.value.status() in ("503", "504")
    statuses = [reply.status for _, reply, _ in server.recorder.ended]
    assert statuses.count(Status.ANSWERED) == len(statuses) - 1 == len(IMAGES)


KILLS = """
duration_s = 8.0
slo_s = 60.0
profile = "lite0"
arrivals = { kind = "poisson", rate_rps = 10.0 }
network = { trace = "none" }
"""


@pytest.mark.live
@needs_two_cpus
def test_each_request_has_one_answer_though_replicas_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sponge load`` sends open loop, and every two seconds something is killed."""
    monkeypatch.chdir(tmp_path)
    Path("kills.toml").write_text(KILLS)
    name, killed, over = "efficientnet-lite0-uint8", [], threading.Event()
    with engine_of(one_stage(tmp_path, name), "static-16") as engine, running(engine) as server:
        worker = engine._system.worker

        def kill_again_and_again() -> None:
            while not over.wait(2.0):
                (pid, *_) = [r.pid for r in worker.replicas]  # type: ignore[attr-defined]
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
