"""Several models behind one server: each has its name, its counts, and can be switched off."""

import json
from dataclasses import replace

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from machine import wait_until
from raw_http import Wire, in_json, request
from served import running

from sponge_env.errors import ConfigError
from sponge_env.scenario.scenario import load_scenario, scenario_of_all
from sponge_env.serve.monitor.exposition import exposition
from sponge_env.serve.monitor.page import History, state
from sponge_env.serve.rpc.codec import SERVICE

OWN = {"name": "other", "stages": ("other",), "variants": ("other",)}
OTHER = replace(served(), stage=1, default_slo_s=0.25, **OWN)
REPOSITORY = "/v2/repository"


def by_stage(call):
    output = np.array([[call.stage, call.deadline_s - call.sent_s]], np.float32)
    return answered(output, variant=("tiny", "other")[call.stage])


@pytest.fixture
def server():
    with running(FakeEngine(answer=by_stage, others=[OTHER])) as found:
        yield found


def get(wire, path):
    return wire.send(request(method="GET", path=f"/v2/models/{path}")).answer()


def post(wire, path, data=b"", **more):
    return wire.send(request(data, path=path, **more)).answer()


def infer(wire, name):
    return post(wire, f"/v2/models/{name}/infer", in_json())


def test_each_model_is_called_and_counted_by_its_own_name(server):
    with Wire(server) as wire:
        for place, (name, slo_s) in enumerate((("tiny", 1.0), ("other", 0.25))):
            answer = infer(wire, name)
            assert (answer.status, answer.json["model_name"]) == (200, name)
            assert answer.json["outputs"][0]["data"] == pytest.approx([place, slo_s], abs=0.02)
            for path in (name, f"{name}/config", f"{name}/ready"):
                assert get(wire, path).json["name"] == name
            (stats,) = get(wire, f"{name}/stats").json["model_stats"]
            assert (stats["name"], stats["inference_count"]) == (name, 1)
        listed = get(wire, "stats").json["model_stats"], post(wire, f"{REPOSITORY}/index").json
        assert [[each["name"] for each in many] for many in listed] == [["tiny", "other"]] * 2
        missing = infer(wire, "third")
        assert missing.status == 404
        assert missing.json["error"] == "there is no model 'third'; it is 'tiny', 'other'"
        infer(wire, "other")
    wait_until(lambda: server.recorder.counts()["on_time"] == 3)  # after the answers
    text = exposition(server.recorder).decode()
    assert 'sponge_requests_total{model="tiny",outcome="on_time"} 1.0' in text
    assert 'sponge_answers_total{model="other",variant="other"} 2.0' in text
    assert 'sponge_slo_seconds{model="other"} 0.25' in text
    shown = json.loads(state(server.engine, History(server.recorder)))
    assert (shown["server"]["model"], shown["totals"]["on_time"]) == ("tiny, other", 3)
    assert [each["totals"]["on_time"] for each in shown["models"]] == [1, 2]
    assert shown["answers"] == {"tiny": 1, "other": 2}


def test_a_model_is_switched_off_and_on_over_http_and_grpc(server):
    path = f"{REPOSITORY}/models/other"
    with Wire(server) as wire, grpc.insecure_channel(server.grpc) as channel:
        assert post(wire, f"{path}/unload", x_forwarded_for="1.2.3.4").status == 403
        assert post(wire, f"{path}/unload", origin="http://elsewhere").status == 403
        assert post(wire, f"{REPOSITORY}/models/third/load").status == 404
        other = post(wire, f"{path}/load", b'{"parameters": {"config": "{}"}}')
        assert (other.status, "leave out config" in other.json["error"]) == (400, True)
        file = {"file:1/model.onnx": {"bytes_param": b"x"}}
        with pytest.raises(grpc.RpcError, match="leave out config"):
            server.told("RepositoryModelLoad", model_name="other", parameters=file)
        proxied = channel.unary_unary(f"/{SERVICE}/RepositoryModelUnload")
        with pytest.raises(grpc.RpcError, match="only for clients on this machine"):
            proxied(b"", metadata=[("x-forwarded-for", "1.2.3.4")], timeout=20)
        for switch in (
            lambda deed: post(wire, f"{path}/{deed}"),
            lambda deed: server.told(f"RepositoryModel{deed.title()}", model_name="other"),
        ):
            switch("unload")
            assert (infer(wire, "other").status, infer(wire, "tiny").status) == (404, 200)
            assert get(wire, "other").status == 404
            ready = get(wire, "other/ready")
            assert (ready.status, ready.json["ready"]) == (400, False)
            assert not server.told("ModelReady", name="other").ready
            index = post(wire, f"{REPOSITORY}/index").json
            assert [each["state"] for each in index] == ["READY", "UNAVAILABLE"]
            (listed,) = server.told("RepositoryIndex", ready=True).models
            (of_http,) = post(wire, f"{REPOSITORY}/index", b'{"ready": true}').json
            assert listed.name == of_http["name"] == "tiny"
            assert post(wire, f"{REPOSITORY}/index", b"[" * 70_000).status == 413
            switch("load")
            assert infer(wire, "other").status == 200
            assert server.told("ModelReady", name="other").ready


def test_whoever_has_the_token_switches_models_from_anywhere():
    engine, path = FakeEngine(answer=by_stage, others=[OTHER]), f"{REPOSITORY}/models/other/unload"
    with running(engine, token="t") as server, Wire(server) as wire:
        assert post(wire, path, host="server.example:8000").status == 401
        right = {"host": "server.example:8000", "authorization": "Bearer t"}
        assert post(wire, path, **right).status == 200
    assert not engine.is_loaded("other")


def test_models_of_the_command_line_are_a_set():
    own, local = scenario_of_all(["efficientnet-lite0", "a/my model.onnx"]), load_scenario("local")
    assert [stage.name for stage in own.stages] == ["efficientnet-lite0", "my-model"]
    assert [model.profile for model in own.models] == ["local", "local:a/my model.onnx"]
    assert {model.limits for model in own.models} == {replace(local.limits, total_cores=16)}
    assert scenario_of_all([]) == local
    for models in (["ocr", "efficientnet-lite0"], ["a/one.onnx", "b/one.onnx"]):
        with pytest.raises(ConfigError, match=r"serve it alone|'a/one\.onnx', 'b/one\.onnx'"):
            scenario_of_all(models)
