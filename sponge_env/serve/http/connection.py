"""One HTTP connection: requests are parsed as they arrive and answered in their order.

httptools parses the head. The event loop then reads a body of known size straight into the memory
where its tensor is used, which for 600 KB halves the time. A refusal follows the answers to earlier
requests; then the client is read a moment longer, or it would see a reset instead of the reason.
"""

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

import httptools

from sponge_env.serve.http import messages
from sponge_env.serve.http.messages import Request, Response
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.wire.inline import run_inline
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.resources import MemoryLimit

LOG = logging.getLogger("sponge_env")

SCRATCH_BYTES = 2**16  # Read at once of what is discarded
HEAD_BYTES, CHUNK_BYTES = 2**10, 2**13
"""Read at once where a request begins, and of a body of unknown size; all of it is then parsed."""
OVERDUE_CHECK_S = 0.05  # Interval of checks for what takes too long
LINGER_S = 1.0  # How long a refused client is still read
CLOSE_CHECK_S = 0.01  # Interval of checks whether all connections are closed, at the end
HEALTH_CONNECTIONS = 16  # Further ones, for checks of health while the others are all in use
SLOW_S = 3.0  # A client that takes longer to send a body or read an answer may give way
PEER_CHECK_S = 0.1  # Interval of checks whether a client that has closed its half is still there


class Connections:
    """The connections of a server, and what they share; used in its loop's thread."""

    def __init__(
        self, options: ServeOptions, memory: MemoryLimit,
        answer: Callable[[Request], Awaitable[Response]], rejected: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Have requests answered; what is refused before that is ``rejected``, by HTTP status."""
        self.options, self.memory, self.answer, self.rejected = options, memory, answer, rejected
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))  # For all: parsed before the next reads
        self.open: set[Connection] = set()
        self.ending = False  # Whether each connection ends with its next answer
        self._pipelined: deque[Connection] = deque()  # With a pipelined request, in order of turns
        self.end_overdue()

    def make_room(self, newcomer: "Connection", of_body: bool = False) -> bool:
        """Close the longest idle connection, or of those that send a body; say if there is one."""
        known = [each for each in self.open if each.holds_body or not of_body]
        longest = min(known, key=lambda each: each.idle_since_s, default=newcomer)
        if longest is newcomer or longest.idle_since_s == math.inf:
            return False
        self.open.remove(longest)
        longest.transport.abort()
        return True

    def end_overdue(self) -> None:
        """End what takes too long, now and at each check: one timer for all, not one a request."""
        asyncio.get_running_loop().call_later(OVERDUE_CHECK_S, self.end_overdue)
        now_s = time.monotonic()
        for connection in [each for each in self.open if each.due_s <= now_s]:
            connection.on_timeout()

    def begin_later(self, connection: "Connection") -> None:
        """Begin a pipelined request: one of all connections in each turn of the event loop."""
        # So they do not hold up clients that wait for their answers.
        self._pipelined.append(connection)
        if len(self._pipelined) == 1:
            asyncio.get_running_loop().call_soon(self._begin_pipelined)

    def _begin_pipelined(self) -> None:
        connection = self._pipelined.popleft()
        if self._pipelined:
            asyncio.get_running_loop().call_soon(self._begin_pipelined)
        if connection in self.open:
            connection.begin_next()

    async def close(self, grace_s: float) -> None:
        """Close each connection once it has been answered, all after a grace period."""
        self.ending = True
        for connection in list(self.open):
            connection.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.open:
                    await asyncio.sleep(CLOSE_CHECK_S)
        for connection in list(self.open):
            connection.transport.abort()


class Connection(asyncio.BufferedProtocol):
    """A connection that ends in bounded time, whatever its client does."""

    def __init__(self, server: Connections) -> None:
        self.server, self._loop = server, asyncio.get_running_loop()
        self.transport: Any = None
        self._parser: Any = None
        self._arriving: Request | None = None  # The request whose last byte is still to come
        self._waiting: deque[Request] = deque()  # Requests that wait for those before them
        self._running: Request | None = None
        self._cancel: Callable[[], object] = int  # Ends the request that runs, if one does
        self._parsed_bytes, self._kept_bytes, self._in_headers = 0, 0, True
        self._skip_bytes = 0  # Rest of a body whose request has been answered already
        self.due_s = math.inf  # When what it waits for takes too long
        self._write_timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._refusal: WireError | None = None
        self._discards = False  # Whether what comes is read for the moment that closing takes
        self._health_only = False
        self._answered_s = time.monotonic()  # Of the last answer; at first, of the connection

    @property
    def idle_since_s(self) -> float:
        """Since when it waits for its client; infinite unless it may give way to another."""
        first = self._running or next(iter(self._waiting), None)
        if first not in (None, self._arriving) and self._write_timer is None:
            return math.inf
        since_s = self._answered_s if self._arriving is None else self._arriving.began_s
        active = first is not None or self.transport.get_write_buffer_size() > 0
        return math.inf if active and time.monotonic() < since_s + SLOW_S else since_s

    @property
    def holds_body(self) -> bool:
        """Whether a body of known size is still to come."""
        return self._arriving is not None and self._arriving.buffer is not None

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request; the longest idle of too many connections gives way."""
        self.transport = transport
        self._new_parser()
        self.server.open.add(self)
        self._start_timer(self.server.options.body_timeout_s)
        surplus = len(self.server.open) - self.server.options.max_connections
        if surplus > 0 and not self.server.make_room(self):
            self._health_only = True
            if surplus > HEALTH_CONNECTIONS:
                self._refuse(WireError("too many connections", 503))
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the client's requests."""
        self.server.open.discard(self)
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._cancel()
        self._waiting.clear()
        self._arriving = self._running = self._parser = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to: a body's own buffer, if there is one."""
        if self._arriving is not None and self._arriving.buffer is not None:
            return self._arriving.buffer[self._arriving.filled :]
        in_chunks = self._arriving is not None and not self._in_headers
        size = self._skip_bytes or (CHUNK_BYTES if in_chunks else HEAD_BYTES)
        return self.server.scratch[:size]

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes that were read into the buffer."""
        request, was_idle = self._arriving, self._latest is None
        if self._refusal is not None or self._discards:
            return
        if request is not None and request.buffer is not None:
            request.filled += nbytes
            if not request.missing:
                self._end_body()
        elif self._skip_bytes:
            self._skip_bytes -= nbytes
            if not self._skip_bytes:
                self._end_body()
        else:
            self._parse(self.server.scratch[:nbytes])
        # Not within the parser's callbacks; and what is pipelined waits for its turn.
        if was_idle:
            self.begin_next()
        if self._running is not None:
            self._running.resume()

    def eof_received(self) -> bool:
        """Return whether answers are due; else the connection is closed."""
        # A client that is gone looks like one that only sends no more, until something is sent to
        # it: then its machine reports an error. HTTP/1.1 allows a "100 Continue" for that.
        if self._arriving is not None and not self._arriving.answered:
            self._refuse(WireError("the request ended before it was complete"))
        if (latest := self._latest) is None or self.transport.is_closing():
            return False
        if self._refusal is None:
            latest.keep_alive = False
        if self._running is not None and self._running.version == "1.1":
            self.transport.write(messages.CONTINUE)
        self._loop.call_later(PEER_CHECK_S, self._check_peer)
        return True

    def pause_writing(self) -> None:
        """Wait for a client that does not read, for a limited time."""
        wait_s = self.server.options.idle_timeout_s
        self._write_timer = self._loop.call_later(wait_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._go_on()

    def finish(self) -> None:
        """Close once everything in progress is answered."""
        if self._latest is None:  # else its last answer does
            self.transport.close()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        """Begin a request, which has to arrive in time."""
        peer = self.transport.get_extra_info("peername")
        client = tuple(peer[:2]) if isinstance(peer, tuple) else None
        self._arriving = Request(time.monotonic(), client)
        self._parsed_bytes, self._kept_bytes, self._in_headers = 0, 0, True
        self._start_timer(self.server.options.body_timeout_s)

    def on_url(self, url: bytes) -> None:
        """Add a part of the address."""
        self._current.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; those after a body in chunks are ignored."""
        if self._in_headers:
            self._current.pairs.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Queue the request, and allocate its body where the size is known."""
        self._kept_bytes, self._in_headers = 0, False
        if self._parser.should_upgrade():  # it is parsed again, see _feed
            if self._parser.get_method() == b"CONNECT":
                raise WireError("the method CONNECT is not supported", 405)
            return
        request, max_bytes = self._current, self.server.options.max_body_bytes
        request.end_head(self._parser, self.transport.write)
        if self._health_only and not request.path.startswith("/v2/health/"):
            self._health_only = len(self.server.open) > self.server.options.max_connections
            if self._health_only:
                raise WireError("too many connections", 503)
        if (size := int(request.headers.get(b"content-length", b"0"))) > max_bytes:
            request.fail(messages.too_large(max_bytes))
        elif size:
            try:
                request.allocate(size, self.server.memory)
            except WireError:
                self.server.make_room(self, of_body=True)  # for those that come next
                raise
        if self._latest is not None and not self._paused:
            self._paused = True  # what is sent ahead waits in the client's machine
            self.transport.pause_reading()
        self._waiting.append(request)

    def on_body(self, body: bytes) -> None:
        """Add a part of a body that came with the headers, or whose size is unknown."""
        self._kept_bytes = 0
        self._current.add(body, self.server.memory, self.server.options.max_body_bytes)

    def on_message_complete(self) -> None:
        """Hand the body over."""
        if self._parser.should_upgrade():
            return
        request = self._current
        if request.missing:  # its buffer would show old contents of the memory
            raise WireError("the body is not complete")
        self._arriving = None
        request.complete()
        self._wait_if_idle()

    # Reading.

    @property
    def _current(self) -> Request:
        assert self._arriving is not None
        return self._arriving

    @property
    def _latest(self) -> Request | None:
        """The last request that is unanswered."""
        return self._waiting[-1] if self._waiting else self._running

    def _parse(self, data: memoryview) -> None:
        self._parsed_bytes += len(data)
        self._kept_bytes += len(data)
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError as error:
            refusal = error.__context__  # raised by a callback
            if not isinstance(refusal, WireError):
                refusal = WireError("this is not an HTTP request")
            self._refuse(refusal)
            return
        options = self.server.options
        # The parser keeps a header or trailer until it is complete, so bytes are counted here.
        if self._arriving is not None and self._kept_bytes > options.max_header_bytes:
            self._refuse(WireError("the headers are too large", 431))
        elif self._parsed_bytes > 2 * (options.max_body_bytes + SCRATCH_BYTES):
            self._refuse(WireError("the request is too large", 413))

    def _feed(self, data: memoryview) -> memoryview:
        """Parse data; return what is left of it."""
        # The parser takes everything after a request to upgrade for another protocol. So the head
        # goes through another parser, without that header.
        try:
            self._parser.feed_data(data)
            return data[:0]
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        before, version = self._current, self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), before.url, version)]
        lines += [b"%s: %s" % pair for pair in before.pairs if pair[0] != b"upgrade"]
        self._new_parser()
        self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        if self._arriving is not None:
            self._arriving.began_s = before.began_s
        return rest

    def _new_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _end_body(self) -> None:
        """End a request whose body the parser has not seen; a new one parses what follows."""
        self._new_parser()
        self.on_message_complete()

    # Answering.

    def _go_on(self) -> None:
        if self._waiting:
            self.server.begin_later(self)
        else:
            self.begin_next()

    def begin_next(self) -> None:
        """Begin the next request, if the one before is answered; go on reading after the last."""
        if self._running is None and self._write_timer is None and self._waiting:
            self._running = self._waiting.popleft()
            self._cancel = run_inline(self._answer(self._running))
        if self._paused and not self._waiting:
            self._paused = False
            self.transport.resume_reading()

    async def _answer(self, request: Request) -> None:
        try:
            response = await self.server.answer(request)
        except Exception:
            LOG.exception("a request could not be answered")
            response = Response(b'{"error":"the server failed"}', 500, headers=(messages.CLOSE,))
        request.keep_alive &= messages.CLOSE not in response.headers
        if self.server.ending and request is self._latest:
            request.keep_alive = False
        if b"expect" in request.headers and request is self._arriving:
            request.keep_alive = False  # the client may never send the body that it announced
        head = response.head(close=not request.keep_alive)
        # In one packet, or the client would be woken twice, and not at the end of the loop's turn.
        data, sent = head + response.body if request.method != "HEAD" else head, 0
        socket = self.transport.get_extra_info("socket")
        if socket and not (self.transport.is_closing() or self.transport.get_write_buffer_size()):
            with suppress(OSError):
                sent = os.write(socket.fileno(), data)
        if sent < len(data):
            self.transport.write(memoryview(data)[sent:])
        self._end(request)

    def _end(self, request: Request) -> None:
        if request is self._arriving:
            self._skip_bytes = request.missing
        request.release()
        self._running, self._answered_s = None, time.monotonic()
        if not request.keep_alive:
            self._waiting.clear()
            if request is self._arriving and not self.transport.is_closing():
                self._arriving = None
                self._linger()
                return
            self.transport.close()
            self._start_timer(self.server.options.body_timeout_s)
        self._go_on()
        if self._refusal is not None and self._latest is None:
            self._send_refusal(self._refusal)
        self._wait_if_idle()

    def _refuse(self, refusal: WireError) -> None:
        """Read no more; answer and close once earlier requests are answered."""
        if self._refusal is not None:
            return
        self.server.rejected(refusal.status)
        self._refusal = refusal
        self.due_s = math.inf
        if (request := self._arriving) is not None and not request.answered:
            if request is self._running:
                self._cancel()
                self._running = None
            elif request in self._waiting:
                self._waiting.remove(request)
            self._arriving = None
        if self._latest is None:
            self._send_refusal(refusal)

    def _send_refusal(self, refusal: WireError) -> None:
        """Answer and close; where the request has been answered already, only close."""
        if self.transport.is_closing():
            return
        if self._arriving is None:
            response = messages.error_response(refusal, {})
            self.transport.write(response.head(close=True) + response.body)
        self._linger()

    def _linger(self) -> None:
        """Close after a moment in which what still comes is discarded."""
        self.transport.write_eof()
        self._discards, self.due_s = True, math.inf
        self._loop.call_later(LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        self.transport.close()  # once its answers are read
        self._start_timer(self.server.options.body_timeout_s)

    def _check_peer(self) -> None:
        """Cancel the requests of a client that is gone: after its EOF, no read reports that."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(SOL_SOCKET, SO_ERROR):
            self.transport.abort()
        else:
            self._loop.call_later(PEER_CHECK_S, self._check_peer)

    # Timeouts.

    def _wait_if_idle(self) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._arriving is None:
            self.due_s = math.inf
            if self._latest is None:
                self._start_timer(self.server.options.idle_timeout_s)

    def _start_timer(self, wait_s: float) -> None:
        self.due_s = time.monotonic() + wait_s

    def on_timeout(self) -> None:
        """Close the connection, or refuse the request that does not arrive."""
        self.due_s = math.inf
        if self.transport.is_closing():
            self.transport.abort()
        elif self._paused:  # the server itself does not read
            self._start_timer(self.server.options.body_timeout_s)
        elif self._arriving is not None:
            self._refuse(WireError("the request did not arrive in time", 408))
        elif self.transport.get_write_buffer_size():  # it does not even read its answers
            self.transport.abort()
        else:
            self.transport.close()
