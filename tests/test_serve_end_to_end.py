"""From the client's bytes to the model and back: text is read, and dying replicas cost no answer.

On fakes first, which shows that the client sees what it should, then on real replicas.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fake_engine import FakeEngine, answered
from hammer import Hammer, Tally
from machine import needs_two_cpus
from numpy.typing import NDArray
from served import Running, running
from test_live_ocr import MODELS, ocr
from test_live_serve_engine import engine_of, one_stage
from test_serve_clients import CLIENTS, Client, InferenceServerException, plain
from tritonclient.utils import np_to_triton_dtype
from user_models import TOKENS, USER_MODELS, UserModel

from benchmarks.servers import Server
from sponge_env.models.images import TextImage, draw
from sponge_env.models.ocr import Detection, Recognition
from sponge_env.models.registry import resolve_model
from sponge_env.serve.interface import Call, Reply, ServedModel, Status

IMAGES = [draw(seed) for seed in range(8)]
LONG_S = 60.0
SHORT_MS = 2.0
"""Less than any detection takes."""


def texts(server: Running, images: Sequence[TextImage], slo_ms: float) -> list[list[str]]:
    """Have images read in one request, by Triton's client; return the lines of each."""
    client, rows = Client("http", server), np.stack([image.pixels for image in images])
    tensor = client.tensors.InferInput("image", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    told = {"x-slo-ms": str(slo_ms)}
    found = client.infer(server.engine.served.name, [tensor], headers=told)
    assert found.get_response()["parameters"]["deadline_met"] is True
    ends = np.cumsum(found.as_numpy("tasks"))
    lines = [text.decode() for text in found.as_numpy("text")]
    assert len(lines) == ends[-1] == len(found.as_numpy("box"))
    return [lines[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def read_over_the_wire(server: Running) -> float:
    """Return the share of the drawn lines that a client gets right, image by image and at once."""
    read = [texts(server, [image], LONG_S * 1000)[0] for image in IMAGES[:4]]
    read += texts(server, IMAGES[4:], LONG_S * 1000)
    drawn = [Counter(line.text for line in image.lines) for image in IMAGES]
    right = sum((own & Counter(lines)).total() for own, lines in zip(drawn, read, strict=True))
    return right / sum(own.total() for own in drawn)


def test_a_client_gets_the_text_that_a_pipeline_read() -> None:
    outputs, known = Recognition.outputs, {image.pixels.tobytes(): image for image in IMAGES}

    def answer(call: Call) -> Reply:
        lines = known[call.tensor.tobytes()].lines
        rows = np.zeros(len(lines), outputs.element)
        rows["text"] = [line.text.encode() for line in lines]
        return answered(rows)

    served = ServedModel("ocr", Detection.inputs, outputs, 4, 1.0, MODELS, MODELS)
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


def asked(client: Client, model: UserModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Send a request as a program would that knows only the model; return the answer."""
    tensors = []
    for name, rows in inputs.items():
        kind = np_to_triton_dtype(rows.dtype)
        tensors.append(client.tensors.InferInput(name, list(rows.shape), kind))
        tensors[-1].set_data_from_numpy(rows)
    found = client.infer("own", tensors)
    return {name: found.as_numpy(name) for name in model.outputs}


@pytest.mark.live
@needs_two_cpus
@pytest.mark.parametrize("name", USER_MODELS)
def test_a_users_model_is_served_as_it_is(name: str, tmp_path: Path) -> None:
    model = USER_MODELS[name]
    scenario = one_stage(tmp_path, str(model.write(tmp_path)))
    with (
        engine_of(scenario, "static-16", name="own", slo_s=LONG_S) as engine,
        running(engine) as server,
    ):
        for kind in CLIENTS:
            client = Client(kind, server)
            about = plain(client, client.get_model_metadata("own"))
            assert [tensor["name"] for tensor in about["inputs"]] == [*model.inputs]
            for inputs in (model.inputs, dict(reversed([*model.inputs.items()]))):
                found = asked(client, model, inputs)
                for output, expected in model.outputs.items():
                    assert found[output].dtype == expected.dtype
                    assert np.array_equal(found[output], expected)
            if name == "text":
                with pytest.raises(InferenceServerException, match="idx=7 must be within"):
                    asked(client, model, model.inputs | {"ids": TOKENS + 6})
        body = [
            {"name": key, "datatype": np_to_triton_dtype(rows.dtype), "shape": rows.shape,
             "data": [value.decode() if name == "strings" else value for value in rows.flat]}
            for key, rows in model.inputs.items()
        ]  # fmt: skip
        url = f"http://{server.http}/v2/models/own/infer"
        sent = urllib.request.Request(
            url, orjson.dumps({"inputs": body}, option=orjson.OPT_SERIALIZE_NUMPY)
        )
        with urllib.request.urlopen(sent) as answer:
            told = {each["name"]: each["data"] for each in json.load(answer)["outputs"]}
        for output, expected in model.outputs.items():
            flat = [v.decode() if name == "strings" else v for v in expected.flat]
            assert told[output] == flat
        assert engine._system.worker.status().restarts == 0


async def hammered(server: Running, row: NDArray[Any], kill: Callable[[], None]) -> Tally:
    """Send requests open loop for 8 s, and kill something every two seconds."""
    options = server.options
    assert options.grpc_port is not None
    name = server.engine.served.name
    known = Server("sponge", name, options.port, options.grpc_port, None)  # type: ignore[arg-type]

    async def kill_again_and_again() -> None:
        while True:
            await asyncio.sleep(2.0)
            kill()

    killing = asyncio.create_task(kill_again_and_again())
    try:
        return await Hammer(known, row, LONG_S).run(10.0, 8.0)
    finally:
        killing.cancel()


@pytest.mark.live
@needs_two_cpus
def test_each_request_has_one_answer_though_replicas_are_killed(tmp_path: Path) -> None:
    name = "efficientnet-lite0-uint8"
    row, killed = resolve_model(name).samples()[0], []
    with engine_of(one_stage(tmp_path, name), "static-16") as engine, running(engine) as server:
        worker = engine._system.worker

        def kill() -> None:
            (pid, *_) = [r.pid for r in worker.replicas]  # type: ignore[attr-defined]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

        tally = asyncio.run(hammered(server, row, kill))
        assert tally.sent > 20
        assert tally.statuses == {200: tally.sent}
        assert (tally.unanswered, tally.wrong) == (0, 0)
        assert len(server.recorder.ended) == tally.sent
        assert worker.status().restarts == len(killed) >= 3
