"""A client that has sent all that it wants to send, and still reads."""

from __future__ import annotations

from socket import SO_ERROR, SOL_SOCKET

from sponge_env.serve.http.bounded import Bounded
from sponge_env.serve.http.shared import RefusedError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LOOK_S = 0.1
"""How often it is looked whether such a client is still there."""


class HalfClosed(Bounded):
    """A connection that stays until its answers are out, though nothing more comes.

    A client that has gone away looks the same, until something is sent to it: then its machine
    says so, and its requests are taken back. HTTP/1.1 lets a "100 Continue" come before an answer.
    """

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether answers are due; else the connection is closed."""
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            self._refuse(RefusedError(400, "the request ended before it was whole"))
        if not self._under_way or self.transport.is_closing():
            return False
        cycle.keep_alive = False
        running = self._running
        if running and running.scope["http_version"] == "1.1" and not running.response_started:
            self.transport.write(CONTINUE)
        self.loop.call_later(LOOK_S, self._look)
        return True

    def _look(self) -> None:
        """Take back what is asked for by who has gone away; reading would not tell."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(SOL_SOCKET, SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(LOOK_S, self._look)
