"""Triton's four clients, unmodified, against the server in one process with them."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from served import Running, running

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
CLIENTS = ("http", "http.aio", "grpc", "grpc.aio")


class Client:
    """One of the clients; calls of the asynchronous ones are waited for."""

    def __init__(self, kind: str, server: Running, **options: Any) -> None:
        self.kind, self.server, self.options = kind, server, options
        self.library = importlib.import_module(f"tritonclient.{kind}")
        self.tensors = importlib.import_module(f"tritonclient.{kind.partition('.')[0]}")

    @property
    def over_http(self) -> bool:
        return self.kind.startswith("http")

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return asyncio.run(self._call(method, *arguments, **named))

        return call

    async def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        address = self.server.http if self.over_http else self.server.grpc
        client = self.library.InferenceServerClient(address, **self.options)
        try:
            found = getattr(client, method)(*arguments, **named)
            return await found if isinstance(found, Awaitable) else found
        finally:
            closed = client.close()
            if isinstance(closed, Awaitable):
                await closed

    def tensor(self, rows: Any = ROWS, **how: Any) -> Any:
        tensor = self.tensors.InferInput("input", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, **how)
        return tensor

    def output(self, **how: Any) -> Any:
        return self.tensors.InferRequestedOutput("output", **how)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(compress_from_bytes=0) as found:
        yield found


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, server: Running) -> Client:
    server.engine.calls.clear()
    return Client(request.param, server)


def plain(client: Client, found: Any) -> Any:
    if client.over_http:
        return found
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(found, preserving_proto_field_name=True)


def test_health(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")


def test_metadata(client: Client) -> None:
    assert plain(client, client.get_server_metadata())["name"] == "sponge"
    found = plain(client, client.get_model_metadata("tiny"))
    (tensor,) = found["inputs"]
    assert [int(size) for size in tensor["shape"]] == [-1, 4]
    config = plain(client, client.get_model_config("tiny"))
    config = config.get("config", config)
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert plain(client, client.get_inference_statistics("tiny"))["model_stats"]
    index = plain(client, client.get_model_repository_index())
    assert (index if client.over_http else index["models"])[0]["state"] == "READY"


def test_infer(client: Client) -> None:
    result = client.infer("tiny", [client.tensor()])
    assert np.array_equal(result.as_numpy("output"), SUMS)
    assert [call.payload_bytes > 16 for call in client.server.engine.calls] == [True, True]


def test_the_deadline_is_tritons_timeout(client: Client) -> None:
    client.infer("tiny", [client.tensor()], timeout=250_000)
    for call in client.server.engine.calls:
        assert call.deadline_s - call.sent_s == pytest.approx(0.25, abs=0.2)
        assert call.deadline_s - call.sent_s < 0.9


def test_the_deadline_is_the_slo(client: Client) -> None:
    client.infer("tiny", [client.tensor()], timeout=250_000, parameters={"slo_ms": 123})
    for call in client.server.engine.calls:
        assert call.deadline_s - call.sent_s == pytest.approx(0.123)


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
def test_the_deadline_is_that_of_grpc(kind: str, server: Running) -> None:
    server.engine.calls.clear()
    client = Client(kind, server)
    client.infer("tiny", [client.tensor()], client_timeout=10)
    for call in server.engine.calls:
        assert 5 < call.deadline_s - call.sent_s < 10.5


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (Reply(Status.REFUSED, retry_after_s=0.25), "503", "StatusCode.RESOURCE_EXHAUSTED"),
        (Reply(Status.EXPIRED), "504", "StatusCode.DEADLINE_EXCEEDED"),
        (Reply(Status.FAILED), "503", "StatusCode.UNAVAILABLE"),
        (Reply(Status.STOPPED), "503", "StatusCode.UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("kind", CLIENTS)
def test_what_is_not_answered(kind: str, reply: Reply, status: str, code: str) -> None:
    with running(FakeEngine(answer=lambda call: reply)) as server:
        client = Client(kind, server)
        with pytest.raises(InferenceServerException) as raised:
            client.infer("tiny", [client.tensor()])
    assert raised.value.status() == (status if client.over_http else code)
    assert raised.value.message()


def test_a_cancelled_call_frees_its_place() -> None:
    with running(FakeEngine(answer=lambda call: None)) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc)
        tensor = Client("grpc", server).tensor()
        call = client.async_infer("tiny", [tensor], lambda result, error: None)
        server.engine.wait_until(lambda engine: len(engine.held) == 2)
        call.cancel()
        server.engine.wait_until(lambda engine: len(engine.cancelled) == 2)
        client.close()


def test_a_stream_is_answered_in_order() -> None:
    with running() as server:
        found: list[Any] = []
        client = tritonclient.grpc.InferenceServerClient(server.grpc)
        client.start_stream(lambda result, error: found.append(error or result))
        maker = Client("grpc", server)
        for n in range(20):
            client.async_stream_infer(
                "tiny" if n != 7 else "other", [maker.tensor()], request_id=str(n)
            )
        client.stop_stream()
        client.close()
    assert len(found) == 20
    assert "no model" in str(found[7])
    ids = [result.get_response().id for n, result in enumerate(found) if n != 7]
    assert ids == [str(n) for n in range(20) if n != 7]


def test_a_token_is_needed(client: Client) -> None:
    with running(token="secret") as server:
        other = Client(client.kind, server)
        assert other.is_server_live()
        assert other.is_server_ready()
        with pytest.raises(InferenceServerException, match="token"):
            other.infer("tiny", [other.tensor()])
        with pytest.raises(InferenceServerException, match="token"):
            other.infer("tiny", [other.tensor()], headers={"authorization": "Bearer wrong"})
        right = {"authorization": "Bearer secret"}
        result = other.infer("tiny", [other.tensor()], headers=right)
        assert np.array_equal(result.as_numpy("output"), SUMS)
