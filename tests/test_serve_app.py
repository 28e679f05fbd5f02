"""What a server is made of, its command line, and how servers begin and end."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, answered
from raw_http import Wire, infer, request
from scenarios import CHAIN
from served import running

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.scenario.scenario import load_scenario, scenario_of, served_name
from sponge_env.serve import __main__ as command
from sponge_env.serve import options
from sponge_env.serve.make import check_stage_inputs, controllers
from sponge_env.serve.options import ServeOptions

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
sys.exit(cli.command(main)())
"""


@contextmanager
def process(*ports, host="127.0.0.1", drain_s="5"):
    path = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [sys.executable, "-c", PROGRAM, *(ports or ("0", "0")), host, drain_s]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=path, **pipes, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def http_port(server):
    line = server.stdout.readline()
    return int(re.match(r"serving at http://[\d.]+:(\d+) and grpc://[\d.]+:\d+\n", line)[1])


def send(port, data):
    client = socket.create_connection(("127.0.0.1", port), 10)
    client.sendall(data)
    return client


def answer(port, data):
    with send(port, data) as client:
        return client.recv(1000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number):
    with process() as server:
        with send(http_port(server), infer()) as client:
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            server.send_signal(number)
            assert server.communicate(timeout=20) == ("ended 1", "")
        assert server.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number):
    with process(drain_s="600") as server:
        port, ready = http_port(server), request(method="GET", path="/v2/health/ready")
        with send(port, infer([[7, 0, 0, 0]])):
            answer(port, infer())  # the first is in the engine by now
            server.send_signal(number)
            while b"200 OK" in answer(port, ready):
                pass
            server.send_signal(number)
            assert server.wait(20) == -number


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for ports in ((port, "0"), ("0", port)):
            with process(*ports) as server:
                output, error = server.communicate(timeout=20)
            assert output == ""
            assert error.startswith(f"error: cannot listen on port {port} of 127.0.0.1: ")
            assert (error.count("\n"), server.returncode) == (1, 2)


def test_an_open_host_is_warned_about_and_a_hanging_agent_does_not_hold_up_the_end():
    local = {"content_type": "application/json", "host": "127.0.0.1"}
    with process(host="0.0.0.0") as server:
        port = http_port(server)
        assert server.stderr.readline().startswith("warning: all who reach 0.0.0.0")
        with send(port, request(b'{"agent": "hangs"}', path="/agent", **local)):
            assert server.stderr.readline() == "hangs\n"
            server.terminate()
            assert server.wait(20) == 0


def test_calls_are_answered_while_it_ends():
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, Wire(server) as wire, Wire(server) as other:
        wire.send(infer())
        engine.wait_until(lambda engine: len(engine.held) == 1)
        server.stop()
        engine.wait_until(lambda engine: engine.drained == 1)
        ready = other.send(request(method="GET", path="/v2/health/ready")).answer()
        assert (ready.status, ready.json) == (400, {"ready": False})
        with Wire(server) as third:
            index = third.send(request(path="/v2/repository/index")).answer()
        assert index.json[0]["state"] == "UNAVAILABLE"
        engine.finish(answered(np.zeros((1, 2), np.float32)))
        last = wire.answer()
        assert last.status == 200
        assert {each.headers["connection"] for each in (ready, index, last)} == {"close"}
        server.thread.join(20)
        assert not server.thread.is_alive()


@pytest.mark.parametrize(
    ("option", "value"),
    [("port", 65536), ("grpc_port", -1), ("max_rows", 0), ("body_timeout_s", float("nan")),
     ("drain_s", -1.0), ("token", ""), ("token", "a\nb")],
)  # fmt: skip
def test_options_are_checked(option, value):
    with pytest.raises(ConfigError, match=option):
        ServeOptions(**{option: value})


def test_a_server_whose_engine_has_stopped_is_not_alive_and_ends():
    health = request(method="GET", path="/v2/health/live")
    with running() as server, Wire(server) as wire:
        for alive, status in ((True, 200), (False, 400)):
            server.engine.alive = alive
            answer = wire.send(health).answer()
            assert (answer.status, answer.json) == (status, {"live": alive})
            assert server.told("ServerLive").live is alive
        server.engine.end()
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_model_takes_the_place_of_a_scenarios_own():
    for model in ("efficientnet-lite1", "some/file.onnx"):
        made = scenario_of(model)
        assert (made.name, made.profile, made.stages) == ("local", f"local:{model}", ())
        assert made.limits == load_scenario("local").limits
    assert (scenario_of("efficientnet-lite0").profile, scenario_of("ocr").name) == ("local", "ocr")
    assert scenario_of("", "variants-local").name == "variants-local"
    assert scenario_of("efficientnet-lite1", "flash-crowd-local").name == "flash-crowd-local"
    for model, scenario in (("efficientnet-lite0", "ocr"), ("", "nowhere")):
        with pytest.raises(ConfigError):
            scenario_of(model, scenario)


def test_stages_have_to_hand_on_what_they_answer():
    check_stage_inputs(load_scenario("ocr"), [12, 0])
    check_stage_inputs(load_scenario("local"), [0])
    with pytest.raises(ConfigError, match="'name' are not the inputs of the next"):
        check_stage_inputs(CHAIN, [12, 0, 0])


def test_later_controllers_are_registered_ones():
    """What a client may ask for imports no code from elsewhere."""
    make = controllers("static", {"static": {"cores": 3}, "sponge-ip": {"variant": "chosen"}})
    assert type(make("static")).__name__ == "Static"
    assert type(make("sponge-ip")).__name__ == "SpongeIP"
    for name in ("os:system", "sb3:model.zip", "nobody"):
        with pytest.raises(ConfigError, match="unknown agent"):
            make(name)
    own = controllers("test_serve_engine:Fixed", {})
    assert type(own("test_serve_engine:Fixed")).__name__ == "Fixed"
    for name in ("oracle", "fixed-fleet"):
        with pytest.raises(ConfigError, match=f"^{name} is made for requests that are known"):
            controllers(name, {})


@pytest.mark.parametrize(
    "arguments",
    ["--agent static --port 70000", "--agent static --grpc-port x", "--agent static --slo-ms 0",
     "--agent static --queue 0", "--agent static --limiter hope",
     "--agent static --replicas 127.0.0.1:7700 --limiter cgroup"],
)  # fmt: skip
def test_a_mistyped_option_is_one_sentence(arguments, refused):
    name = arguments.split()[-2].strip("-")
    assert name.replace("-", "_") in refused(command.main, arguments).replace("-", "_")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [("--agent nope", "unknown agent 'nope'"), ("--agent oracle", "cannot serve"),
     ("--host 999.1.1.1", "cannot listen on port 8000 of 999.1.1.1"),
     ("--host a..b", "cannot listen on port 8000 of a..b"), ("--queue 9999999", "--queue must be"),
     ("--port 8001", "--grpc-port must be another than --port"), ("--slo-ms inf", "above 0")],
)  # fmt: skip
def test_it_is_refused_before_anything_is_measured(arguments, reason, refused, monkeypatch):
    monkeypatch.setattr("sponge_env.env.factory.prepare_machine", None)
    assert reason in refused(command.main, arguments)


def test_a_server_is_named_after_its_model():
    assert served_name("efficientnet-lite0", None) == "efficientnet-lite0"
    assert served_name("/a folder/my model.onnx", None) == "my-model"
    assert served_name("", "a/own.toml") == "own"
    assert served_name("module:Class", None) == "module-Class"


def test_a_server_that_could_not_go_on_says_why(capsys):
    assert (command.outcome(None), command.outcome(WorkerError("no replica starts"))) == (0, 1)
    assert capsys.readouterr().err == "error: no replica starts\n"


def test_options_are_those_of_the_agent(tmp_path):
    parse = command._parser().parse_args
    given = parse(["--agent", "ppo", "--policy", "p.safetensors", "--option", "ppo.x=1"])
    assert command._agent_options(given) == {"ppo": {"policy": "p.safetensors", "x": 1}}
    given = parse(["--agent", "ppo", "--grpc-port", "none", "--option", "server.max_rows=7"])
    options = command._server_options(given)
    assert (options.host, options.port, options.grpc_port) == ("127.0.0.1", 8000, None)
    assert (options.max_rows, command._agent_options(given)) == (7, {})
    with pytest.raises(ConfigError, match="put the token into SPONGE_TOKEN"):
        command._server_options(parse(["--agent", "ppo", "--option", "server.token=x"]))


def test_files_are_allowed_for_all_connections_or_it_is_said(monkeypatch):
    limits = []
    monkeypatch.setattr(options, "setrlimit", lambda _, both: limits.append(both))
    for both in ((1024, 4096), (4096, 4096), (resource.RLIM_INFINITY,) * 2):
        monkeypatch.setattr(options, "getrlimit", lambda _, both=both: both)
        options.allow_files(ServeOptions())
    assert limits == [(options.OWN_FILES + 1024, 4096)]
    monkeypatch.setattr(options, "getrlimit", lambda _: (128, 1024))
    with pytest.raises(ConfigError, match=r"512 needs 1280 open files, and 1024 are allowed"):
        options.allow_files(ServeOptions())
