"""Several models behind one server: each has its name, its counts, and can be switched off."""

import dataclasses
import json

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from machine import wait_until
from raw_http import Wire, binary, request
from served import running

from sponge_env.errors import ConfigError
from sponge_env.scenario.scenario import load_scenario, scenario_of_all
from sponge_env.serve.interface import Status
from sponge_env.serve.monitor.exposition import exposition
from sponge_env.serve.monitor.page import History, state
from sponge_env.serve.rpc.codec import MESSAGES, SERVICE

OTHER = dataclasses.replace(
    served(), name="other", stage=1, stages=("other",), default_slo_s=0.25, variants=("other",)
)


def by_stage(call):
    """Answer with the place of the model and the budget."""
    output = np.array([[call.stage, call.deadline_s - call.sent_s]], np.float32)
    return answered(output, variant=("tiny", "other")[call.stage])


@pytest.fixture
def server():
    with running(FakeEngine(answer=by_stage, others=[OTHER])) as found:
        yield found


def get(wire, path, **more):
    return wire.send(request(method="GET", path=path, **more)).answer()


def post(wire, path, data=b"", **more):
    return wire.send(request(data, path=path, **more)).answer()


def infer(wire, name):
    data, length = binary()
    return post(wire, f"/v2/models/{name}/infer", data, inference_header_content_length=length)


def told(channel, method, **fields):
    data = MESSAGES[f"{method}Request"](**fields).SerializeToString()
    answer = channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)
    return MESSAGES[f"{method}Response"].FromString(answer)


def test_each_model_is_called_by_its_own_name(server):
    with Wire(server) as wire:
        for place, (name, slo_s) in enumerate((("tiny", 1.0), ("other", 0.25))):
            answer = infer(wire, name)
            assert (answer.status, answer.json["model_name"]) == (200, name)
            assert answer.json["outputs"][0]["data"] == pytest.approx([place, slo_s], abs=0.02)
            assert get(wire, f"/v2/models/{name}").json["name"] == name
            assert get(wire, f"/v2/models/{name}/config").json["name"] == name
            assert get(wire, f"/v2/models/{name}/ready").json == {"name": name, "ready": True}
            (stats,) = get(wire, f"/v2/models/{name}/stats").json["model_stats"]
            assert (stats["name"], stats["inference_count"]) == (name, 1)
        assert len(get(wire, "/v2/models/stats").json["model_stats"]) == 2
        assert [each["name"] for each in post(wire, "/v2/repository/index").json] == [
            *("tiny", "other")
        ]
        missing = infer(wire, "third")
        assert (missing.status, missing.json["error"]) == (
            404, "there is no model 'third'; it is 'tiny', 'other'",
        )  # fmt: skip
    assert [call.stage for call in server.engine.calls] == [0, 1]


def test_a_model_is_switched_off_and_on_over_http_and_grpc(server):
    path = "/v2/repository/models/other"
    with Wire(server) as wire, grpc.insecure_channel(server.grpc) as channel:
        assert post(wire, f"{path}/unload", x_forwarded_for="1.2.3.4").status == 403
        assert post(wire, f"{path}/unload", origin="http://elsewhere").status == 403
        assert post(wire, "/v2/repository/models/third/load").status == 404
        for off, on in (
            (lambda: post(wire, f"{path}/unload"), lambda: post(wire, f"{path}/load")),
            (
                lambda: told(channel, "RepositoryModelUnload", model_name="other"),
                lambda: told(channel, "RepositoryModelLoad", model_name="other"),
            ),
        ):
            off()
            assert (infer(wire, "other").status, infer(wire, "tiny").status) == (404, 200)
            assert get(wire, "/v2/models/other").status == 404
            ready = get(wire, "/v2/models/other/ready")
            assert (ready.status, ready.json["ready"]) == (400, False)
            assert not told(channel, "ModelReady", name="other").ready
            states = {
                each["name"]: each["state"] for each in post(wire, "/v2/repository/index").json
            }
            assert states == {"tiny": "READY", "other": "UNAVAILABLE"}
            listed = told(channel, "RepositoryIndex", ready=True).models
            assert [each.name for each in listed] == ["tiny"]
            on()
            assert infer(wire, "other").status == 200
            assert told(channel, "ModelReady", name="other").ready


def test_counts_are_of_each_model(server):
    with Wire(server) as wire:
        for name in ("tiny", "other", "other"):
            infer(wire, name)
    wait_until(lambda: server.recorder.counts()["on_time"] == 3)  # after the answers
    text = exposition(server.recorder).decode()
    for line in (
        'sponge_requests_total{model="tiny",outcome="on_time"} 1.0',
        'sponge_requests_total{model="other",outcome="on_time"} 2.0',
        'sponge_answers_total{model="other",variant="other"} 2.0',
        'sponge_slo_seconds{model="other"} 0.25',
    ):
        assert line in text
    shown = json.loads(state(server.engine, History(server.recorder)))
    assert (shown["server"]["model"], shown["totals"]["on_time"]) == ("tiny, other", 3)
    assert [each["totals"]["on_time"] for each in shown["models"]] == [1, 2]
    assert shown["answers"] == {"tiny": 1, "other": 2}
    assert {reply.status for _, reply, _ in server.recorder.ended} == {Status.ANSWERED}


def test_models_of_the_command_line_are_a_set():
    own = scenario_of_all(["efficientnet-lite0", "a/my model.onnx"])
    local = load_scenario("local")
    assert [stage.name for stage in own.stages] == ["efficientnet-lite0", "my-model"]
    assert [model.profile for model in own.models] == ["local", "local:a/my model.onnx"]
    for model in own.models:
        assert (model.limits, model.slo_s) == (
            dataclasses.replace(local.limits, total_cores=16), local.slo_s,
        )  # fmt: skip
    assert scenario_of_all([]) == local
    for models in (["ocr", "efficientnet-lite0"], ["efficientnet-lite0"] * 2):
        with pytest.raises(ConfigError):
            scenario_of_all(models)
