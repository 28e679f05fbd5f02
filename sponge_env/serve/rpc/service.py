"""The protocol over gRPC: ``inference.GRPCInferenceService``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from sponge_env.errors import ConfigError
from sponge_env.serve.http.sockets import authority, listening_socket
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.codec import read_request, write_response
from sponge_env.serve.rpc.protos import MESSAGES, SERVICE
from sponge_env.serve.wire import describe
from sponge_env.serve.wire.front import Front
from sponge_env.serve.wire.outcomes import UnansweredError, WireError, grpc_code

Context = grpc.aio.ServicerContext[Any, Any]

PUSHBACK = "grpc-retry-pushback-ms"
"""By which gRPC's clients learn when to try again."""
STREAMED = 64
"""Requests of one stream at a time."""
MORE_BYTES = 2**16
"""Of a message beside its tensor."""


@dataclass(frozen=True, slots=True)
class RpcServer:
    """A server that runs."""

    server: grpc.aio.Server
    port: int

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and end those that are still there after the grace."""
        await self.server.stop(grace_s)


async def start_rpc(front: Front) -> RpcServer | None:
    """Start to listen, if the options want gRPC; a port in use is a ``ConfigError``."""
    options = front.options
    if options.grpc_port is None:
        return None
    server = grpc.aio.server(
        options=_channel_options(options), maximum_concurrent_rpcs=options.most_connections
    )
    server.add_generic_rpc_handlers((RpcFront(front).handler(),))
    # tried before, because gRPC writes lines of its own about a port in use
    listening_socket(options.host, options.grpc_port).close()
    address = authority(options.host, options.grpc_port)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None
    await server.start()
    return RpcServer(server, port)


def _channel_options(options: ServeOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # or another server could take half of the requests
        ("grpc.max_receive_message_length", options.most_body_bytes + MORE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.absolute_max_metadata_size", options.most_header_bytes),
        ("grpc.max_connection_idle_ms", round(options.idle_timeout_s * 1000)),
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that has arrived."""

    data: bytes
    context: Context
    began_s: float
    """When its call began, on the monotonic clock."""


class RpcFront:
    """Answers calls; messages are taken apart here, for a damaged one is the client's error."""

    def __init__(self, front: Front) -> None:
        self._front, self._recorder = front, front.recorder

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server hands calls to."""
        described: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._front.engine.ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: describe.server_metadata(),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }
        handlers: dict[str, Any] = {
            name: self._unary(self._describing(name, make)) for name, make in described.items()
        }
        handlers["ModelInfer"] = self._unary(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, work: Callable[[Asked], Awaitable[Any]]) -> Any:
        """Make a handler of what returns the message that answers one.

        It reads the message itself, to know when it began and to give up a client that is too
        slow; gRPC would wait for ever, and for those that are let in at a time only.
        """

        async def handle(_: object, context: Context) -> bytes:
            began_s = time.monotonic()
            try:
                data = await _read(context, self._front.options.body_timeout_s)
                response = await work(Asked(data, context, began_s))
            except WireError as error:
                await _abort(context, error)
            said: bytes = response.SerializeToString()
            return said

        return grpc.stream_unary_rpc_method_handler(handle)

    def _describing(
        self, name: str, make: Callable[[Any], Any]
    ) -> Callable[[Asked], Awaitable[Any]]:
        """Return what answers with a message made of plain values."""

        async def work(asked: Asked) -> Any:
            if name not in ("ServerLive", "ServerReady"):
                self._front.check_token(_headers(asked.context))
            found = make(_parsed(f"{name}Request", asked.data))
            return ParseDict(found, MESSAGES[f"{name}Response"]())

        return work

    def _model_ready(self, asked: Any) -> Any:
        self._front.check_model(asked.name, asked.version)
        return {"ready": self._front.engine.ready}

    def _model_metadata(self, asked: Any) -> Any:
        self._front.check_model(asked.name, asked.version)
        return describe.model_metadata(self._front.served)

    def _model_config(self, asked: Any) -> Any:
        self._front.check_model(asked.name, asked.version)
        return {"config": describe.model_config(self._front.served)}

    def _statistics(self, asked: Any) -> Any:
        if asked.name:  # none is all models
            self._front.check_model(asked.name, asked.version)
        return {"model_stats": [self._recorder.statistics()]}

    def _index(self, asked: Any) -> Any:
        ready = self._front.engine.ready
        shown = ready or not asked.ready
        return {"models": describe.index(self._front.served, ready) if shown else []}

    async def _infer(self, asked: Asked) -> Any:
        return await self._answer(asked, asked.context.time_remaining())

    async def _answer(self, asked: Asked, remaining_s: float | None) -> Any:
        """Return the message that answers a request; a WireError says why there is none."""
        front, headers = self._front, _headers(asked.context)
        front.check_token(headers)
        arrival = front.arrival(asked.began_s, remaining_s)
        request = _parsed("ModelInferRequest", asked.data)
        front.check_model(request.model_name, request.model_version)
        inference = read_request(request, front.served, front.options.most_rows)
        read_s = time.monotonic() - arrival.arrived_s
        answered = await front.infer(inference, headers, arrival, len(asked.data))
        began_s = time.monotonic()
        response = write_response(
            inference, front.served.name, answered.tensors, answered.parameters
        )
        self._recorder.converted(read_s, time.monotonic() - began_s)
        return response

    async def _stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer the requests of a stream in their order, several of them at a time.

        The deadline of the stream is not that of a request.
        """
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(STREAMED)

        async def read() -> None:
            async for data in requests:
                await answers.put(asyncio.create_task(self._streamed(data, context)))
            await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
        finally:
            reading.cancel()
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    left.cancel()

    async def _streamed(self, data: bytes, context: Context) -> bytes:
        try:
            asked = Asked(data, context, time.monotonic())
            found = {"infer_response": await self._answer(asked, None)}
        except WireError as error:
            found = {"error_message": error.sentence}
        said: bytes = MESSAGES["ModelStreamInferResponse"](**found).SerializeToString()
        return said


async def _read(context: Context, timeout_s: float) -> bytes:
    """Return a call's message; none, or one that takes too long, is a WireError."""
    try:
        async with asyncio.timeout(timeout_s):
            data = await context.read()
    except TimeoutError:
        raise WireError("the message did not arrive in time", 408) from None
    if not isinstance(data, bytes):
        raise WireError("the call brought no message")
    return data


def _headers(context: Context) -> dict[bytes, bytes]:
    """Return a call's metadata as HTTP's headers are given."""
    pairs = context.invocation_metadata() or ()
    return {_bytes(key).lower(): _bytes(value) for key, value in pairs}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _parsed(name: str, data: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError:
        raise WireError(f"this is no {name}") from None


async def _abort(context: Context, error: WireError) -> Any:
    """End a call with the error's code and sentence."""
    more: tuple[tuple[str, str], ...] = ()
    if isinstance(error, UnansweredError) and error.retry_after_s > 0:
        more = ((PUSHBACK, str(max(1, round(error.retry_after_s * 1000)))),)
    await context.abort(grpc.StatusCode[grpc_code(error)], error.sentence, more)
