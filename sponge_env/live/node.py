"""A node: launches a replica for each connection of a front end (:mod:`sponge_env.live.remote`)."""

from __future__ import annotations

import logging
import math
import select
import socket
import threading
import time
from contextlib import suppress

from sponge_env.errors import WorkerError
from sponge_env.live import wire
from sponge_env.live.local import LocalLauncher, LocalReplica
from sponge_env.live.replica import Answer, Death, Ready
from sponge_env.live.wire import Frame, Kind, Layout, Link, WireError

LOG = logging.getLogger("sponge_env")

MAX_STRANGERS, MAX_CONNECTIONS = 32, 256
"""Connections at a time that have not proved to know the token, and in all."""
GONE_MS = 10_000
"""A front end that acknowledges nothing for so long is gone."""
END_S = 1.0
"""How long all connections together may take to end."""


class Hosted:
    """A replica on its connection, or none: such a connection shows that the node lives."""

    def __init__(self, sock: socket.socket) -> None:
        self._link, self._replica = Link(sock, self._room), None
        self._size = 0
        """Tasks of the batch that runs or is coming in."""

    _replica: LocalReplica | None

    def launch(self, launcher: LocalLauncher, stage: int, cores: float, full_speed: bool) -> None:
        """Launch what a front end asks for."""
        self._layout = Layout(launcher.jobs[stage])
        self._replica = launcher.launch(0, cores, stage=stage, full_speed=full_speed)

    def serve(self) -> None:
        """Serve until the connection ends, an ``OSError``, or the replica, a ``WorkerError``."""
        link, replica = self._link, self._replica
        poller = select.poll()
        if replica:
            poller.register(replica, select.POLLIN)
        beat_s = 0.0
        while True:
            poller.register(link.sock, select.POLLIN | (select.POLLOUT if link.backlog else 0))
            wait_s = max(0.0, beat_s + wire.BEAT_S - time.monotonic())
            ready = [number for number, _ in poller.poll(wait_s * 1000)]
            if link.sock.fileno() in ready:
                link.flush()
                while found := link.take():
                    self._obey(*found)
            if replica and replica.fileno() in ready:
                self._tell(replica)
            if time.monotonic() >= beat_s + wire.BEAT_S:
                beat_s = time.monotonic()
                if not link.backlog:
                    self._report()

    def _room(self, frame: Frame) -> memoryview:
        """Return where a batch belongs; anything else has no body."""
        if frame.kind != Kind.START or self._replica is None:
            return memoryview(b"")
        if self._size or not 0 < frame.size <= self._layout.batch_max:
            raise WireError(f"it sends a batch of {frame.size} tasks")
        self._size = frame.size
        return wire.as_bytes(self._replica.tensors.inputs)[: frame.size * self._layout.input_bytes]

    def _obey(self, frame: Frame, _: memoryview) -> None:
        replica = self._replica
        if replica is None or frame.kind not in (Kind.START, Kind.LIMIT):
            raise WireError(f"it sends a frame of kind {frame.kind}")
        if frame.kind == Kind.START:
            replica.order(frame.batch_id, frame.size, frame.variant)
        elif 0 < frame.cores < math.inf:
            replica.limit(frame.cores)
            self._report()

    def _report(self, frame: Frame = Frame(Kind.STATUS), parts: wire.Parts = ()) -> None:  # noqa: B008
        if (replica := self._replica) is not None:
            frame = frame._replace(
                cores=replica.granted_cores(),
                cpu_s=replica.cpu_s(),
                throttled_s=replica.throttled_s(),
            )
        self._link.send(frame, parts)

    def _tell(self, replica: LocalReplica) -> None:
        event = replica.poll()
        if isinstance(event, Ready):
            self._report(Frame(Kind.READY))
        elif isinstance(event, Answer):
            took_s, size = event.finished_s - event.started_s, self._size
            frame = Frame(Kind.ANSWER, size=size, batch_id=event.batch_id, took_s=took_s)
            self._size = 0
            self._report(frame, self._layout.answers(replica.tensors, size, event.failed))
        elif isinstance(event, Death):
            raise WorkerError(event.reason)

    def close(self, reason: str) -> None:
        """End the replica; say why, if it has a reason of its own."""
        if reason:
            with suppress(OSError):
                self._link.send(Frame(Kind.END), [reason.encode()[: wire.MAX_JSON_BYTES]])
        if self._replica:
            self._replica.close()


class NodeServer:
    """Accepts the connections of front ends that know the token."""

    def __init__(self, listener: socket.socket, launcher: LocalLauncher, token: str) -> None:
        self._listener, self._launcher, self._token = listener, launcher, token
        limits = {"limiter": launcher.limiter, "cpus": len(launcher.cpus)}
        periods = {"period_s": launcher.period_s, "tick_s": launcher.tick_s}
        self._facts = launcher.facts | limits | periods
        self._open: dict[socket.socket, threading.Thread] = {}
        self._strangers: list[socket.socket] = []
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Accept connections until this is interrupted."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:  # too many files: others are closed soon
                LOG.warning("no connection can be accepted: %s", error)
                time.sleep(wire.BEAT_S)
                continue
            with self._lock:
                if len(self._open) >= MAX_CONNECTIONS:
                    sock.close()
                    continue
                if len(self._strangers) >= MAX_STRANGERS:
                    hang_up(self._strangers.pop(0))
                self._strangers.append(sock)
                thread = threading.Thread(target=self._meet, args=(sock,), daemon=True)
                self._open[sock] = thread
            thread.start()

    def _meet(self, sock: socket.socket) -> None:
        hosted, reason = None, ""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
            until_s = time.monotonic() + wire.HANDSHAKE_S
            wire.admit(sock, self._token, until_s)
            self._strangers.remove(sock)
            hello = wire.read_json(sock, Kind.HELLO, until_s)
            wire.send_json(sock, Kind.SETUP, self._facts)
            hosted = Hosted(sock)
            if launch := hello.get("launch"):
                hosted.launch(self._launcher, *map(launch.get, ("stage", "cores", "full_speed")))
            hosted.serve()
        except WorkerError as error:
            reason = str(error)
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            LOG.debug("a connection has ended: %r", error)
        finally:
            if hosted:
                hosted.close(reason)
            with self._lock:
                del self._open[sock]
                with suppress(ValueError):
                    self._strangers.remove(sock)
            sock.close()

    def close(self) -> None:
        """End all connections, and with them their replicas."""
        with self._lock:
            threads = dict(self._open)
        for sock in threads:
            hang_up(sock)
        for thread in threads.values():
            thread.join(END_S)


def hang_up(sock: socket.socket) -> None:
    """Have whoever uses a connection notice that it has ended."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
