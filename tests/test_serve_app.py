"""How the servers begin and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine, answered
from raw_http import Wire, infer, request
from served import running

from sponge_env.errors import ConfigError
from sponge_env.serve.interface import Status
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.codec import MESSAGES, SERVICE

TESTS = Path(__file__).parent
PROGRAM = """
import sys
import threading
from fake_engine import FakeEngine, sums
from served import Recorded
from sponge_env import cli
from sponge_env.serve.app import serve
from sponge_env.serve.options import ServeOptions

class Engine(FakeEngine):
    def use(self, agent):
        print(agent, file=sys.stderr, flush=True)
        threading.Event().wait()

def main(arguments):
    engine = Engine(answer=lambda call: None if call.tensor[0] == 7 else sums(call))
    port, grpc_port, host, drain_s = arguments
    options = ServeOptions(host, int(port), int(grpc_port), drain_s=float(drain_s))
    serve(engine, options, Recorded(), {})
    sys.stdout.write(f"ended {engine.drained}")
    return 0

sys.exit(cli.run_script(main, None))
"""


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    path = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=path, **pipes) as found:  # type: ignore[call-overload]
        try:
            yield found
        finally:
            found.kill()


def http_port(line: str) -> int:
    return int(line.split("http://127.0.0.1:")[1].split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number: int) -> None:
    with process("0", "0", "127.0.0.1", "5") as server:
        assert server.stdout
        line = server.stdout.readline()
        assert line.startswith("serving at http://127.0.0.1:")
        assert " and grpc://127.0.0.1:" in line
        with socket.create_connection(("127.0.0.1", http_port(line)), 10) as client:
            client.sendall(infer())
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        server.send_signal(number)
        assert server.communicate(timeout=20) == ("ended 1", "")
        assert server.returncode == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with process("0", "0", "127.0.0.1", "600") as server:
        assert server.stdout
        port = http_port(server.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(infer([[7, 0, 0, 0]]))
            with socket.create_connection(("127.0.0.1", port), 10) as other:
                other.sendall(infer())  # the first is in the engine by now
                other.recv(1000)
            server.send_signal(signal.SIGTERM)
            while b"200 OK" in _ready(port):
                pass
            server.send_signal(signal.SIGTERM)
            assert client.recv(1000).startswith(b"HTTP/1.1 503")
            assert server.wait(20) == 0


def _ready(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(request(method="GET", path="/v2/health/ready"))
        return client.recv(1000)


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for ports in ((port, "0"), ("0", port)):
            with process(*ports, "127.0.0.1", "5") as server:
                said, error = server.communicate(timeout=20)
            assert said == ""
            assert error.startswith(f"error: cannot listen on port {port} of 127.0.0.1: ")
            assert error.count("\n") == 1
            assert server.returncode == 2


def test_an_open_host_is_warned_about() -> None:
    with process("0", "0", "0.0.0.0", "5") as server:
        assert server.stdout
        assert server.stderr
        server.stdout.readline()
        assert server.stderr.readline().startswith("warning: all who reach 0.0.0.0")
        server.terminate()
        server.wait(20)


def test_calls_are_answered_while_it_ends() -> None:
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, Wire(server) as wire, Wire(server) as other:
        wire.send(infer())
        engine.wait_until(lambda engine: len(engine.held) == 1)
        server.stop()
        engine.wait_until(lambda engine: engine.drained == 1)
        ready = other.send(request(method="GET", path="/v2/health/ready")).answer()
        assert (ready.status, ready.json) == (400, {"ready": False})
        index = other.send(request(path="/v2/repository/index")).answer()
        assert index.json[0]["state"] == "UNAVAILABLE"
        engine.finish(answered(np.zeros(2, np.float32)))
        assert wire.answer().status == 200
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_what_is_not_answered_in_time_is_told_so() -> None:
    engine = FakeEngine(answer=lambda call: None)
    with running(engine, drain_s=0.2) as server, Wire(server) as wire:
        wire.send(infer())
        engine.wait_until(lambda engine: len(engine.held) == 1)
        server.stop()
        found = wire.answer()
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        server.thread.join(20)
    assert [reply.status for _, reply, _ in server.recorder.ended] == [Status.STOPPED]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"port": 65536}, "port must be between 0 and 65535"),
        ({"grpc_port": -1}, "grpc_port must be between 0 and 65535"),
        ({"max_rows": 0}, "max_rows must be above 0"),
        ({"body_timeout_s": float("nan")}, "body_timeout_s must be"),
        ({"drain_s": -1.0}, "drain_s must be a number of at least 0"),
        ({"token": ""}, "printable ASCII"),
        ({"token": "a\nb"}, "printable ASCII"),
    ],
)
def test_options_are_checked(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ServeOptions(**changes)  # type: ignore[arg-type]


def test_an_engine_that_stops_ends_the_server() -> None:
    engine = FakeEngine()
    health = request(method="GET", path="/v2/health/live")
    with running(engine) as server, Wire(server) as wire:
        found = wire.send(health).answer()
        assert (found.status, found.json) == (200, {"live": True})
        engine.end()
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_server_whose_engine_has_stopped_is_not_alive() -> None:
    engine = FakeEngine()
    with running(engine) as server, Wire(server) as wire:
        wire.send(infer()).answer()  # it has looked once
        engine.alive = False
        found = wire.send(request(method="GET", path="/v2/health/live")).answer()
        assert (found.status, found.json) == (400, {"live": False})
        with grpc.insecure_channel(server.grpc) as channel:
            said = channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=20)
        assert MESSAGES["ServerLiveResponse"].FromString(said).live is False


def test_an_agent_that_never_begins_does_not_hold_up_the_end() -> None:
    with process("0", "0", "127.0.0.1", "5") as server:
        assert server.stdout
        port = http_port(server.stdout.readline())
        local = {"content_type": "application/json", "host": "127.0.0.1"}
        asked = request(b'{"agent": "hangs"}', path="/agent", **local)
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(asked)
            assert server.stderr
            assert server.stderr.readline() == "hangs\n"
            server.terminate()
            assert server.wait(20) == 0
