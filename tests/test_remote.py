"""Replicas on other machines: faults, refusals, hostile bytes, and what crosses the wire."""

import dataclasses
import errno
import json
import math
import os
import resource
import select
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import busy_model
import numpy as np
import pytest
from control_groups import groups_of
from machine import PATIENCE_S, wait_until
from nodes import NodeProcess, Proxy
from test_replica_contract import next_event

from sponge_env.app import replica as command
from sponge_env.errors import ConfigError, WorkerError
from sponge_env.live import remote, stages, wire
from sponge_env.live.local import PLACE
from sponge_env.live.protocol import Answered, Death, LiveConfig, Ready
from sponge_env.live.remote import Address, RemoteLauncher, RemoteReplica, dial, parse_addresses
from sponge_env.live.wire import HEAD, Frame, TensorLayout
from sponge_env.models.model import Model, TensorSpec, record
from sponge_env.scenario.profile import load_profile, save_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.serve.interface import Call, Status
from sponge_env.serve.make import make_engine

# Neither limits nor locks CPUs, so that several nodes have room here.
OUTSIDE = ("--model", "busy_model:Quick", "--limiter", "outside")
QUICK = LiveConfig(model="busy_model:Quick")
TOKEN = "a secret"
RATE_RPS, BEFORE_S, AFTER_S = 40, 2, 10


@pytest.fixture(scope="module")
def node():
    node = NodeProcess(*OUTSIDE, token=TOKEN)
    yield node
    node.end()


def quick_scenario(folder):
    profile = dataclasses.replace(load_profile("lite0"), name="quick", model=QUICK.model)
    save_profile(profile, folder / "quick.json")
    scenario = load_scenario("local")
    limits = dataclasses.replace(scenario.limits, replicas=4, cores=8, total_cores=32)
    return dataclasses.replace(scenario, profile=str(folder / "quick.json"), limits=limits)


class TwoNodes:
    """An engine with a replica on each of two nodes, one of which has a fault, and its replies."""

    def __init__(self, scenario, opened, monkeypatch):
        nodes = [NodeProcess(*OUTSIDE) for _ in range(2)]
        for each in nodes:
            opened.callback(each.end)
        self.faulty, self.told = nodes[1].process, []
        self.proxy = opened.enter_context(closing(Proxy(nodes[1].address)))
        opened.callback(self.faulty.send_signal, signal.SIGCONT)
        addresses = [nodes[0].address, self.proxy.address]
        monkeypatch.setattr(PLACE, "open", partial(RemoteLauncher, nodes=addresses, token=""))
        allocation = {"static": {"cores": 4, "batch": 4, "replicas": 2}}
        self.engine = make_engine(scenario, "static", options=allocation)
        opened.enter_context(closing(self.engine))
        worker = self.engine._system.worker
        # not status(), which reads connections that are the serving thread's
        wait_until(lambda: worker._fleets[0].serving == 2)
        assert {replica.where for replica in worker.replicas} == set(map(str, addresses))

    def submit(self):
        now_s = time.monotonic()
        self.told.append([])
        call = Call(np.zeros(2, np.float32), now_s, now_s + 1.0, 8)
        self.engine.submit(call, self.told[-1].append)


@pytest.mark.live
def test_a_node_that_goes_costs_no_request(tmp_path, monkeypatch):
    with ExitStack() as opened:
        own = quick_scenario(tmp_path), opened, monkeypatch
        killed, stopped, cut = systems = [TwoNodes(*own) for _ in range(3)]
        begin_s = time.monotonic()
        for k in range(RATE_RPS * (BEFORE_S + AFTER_S)):
            if k == RATE_RPS * BEFORE_S:
                killed.faulty.send_signal(signal.SIGKILL)
                stopped.faulty.send_signal(signal.SIGSTOP)
                cut.proxy.cut.set()
            threading.Event().wait(begin_s + k / RATE_RPS - time.monotonic())
            for each in systems:
                each.submit()
        for each in systems:
            wait_until(lambda told=each.told: all(told))
            assert {len(replies) for replies in each.told} == {1}
            after = each.told[RATE_RPS * BEFORE_S :]
            statuses = Counter(replies[0].status for replies in after)
            assert statuses[Status.ANSWERED] >= 0.98 * len(after), statuses


@pytest.mark.live
def test_any_model_of_a_pipeline_and_its_failures_cross_the_wire(tmp_path):
    toml = "".join(
        f'[[stages]]\nname = "{name}"\nvariants = [{{ profile = "local:busy_model:{name}" }}]\n'
        for name in ("Cutter", "Quick")
    )
    (tmp_path / "two.toml").write_text(toml)
    node = NodeProcess("--scenario", str(tmp_path / "two.toml"), "--limiter", "outside", "--trust")
    configs = [LiveConfig(model=f"busy_model:{name}") for name in ("Cutter", "Quick")]
    with closing(RemoteLauncher(configs, [node.address], "")) as launcher:
        assert (launcher.limiter, list(launcher.max_tasks)) == ("remote-outside", [3, 0])
        rows = [np.array(row, np.float32) for row in ((2, 1), (-1, 0), (0, 5), (3, 2))]
        for stage, size in ((0, [2, 0, 0, 3]), (1, [2, 2, 2, 2])):
            with closing(launcher.launch(stage, 1.0, stage=stage)) as replica:
                assert isinstance(next_event(replica), Ready)
                replica.start(1, rows)
                assert next_event(replica).failed == {1: "a negative number"}
                answers = replica.answers(4)
                assert list(map(len, answers)) == size
                last = np.outer(range(3), rows[3]) if stage == 0 else rows[3]
                np.testing.assert_array_equal(answers[3], last)
    assert node.end() == 0


class Texts(Model):
    inputs = record(TensorSpec((3,), "int64", "ids"), TensorSpec((), "S8", "text"))
    outputs = record(TensorSpec((2, 2), "float32", "a"), TensorSpec((), "S5", "b"))

    def run(self, session, batch):
        return None


@pytest.mark.parametrize("model", [Texts(), busy_model.Cutter(), busy_model.Quick()])
def test_a_layout_reads_what_it_sends(model):
    job = stages.make_job([model], 4)
    block = np.zeros((), job.tensors_dtype)
    block.reshape(1).view(np.uint8)[:] = np.random.default_rng(0).integers(1, 99, block.nbytes)
    block["counts"] = [2, 0, 3, 9]
    tensors = wire.Tensors(*(block[name] for name in wire.Tensors._fields))
    layout = TensorLayout(job)
    inputs = b"".join(layout.inputs(list(tensors.inputs[:3])))
    assert (inputs, len(inputs)) == (tensors.inputs[:3].tobytes(), 3 * layout.input_bytes)
    for failed in (None, {1: "why"}):
        answers, told = layout.read(memoryview(b"".join(layout.answers(tensors, 4, failed))), 4)
        counts, slots = [2, 0, 3, 3], list(tensors.answers)
        if model.max_tasks:
            slots = [slot[:n] for slot, n in zip(slots, counts, strict=True)]
        assert told == failed
        assert [a.tobytes() for a in answers] == [slot.tobytes() for slot in slots]


@pytest.mark.live
@pytest.mark.parametrize(
    ("token", "changes", "sentence"),
    [("wrong", {}, "it has another token; set SPONGE_REPLICA_TOKEN to the same"),
     (TOKEN, {"model": "busy_model:Busy"}, r"its models is .*busy_model:Quick.*, needed is"),
     (TOKEN, {"core_unit": 0.5, "cores_max": 2}, "its core unit is 0.0625, needed is 0.5"),
     (TOKEN, {"of_a_set": True}, "its of a set is False, needed is True"),
     (TOKEN, {"batch_max": 17}, r"its at most is \[1.0, 16.0\], needed is \[1.0, 17.0\]"),
     (TOKEN, {"version": "9.9"}, "its version is .*, needed is 9.9; start both sides")],
)  # fmt: skip
def test_a_node_that_cannot_be_used_is_refused(node, token, changes, sentence, monkeypatch):
    config = {name: value for name, value in changes.items() if name != "version"}
    monkeypatch.setattr(stages, "__version__", changes.get("version", stages.__version__))
    with pytest.raises(WorkerError, match=f"node {node.address} .*{sentence}"):
        RemoteLauncher([dataclasses.replace(QUICK, **config)], [node.address], token)


def test_an_absent_node_and_bad_addresses_are_sentences(capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address(*free.getsockname())
    with pytest.raises(WorkerError, match=f"node {address} cannot be reached: Connection refused"):
        RemoteLauncher([QUICK], [address], "")
    assert parse_addresses("[::1]:70,b:80") == [Address("::1", 70), Address("b", 80)]
    assert str(parse_addresses("[::1]:70")[0]) == "[::1]:70"
    for text in ("b", "b:", ":80", "b:0", "b:65536", "b:x", "b:1,"):
        with pytest.raises(ConfigError, match="must be local or nodes as HOST:PORT"):
            parse_addresses(text)
    assert command.main(["--host", "0.0.0.0"]) == command.main(["--port", "99999", *OUTSIDE]) == 2
    needs_token, bad_port = capsys.readouterr().err.splitlines()
    assert "put a token into SPONGE_REPLICA_TOKEN" in needs_token
    assert "a port must be 0 to 65535, not 99999" in bad_port


def hostile(node):
    """Yield connections on which something wrong was sent."""
    noise = np.random.default_rng(0).bytes(1 << 20)
    for data in (noise, b"", noise[:10], b"GET / HTTP/1.1\r\n\r\n", bytes(64)):
        sock = socket.create_connection(node.address)
        sock.settimeout(PATIENCE_S)
        yield sock
        with suppress(OSError):
            sock.sendall(data)
    launch = Frame(wire.LAUNCH, cores=1.0)
    for frames in (
        *([Frame(wire.START, 0, 1, 8)], [launch._replace(variant=9)]),
        *([launch._replace(cores=math.nan)], [launch, launch]),
        *([launch, Frame(wire.START, 0, n, size)] for n, size in ((1, 1 << 31), (1 << 15, 8))),
        *([launch, Frame(wire.LIMIT, cores=math.inf)], [launch, Frame(99, length=1 << 31)]),
    ):
        sock, _ = dial(node.address, TOKEN, {})
        yield sock
        sock.sendall(b"".join(HEAD.pack(*frame) for frame in frames))
    sock, _ = dial(node.address, TOKEN, {})
    yield sock
    sock.sendall(HEAD.pack(*launch)[:20])


GOOD, ROWS = Frame(wire.ANSWER, size=2, batch_id=7, cores=1.0), bytes(16)
HOSTILE = [
    *((busy_model.Quick, GOOD._replace(**fields), ROWS) for fields in (
        {"size": 0}, {"batch_id": 8}, {"kind": wire.READY}, {"cores": math.nan}, {"cores": 1e300},
        {"cpu_s": -1.0}, {"took_s": math.inf})),
    *((busy_model.Quick, GOOD, body) for body in (b"", ROWS[1:])),
    *((busy_model.Quick, GOOD, ROWS + text) for text in (b"[1]", b'{"2": ""}', b'{"-1": ""}')),
    pytest.param(busy_model.Quick, GOOD, ROWS + b"[" * 60_000, id="deep"),
    (busy_model.Quick, Frame(wire.STATUS), ROWS), (busy_model.Quick, Frame(wire.FACTS), b""),
    *((busy_model.Cutter, GOOD, np.array(counts, np.int32).tobytes() + 2 * ROWS)
      for counts in ([4, 0], [-1, 1], [1 << 30, 0], [1])),
    (busy_model.Quick, Frame(wire.END), b"gone\nerror: \x1b[31mforged"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "frame", "body"), HOSTILE)
def test_a_node_that_answers_what_it_must_not_ends_only_its_replica(model, frame, body):
    here, there = socket.socketpair()
    with there, closing(RemoteReplica(0, stages.make_job([model()], 4), "there", 1, 1)) as replica:
        replica.attach(here)
        there.sendall(HEAD.pack(*Frame(wire.READY)))
        assert isinstance(next_event(replica), Ready)
        replica.start(7, [np.zeros(2, np.float32)] * 2)
        there.sendall(HEAD.pack(*frame._replace(length=len(body))) + body)
        assert (death := next_event(replica)).reason.isprintable()
        assert isinstance(death, Death)


def test_a_node_answers_once_and_its_flood_holds_nobody_up():
    here, there = socket.socketpair()
    job = stages.make_job([busy_model.Quick()], 4)
    with there, closing(RemoteReplica(0, job, "there", 1.0, 1.0)) as replica:
        replica.attach(here)
        there.sendall(HEAD.pack(*Frame(wire.READY)) + HEAD.pack(*Frame(wire.STATUS)) * 400)
        assert isinstance(next_event(replica), Ready)
        assert replica.poll() is None
        assert len(here.recv(1 << 20, socket.MSG_PEEK)) > HEAD.size * 300, "the rest is for later"
        sent_s, _ = time.monotonic(), replica.start(7, [np.zeros(2, np.float32)] * 2)
        there.sendall(2 * (HEAD.pack(*GOOD._replace(length=16, took_s=9.0)) + ROWS))
        assert isinstance(answer := next_event(replica), Answered)
        assert answer.started_s >= sent_s
        assert isinstance(next_event(replica), Death)


FACTS = {"cpus": 2, "period_s": 0.01, "tick_s": 0.004, "limiter": "outside", "at_most": [2.0]}


@pytest.mark.parametrize("facts", ['{"cpus": 0}', '{"cpus": NaN}', '{"cpus": "many"}',
    '{"limiter": null}', '{"at_most": []}', "null", "{",
    pytest.param("[" * 60_000, id="deep"), '{"limiter": "\\u001b[31mx"}'])  # fmt: skip
def test_impossible_facts_are_a_sentence(facts):
    told = json.dumps(FACTS | json.loads(facts)) if facts.startswith('{"') else facts

    def answer():
        sock, _ = server.accept()
        with sock:
            wire.authenticate(sock, "", wire.NODE, time.monotonic() + PATIENCE_S)
            sock.sendall(HEAD.pack(*Frame(wire.FACTS, length=len(told))) + told.encode())

    with socket.create_server(("127.0.0.1", 0)) as server:
        (thread := threading.Thread(target=answer)).start()
        with pytest.raises(WorkerError, match=r"node 127.* cannot be used: [ -~]*$"):
            dial(Address(*server.getsockname()), "", {"at_most": [1.0]})
        thread.join()


def test_where_a_replica_died_the_next_one_is_not_launched(monkeypatch):
    def watch(node, *_):
        node.beats, node.facts = True, FACTS
        node.tried.set()

    monkeypatch.setattr(remote.Node, "watch", watch)
    nodes = [Address("127.0.0.1", port) for port in (1, 2)]  # where nobody listens
    with closing(RemoteLauncher([QUICK], nodes, "")) as launcher:
        for node in (*nodes, nodes[0]):  # if it died on all, that with the fewest cores
            with closing(launcher.launch(0, 1.0)) as replica:
                assert replica.where == str(node)
                assert isinstance(next_event(replica), Death)


def peak_bytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.live
def test_hostile_bytes_neither_end_a_node_nor_make_it_allocate(node):
    with ExitStack() as opened:
        before = peak_bytes(node.process.pid)
        for sock in hostile(node):
            opened.callback(sock.close)
        for _ in range(200):  # idle, or a probe's
            opened.enter_context(socket.create_connection(node.address))
        launcher = opened.enter_context(closing(RemoteLauncher([QUICK], [node.address], TOKEN)))
        assert isinstance(next_event(opened.enter_context(closing(launcher.launch(0, 1.0)))), Ready)
        assert peak_bytes(node.process.pid) < before + 32e6
        assert node.process.poll() is None


@pytest.mark.live
def test_a_node_that_runs_out_of_descriptors_goes_on():
    node = NodeProcess(*OUTSIDE)
    pid = node.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    one_more = next(k for k in range(1 << 16) if k not in used) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (one_more, before[1]))
    with socket.create_connection(node.address) as sock:
        sock.settimeout(PATIENCE_S)
        assert sock.recv(1) == b""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    dial(node.address, "", {})[0].close()
    assert node.end() == 0


def listens(node):
    # reset: the listening socket closed while this connection waited to be accepted
    refused = ConnectionRefusedError, ConnectionResetError
    with suppress(*refused), socket.create_connection(node.address):
        return True
    return False


@pytest.mark.live
def test_a_retired_node_refuses_connections_as_long_as_it_is_asked_to():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = NodeProcess(*OUTSIDE, "--port", str(port))  # it has to find its own port again
    assert listens(node)
    with dial(node.address, "", {})[0] as sock:
        sock.sendall(HEAD.pack(*Frame(wire.RETIRE)))
        wait_until(lambda: not listens(node))
    wait_until(lambda: listens(node))
    assert node.end() == 0


@pytest.mark.live
def test_a_node_ends_with_all_that_it_has_started(caplog):
    node = NodeProcess("--model", "busy_model:Quick")
    pid = node.process.pid
    with closing(RemoteLauncher([QUICK], [node.address], "")) as launcher:
        replica = launcher.launch(0, 1.0)
        assert isinstance(next_event(replica), Ready)
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(started) >= 1
        assert node.end() == 0
        assert next_event(replica).reason == f"node {node.address}: it closed the connection"
        wait_until(lambda: f"going on without it for now: node {node.address}" in caplog.text)
        replica.close()
    assert not groups_of(pid)
    assert not [each for each in started if os.path.exists(f"/proc/{each}")]


def test_too_few_descriptors_for_another_replica_are_a_worker_error(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    job = stages.make_job([busy_model.Quick()], 4)
    monkeypatch.setattr("os.eventfd", refuse)
    with pytest.raises(WorkerError, match="refuses another replica: Too many open files"):
        RemoteReplica(0, job, "there", 1.0, 1.0)


def test_a_node_that_is_heard_again_is_news_for_the_poll_whoever_reads_it_first():
    here, there = socket.socketpair()
    job = stages.make_job([busy_model.Quick()], 4)
    with there, closing(RemoteReplica(0, job, "there", 1.0, 1.0)) as replica:
        replica.attach(here)
        assert replica.poll() is None
        wait_until(lambda: (replica.check_beat(time.monotonic()), replica.silent)[1])
        there.sendall(HEAD.pack(*Frame(wire.STATUS, cores=0.5)))
        assert (replica.granted_cores(), replica.silent) == (0.5, True)
        assert select.select([replica], [], [], 0)[0]
        assert (replica.poll(), replica.silent) == (None, False)
        wait_until(lambda: (replica.check_beat(time.monotonic()), replica.silent)[1])
        there.sendall(HEAD.pack(*Frame(wire.STATUS, cores=0.25)))
        cores = replica.granted_cores(), replica.close(), replica.granted_cores()
        assert cores == (0.25, None, 0.25)  # without a poll to wake any more
