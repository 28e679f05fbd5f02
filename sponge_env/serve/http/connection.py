"""One HTTP connection: uvicorn's, which reads bodies in place and keeps clients within bounds.

Uvicorn copies a body four times on its way to the application. Here the kernel writes it where
the tensor is read, once its headers have said how long it is. Of 600 KB that saves half the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httptools
import numpy as np
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sponge_env.serve.http.body import BEGAN, EXTENSION, GONE
from sponge_env.serve.http.corked import Corked
from sponge_env.serve.http.in_place import InPlace
from sponge_env.serve.http.shared import SCRATCH_BYTES, RefusedError, Shared
from sponge_env.serve.memory import FULL

LINGER_S = 1.0
"""How long a refused client is read on, so that it reads why, and not that it was reset."""


class Connection(HttpToolsProtocol):
    """Parses one connection; :class:`.in_place.InPlace` brings it what arrives."""

    def __init__(self, shared: Shared, **named: Any) -> None:
        """Take uvicorn's arguments beside what connections share."""
        super().__init__(**named)
        self.shared = shared
        self._parsed_bytes = self._chunk_bytes = 0
        self._begun, self._in_headers = False, True
        self._body: memoryview | None = None
        self._filled = self._unwanted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._refusal: RefusedError | None = None
        self._last_word: RefusedError | None = None
        self._left = False
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_timer()
        if len(self.connections) > self.shared.options.most_connections:
            self._refuse(RefusedError(503, "too many connections"))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        if self._unread is not None:
            self._unread.cancel()
        self._forget()
        self.pipeline.clear()
        # uvicorn tells only the last request; one before it may still be under way
        self._abandon(self._running)
        self._abandon(self.cycle)
        super().connection_lost(exc)

    @property
    def room(self) -> memoryview:
        """Where to write what comes next: in its place, if it belongs to a body."""
        if self._body is not None:
            return self._body[self._filled :]
        scratch = self.shared.scratch
        return scratch[: self._unwanted] if self._unwanted else scratch

    def written(self, size: int) -> None:
        """Take so many bytes that were written there."""
        if self._last_word is not None:
            return
        if self._body is not None:
            self._filled += size
            if self._filled == len(self._body):
                self._end_body()
        elif self._unwanted:
            self._unwanted -= size
            if not self._unwanted:
                self._end_body()
        else:
            self._parsed_bytes += size
            self.data_received(self.shared.scratch[:size])  # type: ignore[arg-type]
            self._check_parsed()
            self._check_idle()

    def on_message_begin(self) -> None:
        """Begin a request, which has to be there within its time."""
        super().on_message_begin()
        extensions: Any = {BEGAN: time.monotonic()}
        self.scope["extensions"] = extensions
        self._forget()
        self._parsed_bytes, self._begun, self._in_headers = 0, True, True
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Start the application, and make room for the body, if its size is known."""
        self._in_headers = False
        super().on_headers_complete()
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        size = int(length)
        if 0 < size <= self.shared.options.most_body_bytes:
            self._make_room(size)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body that came along with the headers, or whose size is unknown."""
        if self.cycle.response_complete:  # nobody wants it
            return
        if self._body is None:
            self._hold_chunk(len(body))
            super().on_body(body)
            return
        end = self._filled + len(body)
        self._body[self._filled : end] = body
        self._filled = end

    def on_message_complete(self) -> None:
        """Let the application have the request."""
        self._stop_timer()
        self._body = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or is too large for it, and close."""
        self._refuse(self._refusal or RefusedError(400, "this is no HTTP request"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = Corked(cycle.transport)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Let go of the body; await the next request, or that the client reads what is left."""
        if self._running is not None:
            self._running.transport.flush()  # type: ignore[attr-defined]
            self._running.scope.pop("extensions", None)  # or an idle connection would keep it
        if self._running is self.cycle:
            self._forget()
        super().on_response_complete()
        if self._last_word is not None and not self._under_way:
            self._end_with(self._last_word)
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_timer()

    def pause_writing(self) -> None:
        """Wait for a client that does not read what it is sent, but not for ever."""
        super().pause_writing()
        self._unread = self.loop.call_later(
            self.shared.options.idle_timeout_s, self.transport.abort
        )

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if it does not even read what it was sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _make_room(self, size: int) -> None:
        self._hold(size)
        room: Any = np.empty(size, np.uint8)  # bytearray would write zeros first
        self.shared.memory.release_with(room, size)
        self._body, self._filled = memoryview(room), 0
        extensions: Any = self.scope["extensions"]
        extensions |= {EXTENSION: self._body, GONE: self.loop.create_future()}

    def _hold_chunk(self, size: int) -> None:
        """Count a part of a body whose size is unknown, until the next request."""
        self._hold(size)
        self._chunk_bytes += size

    def _hold(self, size: int) -> None:
        if not self.shared.memory.hold(size):
            self._fail(RefusedError(503, FULL))

    def _forget(self) -> None:
        """Let go of a body; what is still to come of one that is read in place is not kept."""
        if self._body is not None:
            self._unwanted = len(self._body) - self._filled
        self._body = None
        self.shared.memory.released.append(self._chunk_bytes)
        self._chunk_bytes = 0

    def _end_body(self) -> None:
        """End a request whose body the parser has not seen; another one sees what follows."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()

    def _check_parsed(self) -> None:
        """Close if headers, or chunks with what is around them, have no end.

        The parser keeps a header until it is whole, so its bytes are counted before it tells.
        """
        options = self.shared.options
        if self._in_headers and self._parsed_bytes > options.most_header_bytes:
            self._refuse(RefusedError(431, "the headers are too large"))
        elif self._parsed_bytes > 2 * (options.most_body_bytes + SCRATCH_BYTES):
            self._refuse(RefusedError(413, "the request is too large"))

    def _fail(self, refusal: RefusedError) -> None:
        self._refusal = refusal
        raise refusal

    def _check_idle(self) -> None:
        """Wait for a request again, if what came was none: uvicorn has ended its patience."""
        waited_for = self._timer or self.timeout_keep_alive_task
        if waited_for is None and not self._under_way and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def _under_way(self) -> bool:
        """Whether a request that has begun to be worked on, or waits for it, is unanswered."""
        running = self._running
        return bool(self.pipeline) or (running is not None and not running.response_complete)

    def _refuse(self, refusal: RefusedError) -> None:
        """Read no more; answer and close once what came whole before has its answers."""
        if self._last_word is not None:
            return
        self.shared.rejected(refusal.status)
        self._last_word = refusal
        self._stop_timer()
        self._forget()
        if self.cycle is not None and self.cycle.more_body:  # its request will never be whole
            self._give_up(self.cycle)
        if not self._under_way:
            self._end_with(refusal)

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """Work on a request no more, or not at all."""
        waiting = [entry for entry in self.pipeline if entry[0] is not cycle]
        self.pipeline.clear()
        self.pipeline.extend(waiting)
        self._abandon(cycle)
        if cycle is self._running:
            self._running = None

    def _end_with(self, refusal: RefusedError) -> None:
        """Answer and close; what has been answered already is only closed."""
        if self.transport.is_closing() or self._left:
            return
        current = self.cycle if self.cycle and self.cycle.scope is self.scope else None
        if current is None or not current.more_body or not current.response_started:
            self.transport.write(refusal.response)
        self._leave()

    def _leave(self) -> None:
        """Say that nothing more comes, and read on for a while what is of no use.

        To close at once would tell a client that still sends that the connection was reset.
        """
        self._left = True
        self.transport.write_eof()
        self._stop_timer()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _abandon(self, cycle: RequestResponseCycle | None) -> None:
        """Tell the application that nobody waits for what it works on."""
        if cycle is None or cycle.response_complete:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        extensions: Any = cycle.scope.get("extensions") or {}
        gone = extensions.get(GONE)
        if gone is not None and not gone.done():
            gone.set_result(None)

    def _start_timer(self) -> None:
        self._stop_timer()
        wait_s = self.shared.options.body_timeout_s
        self._timer = self.loop.call_later(wait_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        elif self.flow.read_paused:  # it is we who do not read
            self._start_timer()
        elif self._begun:
            self._refuse(RefusedError(408, "the request did not arrive in time"))
        else:
            self.transport.close()


def connections(shared: Shared) -> Callable[..., InPlace]:
    """Return what makes the connections of a server, in place of uvicorn's class."""
    return lambda **named: InPlace(Connection(shared, **named))
