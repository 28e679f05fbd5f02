"""The servers: HTTP and gRPC in one loop, from the first request to the last answer."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import uvloop

from sponge_env.live.remote import Address
from sponge_env.serve.http.connection import Connection, Connections
from sponge_env.serve.http.routes import HttpFront
from sponge_env.serve.interface import Resource, Snapshot
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.options import BACKLOG, ServeOptions, listening_socket
from sponge_env.serve.rpc.service import start_rpc
from sponge_env.serve.wire.front import Front
from sponge_env.serve.wire.resources import run_detached

if TYPE_CHECKING:
    from sponge_env.serve.engine import ServingEngine

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLOSING_S = 2.0  # How long connections may take to close once everything is answered


class Stop:
    """Ends servers, from any thread, after all answers."""

    def __init__(self) -> None:
        """Make it within the loop of the servers."""
        self._loop = asyncio.get_running_loop()
        self.requested = asyncio.Event()

    def __call__(self) -> None:
        """End them."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.requested.set)

    def follow(self, snapshot: Snapshot) -> None:
        """End them if the engine takes no more calls."""
        if not snapshot.ready:
            self()


def serve(
    engine: "ServingEngine", options: ServeOptions, metrics: ServerMetrics,
    resources: Mapping[str, Resource],
) -> None:  # fmt: skip
    """Serve until a signal ends it; an address that cannot be used is a ``ConfigError``."""
    uvloop.run(run_servers(engine, options, metrics, resources))


async def run_servers(
    engine: "ServingEngine", options: ServeOptions, metrics: ServerMetrics,
    resources: Mapping[str, Resource],
    listening: Callable[[ServeOptions, Stop], None] | None = None,
) -> None:  # fmt: skip
    """Serve an engine until it stops, at SIGINT or SIGTERM, or when ``Stop`` is called.

    ``listening`` is called once clients are served, with the ports in use; without it, lines on
    stdout say where. To end, the engine is drained (it is not ready from then on), all answers go
    out, and the servers stop; another signal ends the process. ``ConfigError``: a port is in use.
    """
    stop, loop = Stop(), asyncio.get_running_loop()
    listener = listening_socket(options.host, options.port)
    with _signals(stop), listener, engine.lend(loop):
        front = Front(engine, options, metrics)
        rpc, grpc_port = await start_rpc(front) or (None, None)
        answer = HttpFront(front, resources).answer
        clients = Connections(options, front.memory, answer, metrics.rejected)
        http = await loop.create_server(lambda: Connection(clients), sock=listener, backlog=BACKLOG)
        ports = {"port": listener.getsockname()[1], "grpc_port": grpc_port}
        (listening or _announce)(replace(options, **ports), stop)
        engine.follow(stop.follow)
        stop.follow(engine.snapshot())  # which may have been the last
        await stop.requested.wait()
        clients.ending = True
        # not in the loop's threads, which may all be busy with large requests
        await run_detached(engine.drain, options.drain_s)
        http.close()
        await asyncio.gather(*[clients.close(CLOSING_S), *([rpc.stop(CLOSING_S)] if rpc else [])])
        if front.spans is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(run_detached(front.spans.close), CLOSING_S)


def _announce(options: ServeOptions, stop: Stop) -> None:
    if not options.local:
        how = "with the token" if options.token else "without a token"
        sys.stderr.write(f"warning: all who reach {options.host} may use this server, {how}\n")
    text = f"serving at http://{Address(options.host, options.port)}"
    if options.grpc_port is not None:
        text += f" and grpc://{Address(options.host, options.grpc_port)}"
    sys.stdout.write(f"{text}\nopen it in a browser; Ctrl-C ends the server\n")
    sys.stdout.flush()


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Have signals stop the servers, where they run in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def arrived(number: int) -> None:
        if stop.requested.is_set():  # the second ends the process, whatever it waits for
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            os._exit(128 + number)  # the first process of a container outlives that
        stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, arrived, number)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
