"""The protocol over gRPC: ``inference.GRPCInferenceService``."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict

from sponge_env.errors import ConfigError
from sponge_env.live.remote import Address
from sponge_env.serve.monitor.tracing import join_trace
from sponge_env.serve.options import PROXY_HEADERS, is_local, listening_socket
from sponge_env.serve.rpc import codec
from sponge_env.serve.rpc.codec import MESSAGES
from sponge_env.serve.wire.front import Front, Headers
from sponge_env.serve.wire.outcomes import WireError, grpc_code
from sponge_env.serve.wire.protocol import InferRequest
from sponge_env.serve.wire.regions import Regions
from sponge_env.serve.wire.resources import LARGE_BYTES, READER, run_in_thread

Context = grpc.aio.ServicerContext[Any, Any]
Handle = Callable[[bytes, Headers, float, float | None], Awaitable[Any]]
"""Makes the message that answers one: from its bytes, the headers, the beginning of its call on
the monotonic clock, and the time left until the call's deadline, None if it has none."""

PUSHBACK = "grpc-retry-pushback-ms"  # Metadata from which gRPC's clients learn when to try again
COPIES = 2  # Of a message in memory: as it came, and what was read from it
PARSED_COPIES = 32  # Of what is parsed number by number: a byte may become a number in a list
OPEN_METHODS = ("ServerLive", "ServerReady")  # Methods that need no token
LOCAL_METHODS = ("Load", "Unload", "Register", "Unregister", "MemoryStatus")
"""Ends of the methods that without a token are only for this machine."""
HEAD_BYTES = 2**16  # Of a message beside its tensor
SLOW_S = 3.0  # A message that takes longer gives way to one that waits for a place
STREAM_REQUESTS = 64  # Requests of one stream at a time


async def start_rpc(front: Front) -> tuple[grpc.aio.Server, int] | None:
    """Return a server that listens and its port, None without gRPC; ConfigError if it is in use."""
    options = front.options
    if options.grpc_port is None:
        return None
    channel = [
        ("grpc.so_reuseport", 0),  # or another server could take half of the requests
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.max_receive_message_length", options.max_body_bytes + HEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),  # or it buffers more than 64 KB of unread messages
        ("grpc.max_send_message_length", -1),
        ("grpc.absolute_max_metadata_size", options.max_header_bytes),
        ("grpc.max_connection_idle_ms", round(options.idle_timeout_s * 1000)),
    ]
    numbers = [(name, min(value, 2**31 - 1)) for name, value in channel]  # gRPC's largest
    server = grpc.aio.server(options=numbers, maximum_concurrent_rpcs=options.max_connections)
    server.add_generic_rpc_handlers((RpcFront(front).handler(),))
    # tried before, because gRPC writes lines of its own about a port in use
    listening_socket(options.host, options.grpc_port).close()
    address = str(Address(options.host, options.grpc_port))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None
    await server.start()
    return server, port


class RpcFront:
    """Answers calls; messages are parsed here, so that a damaged one is the client's error."""

    def __init__(self, front: Front) -> None:
        self._front = front
        # gRPC tells nothing of a message before it is complete, so each may become the largest
        count = front.options.max_held_bytes // (COPIES * front.options.max_body_bytes)
        self._reading, self._streams = (Places(max(1, count)) for _ in range(2))

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server passes calls to."""
        engine = self._front.engine
        described: dict[str, Callable[[Front, Any], Any]] = {
            "ServerLive": lambda *_: {"live": engine.alive},
            "ServerReady": lambda *_: {"ready": engine.ready},
            "ModelReady": lambda front, _: {"ready": front.ready},
            "ServerMetadata": lambda front, _: front.server_metadata(),
            "ModelMetadata": lambda front, _: front.model_metadata(),
            "ModelConfig": lambda front, _: {"config": front.model_config()},
            "ModelStatistics": lambda front, request: front.statistics(not request.name),
            "RepositoryIndex": lambda front, request: {"models": front.index(request.ready)},
            "RepositoryModelLoad": partial(_set_loaded, True),
            "RepositoryModelUnload": partial(_set_loaded, False),
        }
        if self._front.regions is not None:
            described |= _sharing(self._front.regions)
        works = {name: self._describing(name, make) for name, make in described.items()}
        works["ModelInfer"] = self._infer
        handlers: dict[str, Any] = {name: self._unary(work, name) for name, work in works.items()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(codec.SERVICE, handlers)

    def _unary(self, work: Handle, name: str) -> Any:
        """Return a handler around what returns the message that answers one."""
        # It reads the message itself: to know when it began, to end the call of a client that is
        # too slow (gRPC would wait for ever), and to read nothing without the token.

        async def handle(_: object, context: Context) -> bytes:
            began_s, headers = time.monotonic(), headers_of(context)
            trace = tuple((k.decode(), v.decode()) for k, v in join_trace(headers))
            try:
                if is_read := name not in OPEN_METHODS:
                    self._front.check_token(headers)
                if name.endswith(LOCAL_METHODS) and self._front.options.token is None:
                    check_from_here(context.peer(), headers)
                timeout_s = self._front.options.body_timeout_s
                # what a check of health says, nothing, need not be waited for
                data = await receive(context, timeout_s, self._reading) if is_read else b""
                if data is None:
                    raise WireError("the call has no message")
                with self._front.memory.holding(COPIES * len(data)):
                    response = await work(data, headers, began_s, context.time_remaining())
            except WireError as error:
                await self._abort(context, error, trace)
            if trace:  # not sooner: a call whose answer has begun is not tried again
                await context.send_initial_metadata(trace)
            return bytes(response.SerializeToString())

        return grpc.stream_unary_rpc_method_handler(handle)

    def _describing(self, name: str, make: Callable[[Front, Any], Any]) -> Handle:
        async def work(data: bytes, *_: object) -> Any:
            request = await run_in_thread(len(data), codec.parse, f"{name}Request", data)
            front = self._front
            # for statistics no name is all models
            if name.startswith("Model") and (request.name or name != "ModelStatistics"):
                front = front.of(request.name, request.version, loaded=name != "ModelReady")
            return ParseDict(make(front, request), MESSAGES[f"{name}Response"]())

        return work

    async def _infer(
        self, data: bytes, headers: Headers, began_s: float, remaining_s: float | None = None
    ) -> Any:
        arrival = self._front.arrival(began_s, remaining_s)
        size = codec.parsed_bytes(data)
        with self._front.memory.holding(PARSED_COPIES * size if size >= LARGE_BYTES else 0):
            work = size if self._front.regions is None else LARGE_BYTES  # a region may hold much
            read = self._parse_request, data, headers
            front, request = await run_in_thread(work, *read, threads=READER)
        arrival = replace(arrival, default_slo_s=front.served.default_slo_s)
        read_s = time.monotonic() - arrival.arrived_s
        tensors, parameters = await front.infer(request, headers, arrival, len(data))
        began_s = time.monotonic()
        response = codec.write_message(request, front.served.name, tensors, parameters)
        front.metrics.converted(read_s, time.monotonic() - began_s)
        return response

    def _parse_request(self, data: bytes, headers: Headers) -> tuple[Front, InferRequest]:
        message = codec.parse("ModelInferRequest", data)
        front = self._front.of(message.model_name, message.model_version)
        options, regions = front.options, front.regions_for(headers)
        return front, codec.read_message(message, front.served, options.max_rows, regions)

    async def _stream(self, _: object, context: Context) -> None:
        """Answer a stream, whose deadline is not that of a request."""
        try:
            self._front.check_token(headers_of(context))
            if self._streams.locked():
                raise WireError("too many streams at a time", 503)
            async with self._streams:
                await self._answer_stream(context)
        except WireError as error:
            await self._abort(context, error)

    async def _answer_stream(self, context: Context) -> None:
        """Answer the requests of a stream in their order, several at a time, or a WireError."""
        # That is if the client neither sends nor reads for long.
        headers, timeout_s = headers_of(context), self._front.options.idle_timeout_s
        places = asyncio.Semaphore(STREAM_REQUESTS)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()

        async def read() -> None:
            try:
                while True:
                    await places.acquire()
                    if (data := await receive(context, timeout_s)) is None:
                        return
                    answers.put_nowait(asyncio.create_task(self._stream_answer(data, headers)))
            finally:
                answers.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                message = await answer
                try:
                    async with asyncio.timeout(timeout_s):
                        await context.write(message)
                except TimeoutError:
                    raise WireError("the answers are not read", 408) from None
                places.release()
            await reading
        finally:
            reading.cancel()
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()

    async def _stream_answer(self, data: bytes, headers: Headers) -> bytes:
        join_trace(own := dict(headers))
        try:
            with self._front.memory.holding(COPIES * len(data)):
                values = {"infer_response": await self._infer(data, own, time.monotonic())}
        except WireError as error:
            self._front.count_rejected(error)
            values = {"error_message": error.sentence}
        return bytes(MESSAGES["ModelStreamInferResponse"](**values).SerializeToString())

    async def _abort(
        self, context: Context, error: WireError, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        self._front.count_rejected(error)
        if error.retry_after_s > 0:
            metadata += ((PUSHBACK, str(max(1, round(error.retry_after_s * 1000)))),)
        await context.abort(grpc.StatusCode[grpc_code(error)], error.sentence, metadata)


def _set_loaded(loaded: bool, front: Front, asked: Any) -> dict[str, Any]:
    return front.set_loaded(asked.model_name, loaded, asked.parameters)


def _sharing(regions: Regions) -> dict[str, Callable[[Front, Any], Any]]:
    """Return what lists, registers and forgets shared memory; that of a GPU can only be none."""
    return {
        "SystemSharedMemoryStatus": lambda _, request: {
            "regions": {each["name"]: each for each in regions.status(request.name)}
        },
        "SystemSharedMemoryRegister": lambda _, request: regions.register(
            request.name, request.key, request.offset, request.byte_size
        ),
        "SystemSharedMemoryUnregister": lambda _, request: regions.unregister(request.name),
        "CudaSharedMemoryStatus": lambda *_: {},
        "CudaSharedMemoryUnregister": lambda *_: {},
    }


class Places(asyncio.Semaphore):
    """Places to read messages; for each call that waits, a slow reader leaves its place."""

    waiting = leaving = 0

    async def acquire(self) -> Literal[True]:
        """Wait for a place."""
        self.waiting += 1
        try:
            await super().acquire()
            self.leaving -= self.leaving > 0
        finally:
            self.waiting, self.leaving = self.waiting - 1, min(self.leaving, self.waiting - 1)
        return True


async def receive(context: Context, timeout_s: float, turn: Places | None = None) -> bytes | None:
    """Return a call's next message, None after the last; taking too long is a WireError."""
    timer: asyncio.TimerHandle
    leaves = False

    def check() -> None:
        nonlocal timer, leaves
        timer = loop.call_later(SLOW_S, check)
        if turn is not None and not leaves and turn.waiting > turn.leaving:
            turn.leaving += (leaves := True)
            until.reschedule(loop.time())

    # gRPC buffers at most 64 KB of it before its turn.
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s) as until, turn or nullcontext():
            timer = loop.call_later(SLOW_S, check)
            try:
                data = await context.read()
            finally:
                timer.cancel()
    except TimeoutError:
        raise WireError("the message did not arrive in time", 408) from None
    return data if isinstance(data, bytes) else None


def check_from_here(peer: str, headers: Headers) -> None:
    """Raise a WireError unless a peer, such as ``ipv4:127.0.0.1:50000``, is this machine."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    if not (is_local(host) and PROXY_HEADERS.isdisjoint(headers)):
        raise WireError("without a token, this is only for clients on this machine", 403)


def headers_of(context: Context) -> dict[bytes, bytes]:
    """Return a call's metadata in the form of HTTP's headers."""
    pairs = context.invocation_metadata() or ()
    texts = ((key, value.encode() if isinstance(value, str) else value) for key, value in pairs)
    return {key.lower().encode(): value for key, value in texts}
