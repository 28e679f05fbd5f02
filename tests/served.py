"""A server with a fake engine, in a thread of this process."""

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import uvloop
from fake_engine import FakeEngine, served

from sponge_env.serve.app import Stop, run_servers
from sponge_env.serve.interface import Resource
from sponge_env.serve.monitor.metrics import ServerMetrics
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.codec import MESSAGES, SERVICE


class Recorded(ServerMetrics):
    """Metrics that keep each call that has ended."""

    def __init__(self, *models):
        first, *others = models or [served()]
        super().__init__(first)
        self.ended, self.others = [], list(map(Recorded, others))

    def observe(self, call, reply, counted=False, trace=""):
        self.ended.append((call, reply, counted))
        super().observe(call, reply, counted, trace)


@dataclass
class Running:
    engine: FakeEngine
    recorder: Recorded
    options: ServeOptions
    stop: Stop
    thread: threading.Thread

    @property
    def http(self):
        return f"{self.options.host}:{self.options.port}"

    @property
    def grpc(self):
        return f"{self.options.host}:{self.options.grpc_port}"

    def told(self, method, **said):
        import grpc  # only now: the server's package says what it may log

        data = MESSAGES[f"{method}Request"](**said).SerializeToString()
        with grpc.insecure_channel(self.grpc) as channel:
            answer = channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)
        return MESSAGES[f"{method}Response"].FromString(answer)


@contextmanager
def running(engine=None, **changes):
    """Serve within the context; an error of the server is raised when it ends."""
    engine = engine or FakeEngine()
    recorder = Recorded(*engine.models.values())
    options = ServeOptions(**{"port": 0, "grpc_port": 0, "drain_s": 5.0, **changes})
    resources = {"/metrics": Resource(lambda query, _: ("text/plain", f"asked {query}".encode()))}
    started, ended = Future(), Future()

    def listening(at, stop):
        started.set_result((at, stop))

    def run():
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
