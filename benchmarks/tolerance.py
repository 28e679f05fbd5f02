"""Sends requests that are nearly right, and says what a server makes of them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Sequence

import grpc
import grpc.aio

from benchmarks.fuzzed import Fuzzer, is_whole, may_be_followed
from benchmarks.lean import HEAD_END, fields
from benchmarks.servers import Server
from sponge_env.serve.rpc.codec import SERVICE

AT_A_TIME = 16
PATIENCE_S = 0.05
"""For something to come back from a request that may have no end."""
ANSWER_S = 20.0
"""For the rest of an answer that has begun, or the answer to a request that is whole."""
AFTER_S = 0.01
"""For what comes back though nothing more was asked."""
OVER_GRPC, PIPELINED = 0.1, 0.3
"""Shares of what is sent."""

TWICE = "answered twice"
FINE = {
    *("closed", "reset", "waits for more"),  # only of what is not whole
    *(f"gRPC {code}" for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")),
    "gRPC DEADLINE_EXCEEDED",
}


class BrokenError(Exception):
    """An answer has begun and does not end, or is none."""


def wrong(outcomes: Counter[str]) -> Counter[str]:
    """Return what must not become of a request: no answer, two, or an error of the server's."""
    return Counter({kind: n for kind, n in outcomes.items() if not _is_fine(kind)})


def _is_fine(kind: str) -> bool:
    if kind.isdigit():
        return int(kind) < 500 or kind in ("503", "504")
    return kind in FINE


async def send_all(server: Server, fuzzer: Fuzzer, count: int) -> Counter[str]:
    """Send at least so many, a few at a time; return how often what came back of them."""
    outcomes: Counter[str] = Counter()
    address = f"127.0.0.1:{server.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:

        async def some() -> None:
            while outcomes.total() < count:
                if fuzzer.coin(OVER_GRPC):
                    outcomes[await call(channel, fuzzer.message())] += 1
                else:
                    several = fuzzer.several()
                    outcomes.update(await converse(server, several, fuzzer.coin(PIPELINED)))

        await asyncio.gather(*(some() for _ in range(AT_A_TIME)))
    return outcomes


async def call(channel: grpc.aio.Channel, message: bytes) -> str:
    """Send a message over gRPC; return the code of its end."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(message)
    except TimeoutError:
        return "gRPC unanswered"
    except grpc.aio.AioRpcError as error:
        return f"gRPC {error.code().name}"
    return "gRPC OK"


async def send(server: Server, request: bytes) -> str:
    """Send a request on a connection of its own; return what came back."""
    (outcome,) = await converse(server, [request])
    return outcome


async def converse(server: Server, requests: Sequence[bytes], pipelined: bool = False) -> list[str]:
    """Send requests on one connection; return the status of each, or why there is none.

    Those that are ``pipelined`` do not wait for the answers to those before. What follows an answer
    that says that the connection is closed was not asked.
    """
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    except OSError:
        return ["no connection"]
    connection = writer.get_extra_info("socket")
    # gone at once, or a hundred thousand would wait for their last packets
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    outcomes, goes_on = list[str](), True
    try:
        if pipelined:
            writer.writelines(requests)
        for request in requests:
            if not pipelined:
                writer.write(request)
            outcome, goes_on = await _answer(reader, request)
            outcomes.append(outcome)
            if not goes_on:
                break
        if goes_on and may_be_followed(requests[-1]) and await _more(reader):
            outcomes[-1] = TWICE
    finally:
        writer.transport.abort()
    return outcomes


async def _answer(reader: asyncio.StreamReader, request: bytes) -> tuple[str, bool]:
    """Read an answer; return its status, or why there is none, and whether the connection lives."""
    whole = is_whole(request)
    try:
        patience_s = PATIENCE_S + whole * ANSWER_S
        status, goes_on = await _final(reader, patience_s, request.startswith(b"HEAD "))
    except BrokenError as error:
        return f"broken answer: {error}", False
    except TimeoutError:
        why = "waits for more"
    except ConnectionResetError:
        why = "reset"
    except EOFError:
        why = "closed"
    else:
        return str(status), goes_on
    return f"unanswered: {why}" if whole else why, False


async def _final(reader: asyncio.StreamReader, patience_s: float, bare: bool) -> tuple[int, bool]:
    """Return status and whether the connection lives; what says only that one may go on is read."""
    while True:
        async with asyncio.timeout(patience_s):
            first = await reader.readexactly(1)
        status, goes_on = await _read(reader, first, bare)
        if status >= 200:
            return status, goes_on


async def _read(reader: asyncio.StreamReader, first: bytes, bare: bool) -> tuple[int, bool]:
    """Read the rest of an answer, which has no body if it is ``bare``."""
    try:
        async with asyncio.timeout(ANSWER_S):
            head = first + await reader.readuntil(HEAD_END)
            status, headers = fields(head.removesuffix(HEAD_END))
            if not bare and status >= 200:
                await reader.readexactly(int(headers.get("content-length", 0)))
    except (OSError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise BrokenError(type(error).__name__) from error
    return status, headers.get("connection", "").lower() != "close"


async def _more(reader: asyncio.StreamReader) -> bool:
    """Return whether something comes that nobody asked for."""
    try:
        async with asyncio.timeout(AFTER_S):
            return bool(await reader.read(1))
    except (TimeoutError, ConnectionError):
        return False
