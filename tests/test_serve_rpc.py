"""gRPC: messages in a pool of their own, damaged ones, limits."""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
import warnings
from unittest.mock import AsyncMock

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine, served, sums
from google.protobuf import descriptor_pool
from hypothesis import given
from hypothesis import strategies as st
from machine import wait_until
from raw_http import Wire, binary
from raw_http import infer as over_http
from served import running

from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Reply, Status
from sponge_env.serve.rpc import service
from sponge_env.serve.rpc.codec import MAX_FIELDS, MESSAGES, SERVICE, parsed_bytes
from sponge_env.serve.rpc.service import COPIES, PARSED_COPIES, PUSHBACK, STREAM_REQUESTS
from sponge_env.serve.wire.outcomes import WireError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tritonclient.grpc import service_pb2

OPTIONS = {"max_body_bytes": 10_000, "max_header_bytes": 4000}


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as found:
        yield found


def call(channel, method, data, timeout=20):
    return channel.unary_unary(f"/{SERVICE}/{method}").future(data, timeout=timeout)


def code(channel, method, data):
    return call(channel, method, data).code()


def infer(rows=((1, 2, 3, 4),), **more):
    array = np.asarray(rows, np.float32)
    request = MESSAGES["ModelInferRequest"](model_name="tiny", **more)
    request.inputs.add(name="input", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request


def test_methods_are_those_of_the_protocol(channel):
    known = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex"):
        assert method in known
        assert code(channel, method, b"") is grpc.StatusCode.OK
    assert code(channel, "LogSettings", b"") is grpc.StatusCode.UNIMPLEMENTED
    for method in ("ModelInfer", "ModelReady", "ModelConfig", "ServerMetadata"):
        assert code(channel, method, b"\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
    trace = [("traceparent", f"00-{'a1' * 16}-{'1' * 16}-01")]
    with pytest.raises(grpc.RpcError) as raised:
        channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter(()), timeout=20, metadata=trace)
    assert dict(raised.value.trailing_metadata())["traceparent"].startswith(trace[0][1][:36])
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert MESSAGES["ModelInferRequest"].DESCRIPTOR.file.pool is not descriptor_pool.Default()


def test_the_answer(channel):
    data = call(channel, "ModelInfer", infer(id="7").SerializeToString()).result()
    found = service_pb2.ModelInferResponse.FromString(data)
    assert (found.model_name, found.model_version, found.id) == ("tiny", "1", "7")
    assert found.raw_output_contents[0] == np.array([10, 4], np.float32).tobytes()
    said = {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in found.parameters.items()}
    assert said == {
        "deadline_met": True, "queue_ms": 1, "service_ms": 2, "batch": 2, "cores": 4,
        "variant": "tiny",
    }  # fmt: skip


def set_parameter(parameters, name, value):
    parameters[name].string_param = value


MISTAKES = {
    "name": lambda request, tensor: setattr(tensor, "name", "other"),
    "datatype": lambda request, tensor: setattr(tensor, "datatype", "INT8"),
    "shape": lambda request, tensor: tensor.shape.append(1),
    "twice": lambda request, tensor: request.inputs.add().CopyFrom(tensor),
    "none": lambda request, tensor: request.ClearField("inputs"),
    "truncated": lambda request, tensor: request.raw_input_contents.__setitem__(0, b"123"),
    "priority": lambda request, tensor: set_parameter(request.parameters, "priority", "1"),
    "raw twice": lambda request, tensor: request.raw_input_contents.append(b""),
    "both": lambda request, tensor: tensor.contents.fp32_contents.append(1),
    "neither": lambda request, tensor: request.ClearField("raw_input_contents"),
    "output": lambda request, tensor: request.outputs.add(name="other"),
    "output twice": lambda request, tensor: [request.outputs.add(name="output") for _ in "12"],
    "memory": lambda _, tensor: set_parameter(tensor.parameters, "shared_memory_region", "a"),
    "slo": lambda request, _: set_parameter(request.parameters, "slo_ms", "soon"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_the_clients(name, channel):
    request = infer()
    MISTAKES[name](request, request.inputs[0])
    data = request.SerializeToString()
    assert code(channel, "ModelInfer", data) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata", "ModelStatistics"])
def test_unknown_models(method, channel):
    key = "model_name" if method == "ModelInfer" else "name"
    for asked in ({key: "other"}, {key: "tiny", key.replace("name", "version"): "2"}):
        data = MESSAGES[f"{method}Request"](**asked).SerializeToString()
        assert code(channel, method, data) is grpc.StatusCode.NOT_FOUND


def test_a_refusal_says_when_to_try_again():
    engine = FakeEngine(answer=lambda call: Reply(Status.REFUSED, retry_after_s=0.25))
    with running(engine) as server, grpc.insecure_channel(server.grpc) as channel:
        refused = call(channel, "ModelInfer", infer().SerializeToString())
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.trailing_metadata())[PUSHBACK] == "250"


def test_calls_beyond_the_limit_are_refused():
    engine, limits = FakeEngine(answer=lambda call: None), {"max_connections": 2}
    with running(engine, **limits) as server, grpc.insecure_channel(server.grpc) as channel:
        asked = channel, "ModelInfer", infer().SerializeToString()
        held = [call(*asked) for _ in range(2)]
        engine.wait_until(lambda engine: len(engine.held) == 2)
        assert code(*asked) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for future in held:
            future.cancel()
        engine.wait_until(lambda engine: len(engine.cancelled) == 2)


def test_a_call_that_ends_at_its_deadline_is_not_taken_back():
    """It was late, and its client knows."""
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, grpc.insecure_channel(server.grpc) as channel:
        asked = channel, "ModelInfer", infer().SerializeToString()
        early, late = call(*asked), call(*asked, timeout=0.3)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        early.cancel()  # after the other, whose end the server sees before
        engine.wait_until(lambda engine: engine.cancelled)
        assert len(engine.held) == 1


@pytest.mark.parametrize(
    ("limits", "method", "status"), [*(({"token": "a"}, method, grpc.StatusCode.UNAUTHENTICATED)
       for method in ("ModelInfer", "ModelMetadata", "ModelStreamInfer")),
     ({"body_timeout_s": 0.2}, "ModelInfer", grpc.StatusCode.DEADLINE_EXCEEDED),
     ({"idle_timeout_s": 0.2}, "ModelStreamInfer", grpc.StatusCode.DEADLINE_EXCEEDED)],
)  # fmt: skip
def test_silent_clients_are_let_go(limits, method, status):
    """Those without a token are not even read."""
    with running(**limits) as server, grpc.insecure_channel(server.grpc) as channel:
        never, began_s = threading.Event(), time.monotonic()
        ask = channel.stream_stream(f"/{SERVICE}/{method}")(silent(never), timeout=15)
        with pytest.raises(grpc.RpcError) as raised:
            next(ask)
        never.set()
        assert raised.value.code() is status
        assert time.monotonic() - began_s < 10


def silent(never):
    never.wait(20)
    yield b""


def test_a_stream_that_ends_takes_all_back():
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, grpc.insecure_channel(server.grpc) as channel:
        many = itertools.repeat(infer().SerializeToString(), 200)
        ask = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(many, timeout=20)
        engine.wait_until(lambda engine: len(engine.held) == STREAM_REQUESTS)
        ask.cancel()
        engine.wait_until(lambda engine: len(engine.cancelled) == STREAM_REQUESTS)
    assert len(engine.calls) == STREAM_REQUESTS


def test_too_many_messages_at_a_time():
    data, engine = infer().SerializeToString(), FakeEngine(answer=lambda call: None)
    limits = {"max_held_bytes": max(COPIES * len(data), len(binary()[0])) + 5}
    with running(engine, **limits) as server, grpc.insecure_channel(server.grpc) as channel:
        held = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(data)
        engine.wait_until(lambda engine: len(engine.held) == 1)
        assert code(channel, "ModelInfer", data) is grpc.StatusCode.UNAVAILABLE
        with Wire(server) as wire:  # it is one account
            assert wire.send(over_http()).answer().status == 503
        held.cancel()
        engine.wait_until(lambda engine: len(engine.cancelled) == 1)
        engine.answer = sums  # there is room again
        assert code(channel, "ModelInfer", data) is grpc.StatusCode.OK


@given(data=st.binary(max_size=100), raw=st.binary(max_size=300), more=st.binary(max_size=3))
def test_raw_contents_are_told_from_the_rest(data, raw, more):
    try:
        assert 0 <= parsed_bytes(data) <= len(data)
    except WireError:
        assert len(data) > MAX_FIELDS
    request = infer()
    request.raw_input_contents[0] = raw
    said = request.SerializeToString()
    assert parsed_bytes(said) == len(said) - len(raw) - (2 if len(raw) < 128 else 3)
    if more:
        assert parsed_bytes(said + more) == len(said + more)


def test_a_request_has_few_fields(channel):
    """Each of them takes 90 bytes in memory."""
    empty = b"\x2a\0"
    for before in (b"", b"\x78\1", b"\x7b\x7c"):  # also after what nobody knows
        data = before + empty * 4000
        assert code(channel, "ModelInfer", data) is grpc.StatusCode.RESOURCE_EXHAUSTED
    named = MESSAGES["ModelInferRequest"](model_name="tiny").SerializeToString()
    assert code(channel, "ModelInfer", named + empty * 9) is grpc.StatusCode.INVALID_ARGUMENT
    known = infer().SerializeToString() + b"\x78\1" + b"\x7d" + b"\0" * 4 + b"\x79" + b"\0" * 8
    assert code(channel, "ModelInfer", known) is grpc.StatusCode.OK


def test_what_numbers_become_counts():
    raw, numbers = (infer(np.ones((1, 40_000))) for _ in range(2))
    del numbers.raw_input_contents[:]
    numbers.inputs[0].contents.fp32_contents.extend([1.0] * 40_000)
    enough_bytes = (COPIES + PARSED_COPIES) * 160_100
    for share, status in ((0.7, grpc.StatusCode.RESOURCE_EXHAUSTED), (1.4, grpc.StatusCode.OK)):
        engine = FakeEngine(served(TensorSpec((40_000,))))
        limits = {"max_held_bytes": int(share * enough_bytes), "max_body_bytes": 200_000}
        with running(engine, **limits) as server, grpc.insecure_channel(server.grpc) as channel:
            assert code(channel, "ModelInfer", numbers.SerializeToString()) is status
            assert code(channel, "ModelInfer", raw.SerializeToString()) is grpc.StatusCode.OK


def test_few_messages_are_read_at_a_time(monkeypatch):
    """What has come of a message is not counted before it is whole."""
    monkeypatch.setattr(service, "SLOW_S", 4.0)
    limits = {"max_held_bytes": 60_000, "max_body_bytes": 10_000}
    places = 60_000 // (COPIES * 10_000)
    with running(**limits) as server, grpc.insecure_channel(server.grpc) as channel:
        never, data = threading.Event(), infer().SerializeToString()
        ask = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        slow = [ask.future(silent(never), timeout=20) for _ in range(places)]
        others = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        found, served = grpc.StatusCode.OK, -1
        while found is grpc.StatusCode.OK:  # until each slow one is there: one may be overtaken
            served += 1
            found = others.future(data, timeout=0.5).code()
            assert not any(call.done() for call in slow)
        assert found is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(server.engine.calls) == served
        assert server.told("ModelReady", name="tiny").ready
        assert channel.stream_unary(f"/{SERVICE}/ServerLive")(silent(never), timeout=10)
        # One gives way to that call, long before the server's patience or its own end.
        wait_until(lambda: any(call.done() for call in slow))
        (gone,) = [call for call in slow if call.done()]
        assert gone.details() == "the message did not arrive in time"
        assert code(channel, "ModelInfer", data) is grpc.StatusCode.OK
        never.set()


def test_for_each_call_that_waits_a_slow_one_leaves(monkeypatch):
    monkeypatch.setattr(service, "SLOW_S", 0.01)

    async def served():
        silent, quick, turn = AsyncMock(), AsyncMock(), service.Places(1)
        silent.read, quick.read.return_value = asyncio.Event().wait, b"data"
        slow = [asyncio.create_task(service.receive(silent, 60, turn)) for _ in range(4)]
        await asyncio.sleep(0)
        assert await service.receive(quick, 60, turn) == b"data"
        assert all(isinstance(each.exception(), WireError) for each in slow)

    asyncio.run(served())


TALKATIVE = """
import socket, struct
from served import running
def frame(kind, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0, 0, 0, 0, 0]) + payload
goaway = struct.pack(">II", 0, 2) + b"\\x1b[31merror: the server cannot go on\\n"
frames = frame(4, b"") + frame(7, goaway) + frame(6, b"and ping")
with running() as server:
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frames)
        answer = b""
        while b"and ping" not in answer:  # all before it was read
            more = client.recv(1000)
            assert more
            answer += more
"""
"""A client of HTTP/2 that says goodbye with a text of its own."""


def test_what_clients_say_is_not_in_the_log():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("GRPC_VERBOSITY", None)
    command = [sys.executable, "-c", TALKATIVE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
