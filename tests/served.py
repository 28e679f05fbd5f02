"""A server with a fake engine, in a thread of this process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from fake_engine import FakeEngine

from sponge_env.serve.app import Listening, Stop, run_servers
from sponge_env.serve.interface import Call, Reply, Resource
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
        nothing = {"count": 0, "ns": 0}
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        names += ("cache_hit", "cache_miss")
        return {
            "name": "tiny", "version": "1", "last_inference": 0, "inference_count": 0,
            "execution_count": 0, "inference_stats": dict.fromkeys(names, nothing),
            "batch_stats": [],
        }  # fmt: skip


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
    ready, found, failed = threading.Event(), [], []

    def listening(at: Listening, stop: Stop) -> None:
        found.append((at.options, stop))
        ready.set()

    def run() -> None:
        try:
            uvloop.run(run_servers(engine, options, recorder, resources, listening))
        except BaseException as error:
            failed.append(error)
        ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(30)
    if failed:
        raise failed[0]
    listens, stop = found[0]
    try:
        yield Running(engine, recorder, listens, stop, thread)
    finally:
        stop()
        thread.join(30)
        assert not thread.is_alive()
    if failed:
        raise failed[0]
