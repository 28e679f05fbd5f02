"""HTTP as strangers speak it: in pieces, too much, too slow, not at all."""

import asyncio
import dataclasses
import gzip
import itertools
import json
import socket
import threading
import time
import zlib
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from fake_oip import FakeServer, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from raw_http import Wire, binary, chunked, in_json, infer, request
from served import running

from sponge_env.models.model import TensorSpec
from sponge_env.serve import app
from sponge_env.serve.http import connection
from sponge_env.serve.http.connection import PEER_CHECK_S, Connections
from sponge_env.serve.interface import Reply, Status
from sponge_env.serve.monitor import tracing
from sponge_env.serve.wire import protocol
from sponge_env.serve.wire.inline import InlineFuture, run_inline

OPTIONS = {"max_body_bytes": 5000, "max_header_bytes": 3000, "max_rows": 16}


@pytest.fixture
def wire(server):
    with Wire(server) as found:
        yield found


PACKED = gzip.compress(in_json(), mtime=0)
CHUNKED = {"content_length": None, "transfer_encoding": "chunked"}
BODY, LENGTH = binary()
UPGRADE = {
    "connection": "Upgrade, HTTP2-Settings",
    "upgrade": "h2c",  # as Java's client does with every request
    "inference_header_content_length": LENGTH,
}
PIPELINE = [
    (infer([[1, 2, 3, 4]]), 200), (request(method="GET", path="/v2"), 200),
    (infer([[n, n, n, n] for n in range(16)]), 200),
    (request(chunked(in_json(), 7), **CHUNKED), 200), (request(BODY, **UPGRADE), 200),
    (request(chunked(BODY, 11), **CHUNKED, **UPGRADE), 200),
    (request(request(method="GET", path="/v2"), **UPGRADE), 400),
    (request(b"x" * 200, path="/v2/models/other/infer"), 404),
    (request(b"x" * 6000), 413), (infer([[9, 9, 9, 9]]), 200),
]  # fmt: skip
WHOLE = b"".join(data for data, _ in PIPELINE)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_requests_may_be_cut_anywhere(cuts, server):
    places = [0, *sorted(cuts), len(WHOLE)]
    with Wire(server) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in itertools.pairwise(places):
            wire.send(WHOLE[start:end])
        answers = [wire.answer() for _ in PIPELINE]
    assert [answer.status for answer in answers] == [status for _, status in PIPELINE]
    found = [answers[k].json["outputs"][0]["data"] for k in (4, 5, -1)]
    assert found == [[10, 4], [10, 4], [36, 9]]


def test_the_body_is_neither_copied_nor_kept(monkeypatch):
    memories = []

    def connections(options, memory, *more):
        memories.append(memory)
        return Connections(options, memory, *more)

    monkeypatch.setattr(app, "Connections", connections)
    with running(FakeEngine(answer=lambda call: None)) as server, Wire(server) as wire:
        body, _ = binary(np.zeros((8, 4)))
        wire.send(infer(np.zeros((8, 4))))
        server.engine.wait_until(lambda engine: len(engine.held) == 8)
        assert memories[0].held_bytes == len(body)
        assert not any(call.tensor.flags.owndata for call in server.engine.calls)
        server.engine.finish(Reply(Status.FAILED))
        assert wire.answer().status == 503
        with Wire(server) as other:  # the first connection stays open and idle
            other.send(request(method="GET", path="/v2")).answer()
            assert len(server.recorder.ended) == 8  # which is done after the answer
            server.engine.calls.clear()
            server.recorder.ended.clear()
            assert memories[0].held_bytes == 0


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
def test_what_is_no_http_is_refused(garbage, wire, caplog):
    found = wire.send(garbage).answer()
    assert found.status in (400, 413)
    assert found.json["error"]
    assert wire.closed() or found.status == 413
    assert not caplog.records


def test_whoever_still_sends_is_told_why_not(wire):
    wire.send(b"POST / HTTP/1.1\r\nno colon\r\n\r\n")
    assert wire.socket.recv(1, socket.MSG_PEEK)  # it is refused
    for _ in range(5):  # the first of these would be told of a reset, the next would fail
        wire.send(b"x" * 100_000)
    assert wire.answer().status == 400
    assert wire.closed()


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_client_may_close_its_half(version):
    engine = FakeEngine(answer=lambda call: None)
    with running(engine) as server, Wire(server) as wire:
        wire.send(infer().replace(b"HTTP/1.1", version, 1))
        wire.socket.shutdown(socket.SHUT_WR)
        if version == b"HTTP/1.1":
            assert wire.answer().status == 100  # which tells it from a client that is gone
        engine.wait_until(lambda engine: len(engine.held) == 1)
        with engine.changed:
            assert not engine.changed.wait_for(lambda: engine.cancelled, 3 * PEER_CHECK_S)
        engine.finish(answered(np.zeros((1, 2), np.float32)))
        found = wire.answer()
        assert (found.status, found.headers["connection"]) == (200, "close")
        assert wire.closed()


def test_a_client_may_ask_before_it_sends(wire):
    head, _, body = infer(expect="100-continue").partition(b"\r\n\r\n")
    assert wire.send(head + b"\r\n\r\n").answer().status == 100
    assert wire.send(body).answer().status == 200


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [(PACKED, "gzip", 200), (PACKED, "x-gzip", 200), (zlib.compress(in_json()), "deflate", 200),
     (in_json(), "identity", 200), (gzip.compress(b" " * 10**6, mtime=0), "gzip", 413),
     (zlib.compress(b" " * 10**6), "deflate", 413), (PACKED[:-9], "gzip", 400),
     (PACKED + b"more", "gzip", 400), (in_json(), "gzip", 400), (b"", "gzip", 400),
     (in_json(), "br", 415)],
)  # fmt: skip
def test_compressed_bodies(body, encoding, status, wire):
    assert wire.send(request(body, content_encoding=encoding)).answer().status == status


def test_answers_are_compressed_where_it_pays():
    large = served(outputs=TensorSpec((5000,)))
    engine = FakeEngine(large, lambda call: answered(np.zeros((1, 5000), np.float32)))
    with running(engine) as server, Wire(server) as wire:
        asked = {"binary_data_output": True}
        found = wire.send(infer(parameters=asked, accept_encoding="gzip, deflate")).answer()
        assert found.headers["content-encoding"] == "gzip"
        length = int(found.headers["inference-header-content-length"])
        body = gzip.decompress(found.body)
        assert json.loads(body[:length])["outputs"][0]["shape"] == [1, 5000]
        assert len(body) == length + 20_000
        assert "content-encoding" not in wire.send(infer(parameters=asked)).answer().headers


def test_of_too_many_connections_the_longest_idle_gives_way():
    health = request(method="GET", path="/v2/health/live")
    engine = FakeEngine(answer=lambda call: None)
    with running(engine, max_connections=2) as server, Wire(server) as one, Wire(server) as two:
        for wire in (one, two, one):
            assert wire.send(health).answer().status == 200
        with Wire(server) as three:
            three.send(infer())
            assert two.closed()
            one.send(infer())
            engine.wait_until(lambda engine: len(engine.held) == 2)
            with Wire(server) as four:  # none is idle
                assert four.send(health).answer().status == 200
                refused = four.send(infer()).answer()
                assert (refused.status, refused.headers["retry-after"]) == (503, "1")
                assert four.closed()
            engine.finish(answered(np.zeros((1, 2), np.float32)))
            assert one.answer().status == three.answer().status == 200


def test_a_silent_body_gives_way(monkeypatch):
    monkeypatch.setattr(connection, "SLOW_S", 0.0)
    with running(max_held_bytes=1000) as server, Wire(server) as silent, Wire(server) as one:
        silent.send(request(content_length=900))
        assert one.send(infer()).answer().status == 503
        assert silent.closed()
        with Wire(server) as two:
            assert two.send(infer()).answer().status == 200


def test_a_client_that_goes_away_frees_its_place():
    with running(FakeEngine(answer=lambda call: None)) as server:
        with Wire(server) as wire:
            wire.send(infer(np.zeros((3, 4))))
            server.engine.wait_until(lambda engine: len(engine.held) == 3)
        server.engine.wait_until(lambda engine: len(engine.cancelled) == 3)
    assert [reply.status for _, reply, _ in server.recorder.ended] == [Status.CANCELLED] * 3


def test_a_row_that_is_refused_takes_the_others_back():
    def answer(call):
        return Reply(Status.REFUSED, retry_after_s=2.5) if call.tensor[0] == 1 else None

    with running(FakeEngine(answer=answer)) as server, Wire(server) as wire:
        found = wire.send(infer([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])).answer()
        assert (found.status, found.headers["retry-after"]) == (503, "3")
        assert (found.json["retry_after_ms"], len(server.engine.cancelled)) == (2500, 1)
        assert len(server.engine.calls) == 2  # the last one was not even tried
    assert [counted for _, _, counted in server.recorder.ended] == [True, False, True]


@pytest.mark.parametrize(
    ("reply", "age_s", "says"), [(Reply(Status.REFUSED), 20, "s old by the client's clock"),
     (Reply(Status.REFUSED), 0, "its deadline cannot be met"),
     (answered(np.zeros((1, 2), np.float32), in_time=False), 20, "")],
)  # fmt: skip
def test_a_violation_says_why_and_is_logged(reply, age_s, says, caplog):
    parent, sent_ms = f"00-{'a1' * 16}-{'1' * 16}-01", (time.time() - age_s) * 1000
    asked = infer(traceparent=parent, x_sent_at_ms=sent_ms, x_slo_ms=500)
    with running(FakeEngine(answer=lambda _: reply), log_violations=True) as server:
        with Wire(server) as wire:
            found = wire.send(asked).answer()
            other = wire.send(asked.replace(b"a1" * 16, b"00" * 16)).answer()
        assert server.recorder.clamped_clocks == 2 * ("clock" in says)
    assert says in found.json.get("error", "")
    line = json.loads(caplog.records[0].message)
    assert line["outcome"] == ("refused" if says else "late")
    assert (line["traceparent"], round(line["slo_s"], 6)) == (parent, 0.5)
    assert found.headers["traceparent"].startswith(parent[:36])
    assert found.headers["traceparent"] != parent
    assert "traceparent" not in other.headers


def test_requests_of_sampled_traces_become_spans(monkeypatch):
    class Collector(FakeServer):
        def answer(self, path, headers, body):
            self.taken.append(ExportTraceServiceRequest.FromString(body))
            return 200, {}

    def answer(call):
        found = answered(np.zeros((1, 2), np.float32)) if call.tensor[0] else Reply(Status.EXPIRED)
        return dataclasses.replace(found, finished_s=time.monotonic())

    parent = f"00-{'a1' * 16}-{'2' * 16}-0{{}}".format
    forms = parent(1), parent(3), parent(0).replace("a1", "b2"), "", parent("1-x")
    asked = [infer([[n, 0, 0, 0]], traceparent=form) for n, form in enumerate(forms)]
    with serving(Collector()) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        with running(FakeEngine(answer=answer), spans=True) as server, Wire(server) as wire:
            sent = [wire.send(each).answer().headers.get("traceparent") for each in asked]
    found = [resource for each in collector.taken for resource in each.resource_spans]
    assert all(b"ours" in each.resource.SerializeToString() for each in found)
    spans = [span for each in found for span in each.scope_spans[0].spans]
    ids = [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in spans]
    assert (ids, sent[2][-3:], sent[3:]) == (sent[:2], "-00", [None, None])
    assert {span.parent_span_id.hex() for span in spans} == {"2" * 16}
    assert {e[0] for e in server.recorder.latency.exemplars if e} == {"a1" * 16}
    assert [span.status.code for span in spans] == [2, 0]  # an error, and nothing said
    assert all(0 < span.end_time_unix_nano - span.start_time_unix_nano < 20e9 for span in spans)
    assert b"expired" in spans[0].SerializeToString()


def test_spans_that_cannot_be_sent_do_not_hold_up_the_end(monkeypatch):
    never = threading.Event().wait
    monkeypatch.setattr(tracing.Spans, "__init__", lambda spans: vars(spans).update(close=never))
    with running(spans=True) as server:
        assert server.engine.ready


@pytest.mark.parametrize(
    ("rows", "status", "deciding"), [([1, 3, 2], 200, 1), ([1, 9, 3], 504, 1), ([1, 8, 9], 503, 1)]
)
def test_a_request_counts_as_what_was_answered(rows, status, deciding):
    def answer(call):
        first = float(call.tensor[0])
        if first >= 8:
            return Reply(Status.EXPIRED if first == 9 else Status.REFUSED)
        return answered(np.zeros((1, 2), np.float32), service_s=first)

    with running(FakeEngine(answer=answer)) as server, Wire(server) as wire:
        assert wire.send(infer([[row, 0, 0, 0] for row in rows])).answer().status == status
    counted = [counted for _, _, counted in server.recorder.ended]
    assert counted == [row != deciding for row in range(len(rows))]


def test_more_rows_than_there_is_room_for_are_a_mistake():
    """A 503 would have the client try again for ever."""
    engine = FakeEngine(dataclasses.replace(served(), queue_max=2))
    with running(engine) as server, Wire(server) as wire:
        assert wire.send(infer(np.zeros((2, 4)))).answer().status == 200
        assert (wire.send(infer(np.zeros((3, 4)))).answer().status, len(engine.calls)) == (400, 2)


def test_the_agent_is_switched(wire, server):
    def switch(body, kind="application/json"):
        local = {"content_type": kind, "host": "127.0.0.1:8000"}
        return wire.send(request(body, path="/agent", **local)).answer()

    found = switch(b'{"agent": "static-2"}', "Application/JSON; charset=utf-8 \t").json
    assert found == {"agent": "static-2"}
    assert server.engine.agent == "static-2"
    assert "unknown agent 'other'" in switch(b'{"agent": "other"}').json["error"]
    for body in (b"{}", b'{"agent": 1}', b"[]", b"x"):
        assert switch(body).status == 400
    assert switch(b"x").json["error"].endswith("line 1 column 1 (char 0)")
    refused = switch(b'{"agent": "static-1"}', "text/plain")
    assert (refused.status, "Content-Type" in refused.json["error"]) == (415, True)


def test_a_token_guards_all_but_health():
    def get(path, **headers):
        return wire.send(request(method="GET", path=path, **headers)).answer()

    with running(token="secret") as server, Wire(server) as wire:
        for path in ("/v2", "/metrics", "/v2/models/tiny/ready"):
            answer = get(path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert {get(f"/v2/health/{each}").status for each in ("live", "ready")} == {200}
        assert wire.send(infer()).answer().status == 401
        for right in ("Bearer secret", "bearer secret", "BEARER  secret"):
            assert get("/v2", authorization=right).status == 200
        for wrong in ("secret", "Basic secret", "Bearer", "Bearer secret2"):
            assert get("/v2", authorization=wrong).status == 401
        shown = get("/metrics?since=3", authorization="Bearer secret")
        assert (shown.body, shown.headers["content-type"]) == (b"asked since=3", "text/plain")


def test_what_never_comes_to_the_engine_is_counted():
    with running(FakeEngine(answer=lambda _: Reply(Status.REFUSED)), **OPTIONS) as server:
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
    ("headers", "status", "agent_status"),
    [({"host": "localhost:8000"}, 200, 200), ({"host": "127.0.0.1"}, 200, 200),
     ({"host": "[::1]:1"}, 200, 200), ({"host": None}, 200, 403),
     ({"host": "evil.org:8000"}, 403, 403), ({"host": "127.0.0.1.evil.org"}, 403, 403),
     ({"host": "localhost:1", "origin": "http://localhost:1"}, 200, 200),
     ({"host": "localhost:1", "origin": "http://localhost:3000"}, 403, 403),
     ({"origin": "https://evil.org"}, 403, 403), ({"origin": "null"}, 403, 403),
     ({"x_forwarded_for": "10.0.0.1"}, 200, 403)],
)  # fmt: skip
def test_pages_of_other_sites_reach_nothing(headers, status, agent_status, wire):
    """A name that leads here is not this machine's: its site's pages would read the answers."""
    switch, of_json = b'{"agent": "static-1"}', {"content_type": "application/json"}
    paths = ("/v2", "/metrics", "/v2/health/ready")
    for asked in (infer(**headers), *(request(method="GET", path=p, **headers) for p in paths)):
        assert wire.send(asked).answer().status == status
    asked = request(switch, path="/agent", **of_json, **headers)
    assert wire.send(asked).answer().status == agent_status


def test_a_pipeline_says_which_rows_belong_to_whom():
    def answer(call):
        return answered(np.full((int(call.tensor[0]), 2), call.tensor[0], np.float32))

    stages = dataclasses.replace(served(), stages=("find", "read"))
    with running(FakeEngine(stages, answer)) as server, Wire(server) as wire:
        found = wire.send(infer([[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])).answer()
        output, tasks = found.json["outputs"]
        assert (output["shape"], output["data"]) == ([3, 2], [2, 2, 2, 2, 1, 1])
        assert (tasks["name"], tasks["datatype"], tasks["data"]) == ("tasks", "INT64", [2, 0, 1])
        assert wire.send(infer([[0, 0, 0, 0]])).answer().json["outputs"][0]["shape"] == [0, 2]


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_does_not_read_is_let_go(connection):
    large = served(outputs=TensorSpec((8 * 2**20,)))
    engine = FakeEngine(large, lambda call: answered(np.zeros((1, 8 * 2**20), np.float32)))
    with running(engine, idle_timeout_s=0.2, body_timeout_s=0.2) as server, Wire(server) as wire:
        wire.send(infer(parameters={"binary_data_output": True}, connection=connection))
        server.thread.join(1.0)  # it does not end, and its patience does
        with pytest.raises((ConnectionResetError, AssertionError)):
            wire.answer()


def test_large_json_is_read_and_written_beside_the_loop(monkeypatch):
    """Also where a header says that JSON is all that there is."""
    threads = []

    def noted(work, *arguments):
        threads.append(threading.current_thread())
        return work(*arguments)

    for name in ("read_request", "write_answer"):
        monkeypatch.setattr(protocol, name, partial(noted, getattr(protocol, name)))
    wide = TensorSpec((40_000,))
    engine = FakeEngine(served(wide, wide), lambda call: answered(np.zeros((1, 40_000), "f4")))
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 40_000], "data": [1] * 40_000}
    body = json.dumps({"inputs": [tensor]}).encode()
    with running(engine) as server, Wire(server) as wire:
        asked = request(body, inference_header_content_length=len(body))
        assert wire.send(asked).answer().status == 200
        assert server.thread not in threads
    assert len(threads) == 2


def test_what_is_unpacked_counts():
    packed = request(gzip.compress(in_json() + b" " * 4000), content_encoding="gzip")
    with running(max_held_bytes=4000) as server, Wire(server) as wire:
        found = wire.send(packed).answer()
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert wire.send(infer()).answer().status == 200
        assert wire.send(request(b"x" * 4001, **UPGRADE)).answer().status == 503
    with running(max_held_bytes=5000) as server, Wire(server) as wire:
        for _ in range(3):  # it is given back
            assert wire.send(packed).answer().status == 200


def test_a_coroutine_that_fails_harms_nobody_who_resumes_it(caplog):
    there = InlineFuture()

    async def fail():
        await there
        raise ValueError("odd")

    with closing(asyncio.new_event_loop()) as loop:
        loop.call_soon(run_inline, fail())
        loop.call_soon(there.set_result, None)
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert "ValueError: odd" in caplog.text
