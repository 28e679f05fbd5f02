"""The protocol over gRPC: ``inference.GRPCInferenceService``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict

from sponge_env.errors import ConfigError
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.codec import loose_bytes, parsed, read_request, write_response
from sponge_env.serve.rpc.messages import Context, Stream, headers_of, read_message
from sponge_env.serve.rpc.protos import MESSAGES, SERVICE
from sponge_env.serve.sockets import authority, listening_socket
from sponge_env.serve.wire import describe
from sponge_env.serve.wire.aside import LARGE_BYTES, aside, in_turn
from sponge_env.serve.wire.front import Front, Headers
from sponge_env.serve.wire.outcomes import UnansweredError, WireError, grpc_code
from sponge_env.serve.wire.protocol import Inference

PUSHBACK = "grpc-retry-pushback-ms"
"""By which gRPC's clients learn when to try again."""
COPIES = 2
"""Of a message in memory: as it came, and what was taken out of it."""
LOOSE_COPIES = 32
"""Of what is parsed number by number, meanwhile: a byte may be a Python number in a list."""
OPEN = ("ServerLive", "ServerReady")
"""Methods that want no token."""
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
        ("grpc.max_allowed_incoming_connections", options.most_connections),
        ("grpc.max_receive_message_length", options.most_body_bytes + MORE_BYTES),
        ("grpc.http2.bdp_probe", 0),  # or it takes more than 64 KB of messages that nobody reads
        ("grpc.max_send_message_length", -1),
        ("grpc.absolute_max_metadata_size", options.most_header_bytes),
        ("grpc.max_connection_idle_ms", round(options.idle_timeout_s * 1000)),
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that has arrived."""

    data: bytes
    headers: Headers
    began_s: float
    """When its call began, on the monotonic clock."""
    remaining_s: float | None = None
    """What is left of the call's deadline, if there is one and it is that of this message."""


class RpcFront:
    """Answers calls; messages are taken apart here, for a damaged one is the client's error."""

    def __init__(self, front: Front) -> None:
        self._front, self._recorder = front, front.recorder
        # gRPC tells nothing of a message before it is complete, so each may become the largest
        most = front.options.most_held_bytes // (COPIES * front.options.most_body_bytes)
        self._reading, self._streams = (asyncio.Semaphore(max(1, most)) for _ in range(2))

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server hands calls to."""
        described: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": self._front.engine.alive},
            "ServerReady": lambda _: {"ready": self._front.engine.ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: describe.server_metadata(),
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }
        handlers: dict[str, Any] = {
            name: self._unary(self._describing(name, make), name not in OPEN)
            for name, make in described.items()
        }
        handlers["ModelInfer"] = self._unary(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, work: Callable[[Asked], Awaitable[Any]], guarded: bool = True) -> Any:
        """Make a handler of what returns the message that answers one.

        It reads the message itself, to know when it began, to give up a client that is too slow,
        and to read nothing of one without the token; gRPC would wait for ever.
        """

        async def handle(_: object, context: Context) -> bytes:
            began_s, headers = time.monotonic(), headers_of(context)
            try:
                if guarded:
                    self._front.check_token(headers)
                patience_s = self._front.options.body_timeout_s
                data = await read_message(context, patience_s, self._reading)
                if data is None:
                    raise WireError("the call brought no message")
                with self._front.memory.holding(COPIES * len(data)):
                    asked = Asked(data, headers, began_s, context.time_remaining())
                    response = await work(asked)
            except WireError as error:
                await self._abort(context, error)
            said: bytes = response.SerializeToString()
            return said

        return grpc.stream_unary_rpc_method_handler(handle)

    def _describing(
        self, name: str, make: Callable[[Any], Any]
    ) -> Callable[[Asked], Awaitable[Any]]:
        """Return what answers with a message made of plain values."""

        async def work(asked: Asked) -> Any:
            found = make(await aside(len(asked.data), parsed, f"{name}Request", asked.data))
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
        """Return the message that answers a request; a WireError says why there is none."""
        front = self._front
        arrival = front.arrival(asked.began_s, asked.remaining_s)
        loose = loose_bytes(asked.data)
        with front.memory.holding(LOOSE_COPIES * loose if loose >= LARGE_BYTES else 0):
            inference = await in_turn(loose, self._inference, asked.data)
        read_s = time.monotonic() - arrival.arrived_s
        answered = await front.infer(inference, asked.headers, arrival, len(asked.data))
        began_s = time.monotonic()
        response = write_response(
            inference, front.served.name, answered.tensors, answered.parameters
        )
        self._recorder.converted(read_s, time.monotonic() - began_s)
        return response

    def _inference(self, data: bytes) -> Inference:
        """Take a request apart; the message itself is not kept."""
        front, request = self._front, parsed("ModelInferRequest", data)
        front.check_model(request.model_name, request.model_version)
        return read_request(request, front.served, front.options.most_rows)

    async def _stream(self, _: object, context: Context) -> None:
        """Answer the requests of a stream in their order, several of them at a time.

        The deadline of the stream is not that of a request.
        """
        try:
            self._front.check_token(headers_of(context))
            if self._streams.locked():
                raise WireError("too many streams at a time", 503)
            async with self._streams:
                await Stream(context, self._front.options.idle_timeout_s, self._streamed).serve()
        except WireError as error:
            await self._abort(context, error)

    async def _streamed(self, data: bytes, headers: Headers) -> bytes:
        try:
            with self._front.memory.holding(COPIES * len(data)):
                asked = Asked(data, headers, time.monotonic())
                found = {"infer_response": await self._infer(asked)}
        except WireError as error:
            self._front.count_rejected(error)
            found = {"error_message": error.sentence}
        said: bytes = MESSAGES["ModelStreamInferResponse"](**found).SerializeToString()
        return said

    async def _abort(self, context: Context, error: WireError) -> Any:
        """End a call with the error's code and sentence."""
        self._front.count_rejected(error)
        more: tuple[tuple[str, str], ...] = ()
        if isinstance(error, UnansweredError) and error.retry_after_s > 0:
            more = ((PUSHBACK, str(max(1, round(error.retry_after_s * 1000)))),)
        await context.abort(grpc.StatusCode[grpc_code(error)], error.sentence, more)
