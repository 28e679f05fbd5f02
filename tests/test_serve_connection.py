"""One HTTP connection on a transport of our own, which decides what is read in one go."""

import asyncio
import functools

import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from raw_http import Wire, binary, chunked, infer, request
from served import Recorded, running

from sponge_env.models.model import TensorSpec
from sponge_env.serve.http.connection import Connection, Connections
from sponge_env.serve.http.routes import HttpFront
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.wire.front import Front
from sponge_env.serve.wire.outcomes import WireError

SECOND = request(method="GET", path="/v2/health/live")
LARGE = served(inputs=TensorSpec((150_000,)))


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.sent, self.closing = b"", False
        self.changed = asyncio.Event()

    def write(self, data):
        self.sent += bytes(data)
        self.changed.set()

    def close(self):
        self.closing = True
        self.changed.set()

    abort = write_eof = close  # all say that nothing more comes

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        """Do nothing: a test sends no more than it wants to."""

    resume_reading = pause_reading

    @property
    def statuses(self):
        return [int(part[:3]) for part in self.sent.split(b"HTTP/1.1 ")[1:]]

    async def until(self, true):
        async with asyncio.timeout(10):
            while not true(self):
                self.changed.clear()
                await self.changed.wait()


class Client:
    def __init__(self, engine, **changes):
        options, metrics = ServeOptions(**changes), Recorded()
        front = Front(engine, options, metrics)
        answer = HttpFront(front, {}).answer
        self.memory = front.memory
        self.server = Connections(options, front.memory, answer, metrics.rejected)
        self.connect()

    def connect(self):
        self.connection, self.transport = Connection(self.server), Transport()
        self.connection.connection_made(self.transport)
        return self.transport

    def send(self, data):
        while data:
            room = self.connection.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.connection.buffer_updated(size)
            data = data[size:]


def in_a_loop(test):
    @functools.wraps(test)
    def run(**arguments):
        asyncio.run(test(**arguments))

    return run


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("path", "token", "status"), [("none", None, 404), ("tiny", "a", 401)])
@in_a_loop
async def test_an_early_error_does_not_lose_the_next_request(path, token, status, whole):
    """Of 600 KB most are read in place before the application has had its turn."""

    client = Client(FakeEngine(LARGE), token=token)
    asked = request(b"\1" * 600_000, path=f"/v2/models/{path}/infer")
    early = len(asked) if whole else 300_000
    client.send(asked[:early])
    await client.transport.until(lambda to: to.statuses == [status])
    assert whole or client.memory.held_bytes == 0
    client.send(asked[early:])
    client.send(SECOND)
    await client.transport.until(lambda to: to.statuses == [status, 200])
    assert client.memory.held_bytes == 0


@pytest.mark.parametrize("before", [b"", infer(), request(b"x" * 5000)])
@in_a_loop
async def test_empty_lines_do_not_hold_a_connection(before):
    client = Client(FakeEngine(), idle_timeout_s=0.05, body_timeout_s=0.05, max_body_bytes=999)
    if before:
        client.send(before[:300])
        await client.transport.until(lambda to: len(to.statuses) == 1)
        client.send(before[300:])
    client.send(b"\r\n")
    await client.transport.until(lambda to: to.closing)
    assert len(client.transport.statuses) == bool(before)


def held_by(first):
    return lambda call: None if call.tensor[0] == first else answered(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("end", "status"),
    [(b"\0", 400), (infer()[:-3], 408), (infer()[:30], 408), (b"GET /" + b"x" * 100_000, 431),
     (b"GET /v2 HTTP/1.1\r\n" + b"x-a: b\r\n" * 12_000, 431),
     (b"GET /v2 HTTP/1.1\r\nx-long: " + b"y" * 100_000, 431),
     (b"GET /v2 HTTP/1.1\r\nx-long: " + b"y" * 8000 + b"\r\n\r\n", 431),
     (request(transfer_encoding="chunked", content_length=None) + b"0\r\nx: " + b"y" * 8000, 431)],
)  # fmt: skip
@in_a_loop
async def test_what_follows_does_not_spoil_what_is_under_way(end, status):
    engine = FakeEngine(answer=held_by(7))
    client = Client(engine, body_timeout_s=0.05, max_header_bytes=3000)
    client.send(infer([[7, 0, 0, 0]]) + infer() * 2 + end)
    await asyncio.sleep(0.1)  # longer than its patience; nothing tells that nothing happens
    assert client.transport.sent == b""
    assert not client.transport.closing
    engine.finish(answered(np.zeros((1, 2), np.float32)))
    await client.transport.until(lambda to: to.closing)
    assert client.transport.statuses == [200, 200, 200, status]
    client.send(infer())  # nobody reads it any more
    assert client.transport.statuses == [200, 200, 200, status]


@in_a_loop
async def test_what_came_in_pieces_counts_as_long_as_it_is_used():
    engine = FakeEngine(answer=held_by(7))
    body, length = binary([[7, 0, 0, 0]])
    head = {"content_length": None, "transfer_encoding": "chunked"}
    asked = request(chunked(body, 9), inference_header_content_length=length, **head)
    client = Client(engine, max_held_bytes=4 * len(body))
    memory = client.memory
    client.send(asked[: len(asked) // 2])
    assert 0 < memory.held_bytes < len(body)
    client.send(asked[len(asked) // 2 :])
    while not engine.held:
        await asyncio.sleep(0)
    assert memory.held_bytes == len(body)  # put together
    client.send(asked)  # the next one
    assert memory.held_bytes == 2 * len(body)
    engine.finish(answered(np.zeros((1, 2), np.float32)))
    while not engine.held:
        await asyncio.sleep(0)
    engine.finish(answered(np.zeros((1, 2), np.float32)))
    await client.transport.until(lambda to: to.statuses == [200, 200])


@in_a_loop
async def test_who_waits_for_answers_is_not_held_up_by_who_does_not():
    client, impatient = Client(FakeEngine()), []
    for _ in range(20):
        impatient.append(client.connect())
        client.send(SECOND * 20)
    await impatient[-1].until(lambda to: len(to.statuses) == 1)
    patient = client.connect()
    client.send(SECOND)
    await patient.until(lambda to: to.statuses == [200])
    assert sum(len(other.statuses) for other in impatient) < 20 + 10
    for other in impatient:
        await other.until(lambda to: to.statuses == [200] * 20)


@in_a_loop
async def test_no_body_is_handed_on_before_it_is_whole():
    client = Client(FakeEngine())
    client.send(infer()[:-1])
    with pytest.raises(WireError):
        client.connection.on_message_complete()


@in_a_loop
async def test_an_answer_before_an_announced_body_ends_the_connection():
    """The client may leave the body out, so that what follows would be taken for it."""
    client = Client(FakeEngine(LARGE))
    head = b"POST /v2/repository/models/none/load HTTP/1.1\r\nHost: localhost\r\n"
    client.send(head + b"Expect: 100-continue\r\nContent-Length: 30\r\n\r\n")
    await client.transport.until(lambda to: to.closing)
    assert client.transport.statuses == [403]


@in_a_loop
async def test_a_head_that_ends_within_its_last_read_is_answered_once():
    client = Client(FakeEngine(), max_header_bytes=3000)
    client.send(request(method="GET", path="/v2/health/live", x_long="y" * 3980))
    await client.transport.until(lambda to: to.statuses == [200])
    client.send(SECOND)
    await client.transport.until(lambda to: to.statuses == [200, 200])
    assert not client.transport.closing


def test_a_client_that_is_refused_may_send_the_rest_before_the_connection_ends():
    with running() as server, Wire(server) as wire:
        wire.send(request(bytes(16_000_000), path="/none", connection="close"))
        assert (wire.answer().status, wire.closed()) == (404, True)
