"""HTTP as strangers speak it: in pieces, too much, too slow, not at all."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import Wire, binary, chunked, in_json, infer, request
from served import Running, running

from sponge_env.models.model import TensorSpec
from sponge_env.serve import app
from sponge_env.serve.http import routes
from sponge_env.serve.http.connection import PEER_CHECK_S, Connections
from sponge_env.serve.interface import Reply, Status

UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"}
LIMITS: dict[str, Any] = {"max_body_bytes": 5000, "max_header_bytes": 3000, "max_rows": 16}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(**LIMITS) as found:
        yield found


@pytest.fixture
def wire(server: Running) -> Iterator[Wire]:
    with Wire(server) as found:
        yield found


def outputs(body: bytes) -> Any:
    return json.loads(body)["outputs"][0]["data"]


PIPELINE = b"".join(
    [
        infer([[1, 2, 3, 4]]),
        request(method="GET", path="/v2"),
        infer([[n, n, n, n] for n in range(16)]),
        request(chunked(in_json(), 7), content_length=None, transfer_encoding="chunked"),
        request(in_json()),
        request(b"x" * 200, path="/v2/models/other/infer"),
        infer([[9, 9, 9, 9]]),
    ]
)
STATUSES = [200, 200, 200, 200, 200, 404, 200]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(PIPELINE)), max_size=8))
def test_requests_may_be_cut_anywhere(cuts: list[int], server: Running) -> None:
    places = [0, *sorted(cuts), len(PIPELINE)]
    with Wire(server) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in itertools.pairwise(places):
            wire.send(PIPELINE[start:end])
        found = [wire.answer() for _ in STATUSES]
    assert [answer.status for answer in found] == STATUSES
    assert outputs(found[-1].body) == [36, 9]


def test_the_body_is_neither_copied_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Connections] = []

    def connections(*arguments: Any) -> Connections:
        made.append(Connections(*arguments))
        return made[0]

    monkeypatch.setattr(app, "Connections", connections)
    with running(FakeEngine(answer=lambda call: None)) as server, Wire(server) as wire:
        wire.send(infer(np.zeros((8, 4))))
        server.engine.wait_until(lambda engine: len(engine.held) == 8)
        body, _ = binary(np.zeros((8, 4)))
        assert made[0].memory.held_bytes == len(body)
        assert not any(call.tensor.flags.owndata for call in server.engine.calls)
        server.engine.finish(Reply(Status.FAILED))
        assert wire.answer().status == 503
        with Wire(server) as other:  # the first connection stays open and idle
            other.send(request(method="GET", path="/v2")).answer()
            assert len(server.recorder.ended) == 8  # which is done after the answer
            server.engine.calls.clear()
            server.recorder.ended.clear()
            assert made[0].memory.held_bytes == 0


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: ten\r\n\r\n",
     b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
     b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
     b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"\x00" * 40,
     b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
     b"GET http://[ HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_refused(
    garbage: bytes, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    found = wire.send(garbage).answer()
    assert found.status in (400, 413)
    assert found.json["error"]
    assert wire.closed() or found.status == 413
    assert not caplog.records


def test_whoever_still_sends_is_told_why_not(wire: Wire) -> None:
    wire.send(b"POST / HTTP/1.1\r\nno colon\r\n\r\n")
    assert wire.socket.recv(1, socket.MSG_PEEK)  # it is refused
    for _ in range(5):  # the first of these would be told of a reset, the next would fail
        wire.send(b"x" * 100_000)
    assert wire.answer().status == 400
    assert wire.closed()


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_who_wants_to_upgrade_is_answered_all_the_same(
    in_chunks: bool, pieces: int, server: Running
) -> None:
    """Java's client asks for it with every request."""
    body, length = binary()
    said = {"inference_header_content_length": length, **UPGRADE}
    if in_chunks:
        asked = request(chunked(body, 11), content_length=None, transfer_encoding="chunked", **said)
    else:
        asked = request(body, **said)
    size = -(-len(asked) // pieces)
    server.engine.calls.clear()
    with Wire(server) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(asked), size):
            wire.send(asked[start : start + size])
        assert outputs(wire.answer().body) == [10, 4]
        wire.send(asked + asked + infer([[1, 1, 1, 1]]))
        assert [outputs(wire.answer().body) for _ in range(3)] == [[10, 4], [10, 4], [4, 1]]
    assert len(server.engine.calls) == 4


def test_a_request_inside_the_body_of_another_is_none(wire: Wire) -> None:
    inner = request(method="GET", path="/v2")
    wire.send(request(inner, **UPGRADE) + infer())
    assert [wire.answer().status for _ in range(2)] == [400, 200]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_client_may_close_its_half(version: bytes) -> None:
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, Wire(server) as wire:
        wire.send(infer().replace(b"HTTP/1.1", version, 1))
        wire.socket.shutdown(socket.SHUT_WR)
        if version == b"HTTP/1.1":
            assert wire.answer().status == 100  # which tells it from a client that is gone
        engine.wait_until(lambda engine: len(engine.held) == 1)
        with engine.changed:
            assert not engine.changed.wait_for(lambda: engine.cancelled, 3 * PEER_CHECK_S)
        engine.finish(answered(np.zeros(2, np.float32)))
        found = wire.answer()
        assert (found.status, found.headers["connection"]) == (200, "close")
        assert wire.closed()


@pytest.mark.parametrize("more", [b"x", b"x-a: b\r\n", b"x-long: " + b"y" * 100])
def test_headers_without_an_end_are_refused(more: bytes, server: Running) -> None:
    with Wire(server) as wire:
        wire.send(b"GET /v2 HTTP/1.1\r\n" if more != b"x" else b"GET /")
        wire.send(more * (200_000 // len(more)))
        assert wire.answer().status in (400, 431)
        assert wire.closed()


def test_a_large_body_is_refused_and_the_connection_lives(wire: Wire) -> None:
    found = wire.send(request(b"x" * 50_000)).answer()
    assert (found.status, list(found.json)) == (413, ["error"])
    assert wire.send(infer()).answer().status == 200


def test_a_client_may_ask_before_it_sends(wire: Wire) -> None:
    asked = infer(expect="100-continue")
    head, _, body = asked.partition(b"\r\n\r\n")
    assert wire.send(head + b"\r\n\r\n").answer().status == 100
    assert wire.send(body).answer().status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "identity"])
def test_bodies_may_be_compressed(encoding: str, wire: Wire) -> None:
    pack = {"deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)
    body, length = binary()
    more = {"inference_header_content_length": length, "content_encoding": encoding}
    assert outputs(wire.send(request(pack(body), **more)).answer().body) == [10, 4]


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b" " * 10**6, mtime=0), "gzip", 413),
        (zlib.compress(b" " * 10**6), "deflate", 413),
        (gzip.compress(in_json(), mtime=0)[:-9], "gzip", 400),
        (gzip.compress(in_json(), mtime=0) + b"more", "gzip", 400),
        (in_json(), "gzip", 400),
        (b"", "gzip", 400),
        (in_json(), "br", 415),
    ],
)
def test_damaged_compression(body: bytes, encoding: str, status: int, wire: Wire) -> None:
    assert wire.send(request(body, content_encoding=encoding)).answer().status == status


def test_answers_are_compressed_where_it_pays() -> None:
    large = served(outputs=TensorSpec((5000,)))
    engine = FakeEngine(large, lambda call: answered(np.zeros(5000, np.float32)))
    with running(engine) as server, Wire(server) as wire:
        asked = {"binary_data_output": True}
        found = wire.send(infer(parameters=asked, accept_encoding="gzip, deflate")).answer()
        assert found.headers["content-encoding"] == "gzip"
        length = int(found.headers["inference-header-content-length"])
        body = gzip.decompress(found.body)
        assert json.loads(body[:length])["outputs"][0]["shape"] == [1, 5000]
        assert len(body) == length + 20_000
        for refused in ("identity", "gzip;q=0", "br"):
            found = wire.send(infer(parameters=asked, accept_encoding=refused)).answer()
            assert "content-encoding" not in found.headers


def test_slow_clients_are_let_go() -> None:
    with running(body_timeout_s=0.3) as server:
        with Wire(server) as silent, Wire(server) as header, Wire(server) as body:
            header.send(infer()[:40])
            body.send(infer()[:-4])
            assert header.answer().status == 408
            assert body.answer().status == 408
            assert all(wire.closed() for wire in (silent, header, body))
        with Wire(server) as wire:
            assert wire.send(infer()).answer().status == 200
        assert not server.engine.held


def test_idle_connections_are_closed() -> None:
    with running(idle_timeout_s=0.2) as server, Wire(server) as wire:
        assert wire.send(infer()).answer().status == 200
        assert wire.closed()


def test_too_many_connections() -> None:
    with running(max_connections=2) as server, Wire(server) as one, Wire(server) as two:
        assert one.send(infer()).answer().status == 200
        assert two.send(infer()).answer().status == 200
        with Wire(server) as three:
            found = three.answer()
            assert (found.status, found.headers["retry-after"]) == (503, "1")
            assert three.closed()
        assert one.send(infer()).answer().status == 200


def test_a_client_that_goes_away_frees_its_place() -> None:
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server:
        with Wire(server) as wire:
            wire.send(infer(np.zeros((3, 4))))
            engine.wait_until(lambda engine: len(engine.held) == 3)
        engine.wait_until(lambda engine: len(engine.cancelled) == 3)
    assert [reply.status for _, reply, _ in server.recorder.ended] == [Status.CANCELLED] * 3


def test_a_row_that_is_refused_takes_the_others_back() -> None:
    def answer(call: Any) -> Reply | None:
        return Reply(Status.REFUSED, retry_after_s=2.5) if call.tensor[0] == 1 else None

    engine = FakeEngine(answer=answer)
    with running(engine) as server, Wire(server) as wire:
        found = wire.send(infer([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])).answer()
        assert (found.status, found.headers["retry-after"]) == (503, "3")
        assert found.json["retry_after_ms"] == 2500
        assert len(engine.cancelled) == 1
        assert len(engine.calls) == 2  # the last one was not even tried
    assert [counted for _, _, counted in server.recorder.ended] == [True, False, True]


@pytest.mark.parametrize(
    ("rows", "status", "deciding"), [([1, 3, 2], 200, 1), ([1, 9, 3], 504, 1), ([1, 8, 9], 503, 1)]
)
def test_a_request_counts_as_what_was_answered(rows: list[int], status: int, deciding: int) -> None:
    def answer(call: Any) -> Reply:
        first = float(call.tensor[0])
        if first >= 8:
            return Reply(Status.EXPIRED if first == 9 else Status.REFUSED)
        return answered(np.zeros(2, np.float32), service_s=first)

    with running(FakeEngine(answer=answer)) as server, Wire(server) as wire:
        asked = infer([[row, 0, 0, 0] for row in rows])
        assert wire.send(asked).answer().status == status
    counted = [counted for _, _, counted in server.recorder.ended]
    assert counted == [row != deciding for row in range(len(rows))]


def test_more_rows_than_there_is_room_for_are_a_mistake() -> None:
    """A 503 would have the client try again for ever."""
    engine = FakeEngine(dataclasses.replace(served(), queue_max=2))
    with running(engine) as server, Wire(server) as wire:
        assert wire.send(infer(np.zeros((2, 4)))).answer().status == 200
        found = wire.send(infer(np.zeros((3, 4)))).answer()
        assert (found.status, len(engine.calls)) == (400, 2)
        assert found.json["error"] == "a request has at most 2 rows here, not 3"


def test_what_was_shed_is_not_said_to_have_expired() -> None:
    said = []
    for in_time in (False, True):
        engine = FakeEngine(answer=lambda _, it=in_time: Reply(Status.EXPIRED, in_time=it))
        with running(engine) as server, Wire(server) as wire:
            found = wire.send(infer()).answer()
            assert found.status == 504
            said.append(found.json["error"])
    assert "passed" in said[0]
    assert "dropped" in said[1]


def test_the_agent_is_switched(wire: Wire, server: Running) -> None:
    def switch(body: bytes, kind: str = "application/json") -> Any:
        local = {"content_type": kind, "host": "127.0.0.1:8000"}
        return wire.send(request(body, path="/agent", **local)).answer()

    assert switch(b'{"agent": "static-2"}').json == {"agent": "static-2"}
    assert server.engine.agent == "static-2"
    assert "unknown agent 'other'" in switch(b'{"agent": "other"}').json["error"]
    for body in (b"{}", b'{"agent": 1}', b"[]", b"x"):
        assert switch(body).status == 400
    assert switch(b'{"agent": "static-1"}', "text/plain").status == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"host": "localhost"}, 200), ({"host": "[::1]:8000"}, 200), ({"host": "evil.org:8000"}, 403),
     ({"host": None}, 403), ({"host": "127.0.0.1", "x_forwarded_for": "10.0.0.1"}, 403)],
)  # fmt: skip
def test_who_comes_from_elsewhere_by_way_of_this_machine(
    headers: dict[str, Any], status: int, wire: Wire
) -> None:
    said = {"content_type": "application/json", **headers}
    asked = request(b'{"agent": "static-1"}', path="/agent", **said)
    assert wire.send(asked).answer().status == status


def test_what_is_shown_beside_the_protocol(wire: Wire) -> None:
    found = wire.send(request(method="GET", path="/metrics?since=3")).answer()
    assert (found.body, found.headers["content-type"]) == (b"asked since=3", "text/plain")
    assert wire.send(request(method="GET", path="/")).answer().status == 404


def test_a_token_guards_all_but_health() -> None:
    with running(token="secret") as server, Wire(server) as wire:
        for path in ("/v2", "/metrics", "/v2/models/tiny/ready"):
            found = wire.send(request(method="GET", path=path)).answer()
            assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
        right = {"authorization": "Bearer secret"}
        assert wire.send(request(method="GET", path="/metrics", **right)).answer().status == 200
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert wire.send(request(method="GET", path=path)).answer().status == 200
        assert wire.send(infer()).answer().status == 401


def test_what_never_comes_to_the_engine_is_counted() -> None:
    with running(FakeEngine(answer=lambda _: Reply(Status.REFUSED)), **LIMITS) as server:
        for data, status in (
            (infer([[1, 2, 3, 4]]), 503),  # it came there
            (infer([[1, 2, 3]]), 400),
            (request(method="GET", path="/v2/nothing"), 404),
            (request(b"x" * 6000), 413),
            (b"no HTTP\r\n\r\n", 400),
            (request(method="GET", path="/v2/health/ready"), 200),
        ):
            with Wire(server) as wire:
                assert wire.send(data).answer().status == status
        assert server.recorder.rejections == {400: 2, 404: 1, 413: 1}


@pytest.mark.parametrize(
    ("said", "status"),
    [("Bearer secret", 200), ("bearer secret", 200), ("BEARER  secret", 200), ("secret", 401),
     ("Basic secret", 401), ("Bearer", 401), ("Bearer secret2", 401)],
)  # fmt: skip
def test_the_scheme_of_a_token_has_no_case(said: str, status: int) -> None:
    with running(token="secret") as server, Wire(server) as wire:
        asked = request(method="GET", path="/v2", authorization=said)
        assert wire.send(asked).answer().status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"host": "localhost:8000"}, 200), ({"host": "127.0.0.1"}, 200), ({"host": "[::1]:1"}, 200),
     ({"host": None}, 200), ({"host": "evil.org:8000"}, 403), ({"host": "127.0.0.1.evil.org"}, 403),
     ({"origin": "http://localhost:3000"}, 200), ({"origin": "https://evil.org"}, 403),
     ({"origin": "null"}, 403)],
)  # fmt: skip
def test_pages_of_other_sites_reach_nothing(
    headers: dict[str, Any], status: int, wire: Wire
) -> None:
    """A name that leads here is not this machine's: its site's pages would read the answers."""
    assert wire.send(infer(**headers)).answer().status == status
    for path in ("/v2", "/metrics"):
        asked = request(method="GET", path=path, **headers)
        assert wire.send(asked).answer().status == status
    asked = request(method="GET", path="/v2/health/ready", **headers)
    assert wire.send(asked).answer().status == 200


def test_a_pipeline_says_which_rows_belong_to_whom() -> None:
    def answer(call: Any) -> Reply:
        return answered(np.full((int(call.tensor[0]), 2), call.tensor[0], np.float32))

    stages = dataclasses.replace(served(), stages=("find", "read"))
    with running(FakeEngine(stages, answer)) as server, Wire(server) as wire:
        found = wire.send(infer([[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])).answer()
        output, tasks = found.json["outputs"]
        assert (output["shape"], output["data"]) == ([3, 2], [2, 2, 2, 2, 1, 1])
        assert (tasks["name"], tasks["datatype"], tasks["data"]) == ("tasks", "INT64", [2, 0, 1])
        none = wire.send(infer([[0, 0, 0, 0]])).answer()
        assert none.json["outputs"][0]["shape"] == [0, 2]


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_does_not_read_is_let_go(connection: str) -> None:
    large = served(outputs=TensorSpec((8 * 2**20,)))
    engine = FakeEngine(large, lambda call: answered(np.zeros(8 * 2**20, np.float32)))
    with running(engine, idle_timeout_s=0.2, body_timeout_s=0.2) as server, Wire(server) as wire:
        wire.send(infer(parameters={"binary_data_output": True}, connection=connection))
        server.thread.join(1.0)  # it does not end, and its patience does
        with pytest.raises((ConnectionResetError, AssertionError)):
            wire.answer()


def test_large_json_is_read_and_written_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a header says that JSON is all that there is."""
    threads: list[threading.Thread] = []

    def noted(work: Any) -> Any:
        def run(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            return work(*arguments)

        return run

    for name in ("read_request", "write_answer"):
        monkeypatch.setattr(routes, name, noted(getattr(routes, name)))
    wide = served(TensorSpec((40_000,)), TensorSpec((40_000,)))
    engine = FakeEngine(wide, lambda call: answered(np.zeros(40_000, np.float32)))
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 40_000], "data": [1] * 40_000}
    body = json.dumps({"inputs": [tensor]}).encode()
    with running(engine) as server, Wire(server) as wire:
        asked = request(body, inference_header_content_length=len(body))
        assert wire.send(asked).answer().status == 200
        assert server.thread not in threads
    assert len(threads) == 2


def test_what_is_unpacked_counts() -> None:
    body = in_json() + b" " * 4000
    packed = request(gzip.compress(body), content_encoding="gzip")
    with running(max_held_bytes=4000) as server, Wire(server) as wire:
        found = wire.send(packed).answer()
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert wire.send(infer()).answer().status == 200
    with running(max_held_bytes=5000) as server, Wire(server) as wire:
        for _ in range(3):  # it is given back
            assert wire.send(packed).answer().status == 200
        assert (
            wire.send(request(gzip.compress(b""), content_encoding="gzip")).answer().status == 400
        )
