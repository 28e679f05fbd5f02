"""A server with a fake engine, in a thread of this process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from fake_engine import FakeEngine, served

from sponge_env.serve.app import Stop, run_servers
from sponge_env.serve.interface import Call, Reply, Resource
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.options import ServeOptions


@dataclass
class Recorded:
    """Metrics that keep everything."""

    ended: list[tuple[Call, Reply, bool]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rejections: Counter[int] = field(default_factory=Counter)

    def observe(self, call: Call, reply: Reply, counted: bool = False) -> None:
        self.ended.append((call, reply, counted))

    def rejected(self, status: int) -> None:
        self.rejections[status] += 1

    def converted(self, input_s: float, output_s: float) -> None:
        assert input_s >= 0
        assert output_s >= 0
        self.counts["converted"] += 1

    def clamped(self) -> None:
        self.counts["clamped"] += 1

    def statistics(self) -> Mapping[str, Any]:
        return ServerMetrics(served()).statistics()


@dataclass
class Running:
    engine: FakeEngine
    recorder: Recorded
    options: ServeOptions
    stop: Stop
    thread: threading.Thread

    @property
    def http(self) -> str:
        return f"{self.options.host}:{self.options.port}"

    @property
    def grpc(self) -> str:
        return f"{self.options.host}:{self.options.grpc_port}"


@contextmanager
def running(engine: FakeEngine | None = None, **changes: Any) -> Iterator[Running]:
    """Serve within the context; an error of the server is raised when it ends."""
    engine, recorder = engine or FakeEngine(), Recorded()
    options = ServeOptions(**{"port": 0, "grpc_port": 0, "drain_s": 5.0, **changes})
    resources = {"/metrics": Resource("text/plain", lambda query: f"asked {query}".encode())}
    started: Future[tuple[ServeOptions, Stop]] = Future()
    ended: Future[None] = Future()

    def listening(at: ServeOptions, stop: Stop) -> None:
        started.set_result((at, stop))

    def run() -> None:
        try:
            uvloop.run(run_servers(engine, options, recorder, resources, listening))
            ended.set_result(None)
        except BaseException as error:
            for future in (started, ended):
                if not future.done():
                    future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    listens, stop = started.result(30)
    try:
        yield Running(engine, recorder, listens, stop, thread)
    finally:
        stop()
        ended.result(30)
