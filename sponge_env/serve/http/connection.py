"""One HTTP connection: requests are parsed as they come and answered in their order.

httptools parses; the event loop writes a body where its tensor is read, which of 600 KB saves half
the time. Whoever is refused is told so after the answers to what came whole before, and is read on
for a moment, so that it reads why, and not that the connection was reset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

import httptools

from sponge_env.serve.http.request import CONTINUE, Request, too_large
from sponge_env.serve.http.responses import CLOSE, JSON, Response
from sponge_env.serve.memory import FULL, Memory
from sponge_env.serve.options import ServeOptions

LOG = logging.getLogger("sponge_env")

SCRATCH_BYTES = 2**16
"""Read at once where nothing is known of what comes."""
LINGER_S = 1.0
"""How long a refused client is read on."""
LOOK_S = 0.1
"""How often it is looked whether a client that has closed its half is still there."""


@dataclass
class Shared:
    """What all connections of a server have in common, in its loop's thread."""

    options: ServeOptions
    memory: Memory
    rejected: Callable[[int], None]
    """Counts a request that was no HTTP, too slow, too large, or one too many, by its status."""
    answer: Callable[[Request], Awaitable[Response]]
    connections: set[Connection] = field(default_factory=set)
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there are no connections."""
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(SCRATCH_BYTES)))
    """What was read is parsed before the next connection reads."""

    def __post_init__(self) -> None:
        self.all_closed.set()

    def add(self, connection: Connection) -> None:
        """Note an open connection."""
        self.connections.add(connection)
        self.all_closed.clear()

    def discard(self, connection: Connection) -> None:
        """Note that a connection is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self.all_closed.set()


class RefusedError(Exception):
    """Ends a connection, also from within the parser, with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    @property
    def response(self) -> bytes:
        """What is sent before the connection is closed."""
        retry = ((b"retry-after", b"1"),) if self.status == 503 else ()
        body = b'{"error":"%s"}' % self.sentence.encode()
        return Response(body, self.status, JSON, retry).head(close=True) + body


class Connection(asyncio.BufferedProtocol):
    """A connection that ends in time, whatever its client does."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self._loop = shared, asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = None
        self._arriving: Request | None = None
        """The request whose last byte is still to come."""
        self._waiting: deque[Request] = deque()
        """Requests that wait for the answers to those before them."""
        self._running: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._parsed_bytes, self._in_headers = 0, True
        self._unwanted_bytes = 0
        """Of a body that is answered already."""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._paused = False
        self._raised: RefusedError | None = None
        self._refusal: RefusedError | None = None

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, unless there are too many connections."""
        self._transport = transport
        self._parse_anew()
        self.shared.add(self)
        self._wait(self.shared.options.body_timeout_s)
        if len(self.shared.connections) > self.shared.options.most_connections:
            self._refuse(RefusedError(503, "too many connections"))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back what the client has asked for."""
        self.shared.discard(self)
        for timer in filter(None, (self._timer, self._unread)):
            timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._waiting.clear()
        self._arriving = self._running = self._task = self._parser = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to write what comes next: in its place, if it belongs to a body."""
        if self._arriving is not None and self._arriving.room is not None:
            return self._arriving.room[self._arriving.filled :]
        scratch = self.shared.scratch
        return scratch[: self._unwanted_bytes] if self._unwanted_bytes else scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Take so many bytes that were written there."""
        request = self._arriving
        if self._refusal is not None:
            return
        if request is not None and request.room is not None:
            request.filled += nbytes
            if not request.missing:
                self._end_body()
        elif self._unwanted_bytes:
            self._unwanted_bytes -= nbytes
            if not self._unwanted_bytes:
                self._end_body()
        else:
            self._parse(self.shared.scratch[:nbytes])

    def eof_received(self) -> bool:
        """Return whether answers are due; else the connection is closed.

        A client that has gone away looks the same as one that only sends no more, until something
        is sent to it: then its machine says so. HTTP/1.1 lets a "100 Continue" come first.
        """
        if self._arriving is not None and not self._arriving.answered:
            self._refuse(RefusedError(400, "the request ended before it was whole"))
        if not self._under_way or self._transport.is_closing():
            return False
        if self._refusal is None:
            self._last.keep_alive = False
        if self._running is not None and self._running.version == "1.1":
            self._transport.write(CONTINUE)
        self._loop.call_later(LOOK_S, self._look)
        return True

    def pause_writing(self) -> None:
        """Wait for a client that does not read what it is sent, but not for ever."""
        wait_s = self.shared.options.idle_timeout_s
        self._unread = self._loop.call_later(wait_s, self._transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        self._begin_next()

    def finish(self) -> None:
        """Close once all that is under way has its answers."""
        if self._under_way:
            self._last.keep_alive = False
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # What the parser says.

    def on_message_begin(self) -> None:
        """Begin a request, which has to be there within its time."""
        peer = self._transport.get_extra_info("peername")
        client = tuple(peer[:2]) if isinstance(peer, tuple) else None
        self._arriving = Request(time.monotonic(), client)
        self._parsed_bytes, self._in_headers = 0, True
        self._wait(self.shared.options.body_timeout_s)

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        self._now.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._now.pairs.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Have the request answered in its turn, and make room for a body of known size."""
        self._in_headers = False
        if self._parser.should_upgrade():  # it is parsed once more, see _fed
            if self._parser.get_method() == b"CONNECT":
                self._raise(RefusedError(405, "the method CONNECT is not served"))
            return
        request, most_bytes = self._now, self.shared.options.most_body_bytes
        request.end_head(self._parser, self._transport.write)
        size = int(request.headers.get(b"content-length", b"0"))
        if size > most_bytes:
            request.fail(too_large(most_bytes))
        elif size and not request.make_room(size, self.shared.memory):
            self._raise(RefusedError(503, FULL))
        self._waiting.append(request)
        if self._running is not None:  # what is sent ahead waits in the client's machine
            self._pause()
        self._begin_next()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body that came along with the headers, or whose size is unknown."""
        if not self._now.add(body, self.shared.memory, self.shared.options.most_body_bytes):
            self._raise(RefusedError(503, FULL))

    def on_message_complete(self) -> None:
        """Hand the body over."""
        if self._parser.should_upgrade():
            return
        request = self._now
        if request.missing:  # or it would show what was in memory before
            self._raise(RefusedError(400, "the body is not whole"))
        self._arriving = None
        request.end()
        self._wait_if_idle()

    # How it goes on.

    @property
    def _now(self) -> Request:
        assert self._arriving is not None
        return self._arriving

    @property
    def _last(self) -> Request:
        """The latest of the requests that are under way."""
        found = self._waiting[-1] if self._waiting else self._running
        assert found is not None
        return found

    @property
    def _under_way(self) -> bool:
        """Whether a request that has begun to be worked on, or waits for it, is unanswered."""
        return bool(self._waiting) or self._running is not None

    def _parse(self, data: memoryview) -> None:
        self._parsed_bytes += len(data)
        try:
            while data:
                data = self._fed(data)
        except httptools.HttpParserError:
            self._refuse(self._raised or RefusedError(400, "this is no HTTP request"))
            return
        options = self.shared.options
        # The parser keeps a header until it is whole, so bytes are counted before it tells.
        if self._in_headers and self._parsed_bytes > options.most_header_bytes:
            self._refuse(RefusedError(431, "the headers are too large"))
        elif self._parsed_bytes > 2 * (options.most_body_bytes + SCRATCH_BYTES):
            self._refuse(RefusedError(413, "the request is too large"))

    def _fed(self, data: memoryview) -> memoryview:
        """Have the parser take what came; return what it left.

        It takes what follows the head of a request to upgrade for another protocol, so the head
        goes through another parser, without that header.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            before, version = self._now, self._parser.get_http_version().encode()
            lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), before.url, version)]
            lines += [b"%s: %s" % pair for pair in before.pairs if pair[0] != b"upgrade"]
            self._parse_anew()
            self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
            if self._arriving is not None:
                self._arriving.began_s = before.began_s
            return data[upgrade.args[0] :]
        return data[:0]

    def _parse_anew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _end_body(self) -> None:
        """End a request whose body the parser has not seen; another one sees what follows."""
        self._parse_anew()
        self.on_message_complete()

    def _raise(self, refusal: RefusedError) -> None:
        """Refuse from within the parser, which wraps what is raised."""
        self._raised = refusal
        raise refusal

    def _begin_next(self) -> None:
        if self._running is None and self._unread is None and self._waiting:
            self._running = self._waiting.popleft()
            self._task = self._loop.create_task(self._answer(self._running))
        if self._paused and not self._waiting:
            self._paused = False
            self._transport.resume_reading()

    async def _answer(self, request: Request) -> None:
        try:
            response = await self.shared.answer(request)
        except Exception:
            LOG.exception("a request could not be answered")
            response = Response(b'{"error":"the server failed"}', 500, JSON, (CLOSE,))
        request.keep_alive &= CLOSE not in response.headers
        head = response.head(close=not request.keep_alive)
        # Head and body in one packet, or the client would be woken twice.
        body = response.body if request.method != "HEAD" else b""
        self._transport.writelines((head, body))
        self._end(request)

    def _end(self, request: Request) -> None:
        """Go on after an answer."""
        if request is self._arriving:
            self._unwanted_bytes = request.missing
        request.forget()
        self._running = self._task = None
        if not request.keep_alive:
            self._waiting.clear()
            self._transport.close()
            self._wait(self.shared.options.body_timeout_s)
        self._begin_next()
        if self._refusal is not None and not self._under_way:
            self._say_last(self._refusal)
        self._wait_if_idle()

    def _refuse(self, refusal: RefusedError) -> None:
        """Read no more; answer and close once what came whole before has its answers."""
        if self._refusal is not None:
            return
        self.shared.rejected(refusal.status)
        self._refusal = refusal
        self._stop_waiting()
        if self._arriving is not None and not self._arriving.answered:
            self._give_up(self._arriving)
        if not self._under_way:
            self._say_last(refusal)

    def _give_up(self, request: Request) -> None:
        """Work no more on a request that will never be whole."""
        if request is self._running and self._task is not None:
            self._task.cancel()
            self._running = self._task = None
        elif request in self._waiting:
            self._waiting.remove(request)
        self._arriving = None

    def _say_last(self, refusal: RefusedError) -> None:
        """Answer and close; what has been answered already is only closed."""
        if self._transport.is_closing():
            return
        if self._arriving is None:
            self._transport.write(refusal.response)
        # to close at once would tell a client that still sends that the connection was reset
        self._transport.write_eof()
        self._stop_waiting()
        self._timer = self._loop.call_later(LINGER_S, self._transport.abort)

    def _look(self) -> None:
        """Take back what is asked for by who has gone away; reading would not tell."""
        if self._transport.is_closing():
            return
        if self._transport.get_extra_info("socket").getsockopt(SOL_SOCKET, SO_ERROR):
            self._transport.abort()
        else:
            self._loop.call_later(LOOK_S, self._look)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # How long it waits.

    def _wait_if_idle(self) -> None:
        """Wait for a client while nothing else is waited for."""
        if self._refusal is not None or self._transport.is_closing():
            return
        if self._arriving is None:
            self._stop_waiting()
            if not self._under_way:
                self._wait(self.shared.options.idle_timeout_s)

    def _wait(self, wait_s: float) -> None:
        self._stop_waiting()
        self._timer = self._loop.call_later(wait_s, self._run_out)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run_out(self) -> None:
        """End a connection whose client takes too long."""
        if self._transport.is_closing():
            self._transport.abort()
        elif self._paused:  # it is we who do not read
            self._wait(self.shared.options.body_timeout_s)
        elif self._arriving is not None:
            self._refuse(RefusedError(408, "the request did not arrive in time"))
        elif self._transport.get_write_buffer_size():  # it does not even read what it was sent
            self._transport.abort()
        else:
            self._transport.close()
