"""The servers: HTTP and gRPC in one loop, from the first request to the last answer."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import uvloop

from sponge_env.serve.http.connection import Connection, Shared
from sponge_env.serve.http.routes import HttpFront
from sponge_env.serve.interface import Engine, Snapshot
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.service import RpcServer, start_rpc
from sponge_env.serve.sockets import authority, listening_socket
from sponge_env.serve.wire.extras import Extras
from sponge_env.serve.wire.front import Front

ENDING = (signal.SIGINT, signal.SIGTERM)
CLOSING_S = 2.0
"""How long connections may take to close once all is answered."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server can be reached, with the ports that were found free."""

    options: ServeOptions

    def __str__(self) -> str:
        """Say it in one line."""
        options = self.options
        said = f"serving at http://{authority(options.host, options.port)}"
        if options.grpc_port is None:
            return said
        return f"{said} and grpc://{authority(options.host, options.grpc_port)}"


class Stop:
    """Asks servers to end, from any thread: at first after all answers, then at once."""

    def __init__(self) -> None:
        """Make it within the loop of the servers."""
        self._loop = asyncio.get_running_loop()
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()

    def __call__(self) -> None:
        """Ask once more."""
        self._do(lambda: (self.at_once if self.asked.is_set() else self.asked).set())

    def follow(self, snapshot: Snapshot) -> None:
        """Ask, if the engine takes no more calls."""
        if not snapshot.ready:
            self._do(self.asked.set)

    def _do(self, ask: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # they have ended
            self._loop.call_soon_threadsafe(ask)


def serve(engine: Engine, options: ServeOptions, extras: Extras) -> None:
    """Serve until a signal ends it; what cannot be listened on is a ``ConfigError``."""
    uvloop.run(run_servers(engine, options, extras))


async def run_servers(
    engine: Engine,
    options: ServeOptions,
    extras: Extras,
    listening: Callable[[Listening, Stop], None] | None = None,
) -> None:
    """Serve an engine until it stops, at SIGINT or SIGTERM, or when it is asked to.

    ``listening`` is called once clients are served, with what asks; without it, a line on stdout
    says where. To end, the engine is drained (it is not ready from then on), all answers go out,
    and the servers stop. Asked a second time, they stop at once. A port in use is a
    ``ConfigError``.
    """
    stop = Stop()
    listener = listening_socket(options.host, options.port)
    with _signals(stop), listener:
        front = Front(engine, options, extras.recorder)
        rpc = await start_rpc(front)
        shared = Shared(
            options, front.memory, front.recorder.rejected, HttpFront(front, extras).answer
        )
        loop = asyncio.get_running_loop()
        http = await loop.create_server(lambda: Connection(shared), sock=listener)
        ports = {"port": listener.getsockname()[1], "grpc_port": rpc.port if rpc else None}
        (listening or _say)(Listening(replace(options, **ports)), stop)
        engine.follow(stop.follow)
        stop.follow(engine.snapshot())  # which may have been the last
        await stop.asked.wait()
        await _drain(engine, options.drain_s, stop)
        await _close(http, shared, rpc, stop)


def _say(listening: Listening, stop: Stop) -> None:
    if not listening.options.local:
        secret = "with the token" if listening.options.token else "without a token"
        host = listening.options.host
        sys.stderr.write(f"warning: whoever reaches {host} may use this server, {secret}\n")
    sys.stdout.write(f"{listening}\n")
    sys.stdout.flush()


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Have signals stop the servers, where they are in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)


async def _drain(engine: Engine, drain_s: float, stop: Stop) -> None:
    """Have the engine answer what it has, unless it has to be quick.

    In threads of its own: the loop's may all be busy with what clients have sent.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2, "sponge-drain") as threads:
        drained = loop.run_in_executor(threads, engine.drain, drain_s)
        hurry = asyncio.create_task(stop.at_once.wait())
        await asyncio.wait((drained, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drained.done():
            await loop.run_in_executor(threads, engine.drain, 0.0)
            await drained


async def _close(http: asyncio.Server, shared: Shared, rpc: RpcServer | None, stop: Stop) -> None:
    """Take nothing more, and give what is under way a moment to end."""
    grace_s = 0.0 if stop.at_once.is_set() else CLOSING_S
    http.close()
    for connection in list(shared.connections):
        connection.finish()
    if rpc is not None:
        await rpc.stop(grace_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await shared.all_closed.wait()
    for connection in list(shared.connections):
        connection.abort()
