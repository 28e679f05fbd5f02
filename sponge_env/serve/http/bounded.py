"""Uvicorn's HTTP connection, with bounds for clients: how long they may take, and how it ends.

Whoever is refused is told so after the answers to what came whole before, and is read on for a
moment, so that it reads why, and not that the connection was reset.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sponge_env.serve.http.body import BEGAN, GONE
from sponge_env.serve.http.corked import Corked
from sponge_env.serve.http.shared import RefusedError, Shared

LINGER_S = 1.0
"""How long a refused client is read on."""


class Bounded(HttpToolsProtocol):
    """A connection that ends in time, whatever its client does."""

    def __init__(self, shared: Shared, **named: Any) -> None:
        """Take uvicorn's arguments beside what connections share."""
        super().__init__(**named)
        self.shared = shared
        self._begun = False
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

    def on_message_begin(self) -> None:
        """Begin a request, which has to be there within its time."""
        super().on_message_begin()
        extensions: Any = {BEGAN: time.monotonic()}
        self.scope["extensions"] = extensions
        self._begun = True
        self._start_timer()

    def on_message_complete(self) -> None:
        """Let the application have the request."""
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or is too large for it, and close."""
        self._refuse(self._refusal or RefusedError(400, "this is no HTTP request"))

    def on_response_complete(self) -> None:
        """Await the next request, or that the client reads what is left."""
        if self._running is not None:
            self._running.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()
        if self._last_word is not None and not self._under_way:
            self._end_with(self._last_word)
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_timer()

    def pause_writing(self) -> None:
        """Wait for a client that does not read what it is sent, but not for ever."""
        super().pause_writing()
        wait_s = self.shared.options.idle_timeout_s
        self._unread = self.loop.call_later(wait_s, self.transport.abort)

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = Corked(cycle.transport)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    @property
    def _under_way(self) -> bool:
        """Whether a request that has begun to be worked on, or waits for it, is unanswered."""
        running = self._running
        return bool(self.pipeline) or (running is not None and not running.response_complete)

    def _forget(self) -> None:
        """Let go of what was read of a request."""

    def _fail(self, refusal: RefusedError) -> None:
        """Refuse from within the parser."""
        self._refusal = refusal
        raise refusal

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
        # to close at once would tell a client that still sends that the connection was reset
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

    def _check_idle(self) -> None:
        """Wait for a request again, if what came was none: uvicorn has ended its patience."""
        waited_for = self._timer or self.timeout_keep_alive_task
        if waited_for is None and not self._under_way and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

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
