"""Triton's four clients, unmodified, against the server in one process with them."""

import asyncio
import importlib
import warnings
from collections.abc import Awaitable

import numpy as np
import pytest
from served import running

from sponge_env.serve.interface import Reply, Status

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent, of tritonclient.http, about what it replaces
    import tritonclient.grpc
    import tritonclient.grpc.aio
    import tritonclient.http
    import tritonclient.http.aio
    from tritonclient.utils import InferenceServerException

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
SUMS = np.array([[6, 3], [22, 7]], np.float32)
OPTIONS = {"compress_from_bytes": 0}
CLIENTS = ("http", "http.aio", "grpc", "grpc.aio")


class Client:
    """One of the clients; calls of the asynchronous ones are waited for."""

    def __init__(self, kind, server, **options):
        self.kind, self.server, self.options = kind, server, options
        self.library = importlib.import_module(f"tritonclient.{kind}")
        self.tensors = importlib.import_module(f"tritonclient.{kind.partition('.')[0]}")

    @property
    def over_http(self):
        return self.kind.startswith("http")

    def __getattr__(self, method):
        return lambda *arguments, **named: asyncio.run(self._call(method, *arguments, **named))

    async def _call(self, method, *arguments, **named):
        address = self.server.http if self.over_http else self.server.grpc
        client = self.library.InferenceServerClient(address, **self.options)
        try:
            found = getattr(client, method)(*arguments, **named)
            return await found if isinstance(found, Awaitable) else found
        finally:
            closed = client.close()
            if isinstance(closed, Awaitable):
                await closed

    def tensor(self, rows=ROWS, **how):
        tensor = self.tensors.InferInput("input", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, **how)
        return tensor

    def output(self, **how):
        return self.tensors.InferRequestedOutput("output", **how)


@pytest.fixture(params=CLIENTS)
def client(request, server):
    server.engine.calls.clear()
    return Client(request.param, server)


def plain(client, found):
    if client.over_http:
        return found
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(found, preserving_proto_field_name=True)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", "1")
    assert plain(client, client.get_server_metadata())["name"] == "sponge"
    (tensor,) = plain(client, client.get_model_metadata("tiny"))["inputs"]
    assert [int(size) for size in tensor["shape"]] == [-1, 4]
    config = plain(client, client.get_model_config("tiny"))
    config = config.get("config", config)
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (8, "TYPE_FP32")
    assert plain(client, client.get_inference_statistics("tiny"))["model_stats"]
    index = plain(client, client.get_model_repository_index())
    assert (index if client.over_http else index["models"])[0]["state"] == "READY"


def test_infer(client):
    assert np.array_equal(client.infer("tiny", [client.tensor()]).as_numpy("output"), SUMS)
    assert [call.payload_bytes > 16 for call in client.server.engine.calls] == [True, True]


def test_the_deadline(client):
    for options, slo_s in (
        ({"timeout": 250_000}, (0.05, 0.45)),
        ({"timeout": 250_000, "parameters": {"slo_ms": 123}}, (0.1229, 0.1231)),
        *[({"client_timeout": 10}, (5, 10.5))] * (not client.over_http),
    ):
        client.infer("tiny", [client.tensor()], **options)
        call = client.server.engine.calls[-1]
        assert slo_s[0] < call.deadline_s - call.sent_s < slo_s[1]


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_what_is_not_answered(kind):
    with running() as server:
        client = Client(kind, server)
        for ended, status, code in (
            (Status.REFUSED, "503", "RESOURCE_EXHAUSTED"),
            (Status.EXPIRED, "504", "DEADLINE_EXCEEDED"),
            (Status.FAILED, "503", "UNAVAILABLE"),
            (Status.STOPPED, "503", "UNAVAILABLE"),
        ):
            server.engine.answer = lambda _, ended=ended: Reply(ended, retry_after_s=0.25)
            with pytest.raises(InferenceServerException) as raised:
                client.infer("tiny", [client.tensor()])
            assert raised.value.status() == (status if kind == "http" else f"StatusCode.{code}")
            assert raised.value.message()


def test_a_stream_is_answered_in_order():
    with running() as server:
        found, client = [], tritonclient.grpc.InferenceServerClient(server.grpc)
        client.start_stream(lambda result, error: found.append(error or result))
        maker = Client("grpc", server)
        for n in range(20):
            name = "tiny" if n != 7 else "other"
            client.async_stream_infer(name, [maker.tensor()], request_id=str(n))
        client.stop_stream()
        client.close()
    assert len(found) == 20
    assert "no model" in str(found[7])
    ids = [result.get_response().id for n, result in enumerate(found) if n != 7]
    assert ids == [str(n) for n in range(20) if n != 7]


def test_a_token_is_needed(client):
    with running(token="secret") as server:
        other = Client(client.kind, server)
        assert other.is_server_ready()
        for wrong in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException, match="token"):
                other.infer("tiny", [other.tensor()], headers=wrong)
        result = other.infer("tiny", [other.tensor()], headers={"authorization": "Bearer secret"})
        assert np.array_equal(result.as_numpy("output"), SUMS)
