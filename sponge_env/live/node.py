"""A node: launches a replica for each connection of a front end (:mod:`sponge_env.live.remote`)."""

import json
import logging
import select
import socket
import threading
import time
from contextlib import ExitStack, suppress

from sponge_env.errors import WorkerError
from sponge_env.live import wire
from sponge_env.live.local import LocalLauncher, LocalReplica
from sponge_env.live.protocol import Answered, Death, Ready
from sponge_env.live.wire import Frame, Link, PeerError, TensorLayout

LOG = logging.getLogger("sponge_env")

MAX_STRANGERS, MAX_CONNECTIONS = 32, 128  # Connections at a time: without proof yet, and in all
GONE_MS = 10_000  # A front end that acknowledges nothing for so long is gone
END_S = 1.0  # How long a connection may take to end


class NodeServer:
    """Accepts the connections of front ends that know the token."""

    def __init__(self, listener: socket.socket, launcher: LocalLauncher, token: str) -> None:
        self.launcher, self.token, self.open = launcher, token, set[ReplicaConnection]()
        names = ("limiter", "period_s", "tick_s")
        own = {name: getattr(launcher, name) for name in names} | {"cpus": len(launcher.cpus)}
        self.facts = json.dumps(launcher.facts | own).encode()
        self._listener = listener
        # a signal that comes just before the wait is noticed at its end
        listener.settimeout(END_S)

    def serve(self) -> None:
        """Accept connections until this is interrupted, but none while one of them retires it."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # retired, or too many files
                LOG.debug("no connection is accepted: %s", error)
                time.sleep(wire.BEAT_S)
                while any(connection.retires for connection in list(self.open)):
                    time.sleep(wire.BEAT_S)
                with suppress(OSError):  # its port may be another's meanwhile: tried again
                    self._listener.listen()
                continue
            strangers = [connection for connection in list(self.open) if connection.is_stranger]
            if len(strangers) >= MAX_STRANGERS:
                oldest = min(strangers, key=lambda connection: connection.since_s)
                hang_up(oldest.sock)
                oldest.join(END_S)
            if len(self.open) >= MAX_CONNECTIONS:
                sock.close()
                continue
            connection = ReplicaConnection(self, sock)
            try:
                connection.start()
            except RuntimeError as error:  # too many threads
                LOG.debug("no connection is served: %s", error)
                self.open.discard(connection)
                sock.close()

    def retire(self) -> None:
        """Refuse connections for now."""
        hang_up(self._listener)

    def close(self) -> None:
        """End all connections, and with them their replicas."""
        connections = list(self.open)
        for connection in connections:
            hang_up(connection.sock)
        for connection in connections:
            if connection.is_alive():  # else it has just been accepted
                connection.join(END_S)


class ReplicaConnection(threading.Thread):
    """A front end's connection, and the replica on it, if it has launched one."""

    def __init__(self, server: NodeServer, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock, self.since_s = sock, time.monotonic()
        self.is_stranger, self.retires = True, False
        self._server = server
        self._replica: LocalReplica | None = None
        self._status = Frame(wire.STATUS)
        self._size = 0  # Tasks of the batch that runs or is coming in
        server.open.add(self)

    def run(self) -> None:
        """Serve until the connection or its replica ends."""
        with ExitStack() as cleanup:
            cleanup.callback(self._server.open.discard, self)
            cleanup.enter_context(self.sock)
            try:
                self._epoll = cleanup.enter_context(select.epoll())
                self._link = Link(self._epoll, self._room)
                self._meet()
                self._serve()
            except WorkerError as error:
                with suppress(OSError):
                    self._link.send(Frame(wire.END), [str(error).encode()[: wire.MAX_TEXT_BYTES]])
            except (OSError, LookupError) as error:
                LOG.debug("a connection has ended: %r", error)
            finally:
                if self._replica:
                    self._replica.close()

    def _meet(self) -> None:
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
        wire.authenticate(self.sock, self._server.token, wire.NODE, self.since_s + wire.HANDSHAKE_S)
        self.is_stranger = False
        self._link.open(self.sock)
        self._link.send(Frame(wire.FACTS), [self._server.facts])

    def _serve(self) -> None:
        link, beat_s = self._link, 0.0
        while True:
            wait_s = max(0.0, beat_s + wire.BEAT_S - time.monotonic())
            ready = [number for number, _ in self._epoll.poll(wait_s)]
            if self.sock.fileno() in ready:
                link.flush()
                while found := link.take():
                    self._obey(found[0])
            if self._replica and self._replica.fileno() in ready:
                self._tell(self._replica)
            if time.monotonic() >= beat_s + wire.BEAT_S:
                beat_s = time.monotonic()
                if not link.backlog:
                    self._beat()

    def _room(self, frame: Frame) -> memoryview:
        """Return where a batch belongs; anything else has no body."""
        if frame.kind != wire.START:
            return memoryview(b"")
        if self._replica is None or self._size or not 0 < frame.size <= self._layout.batch_max:
            raise PeerError(f"it sends a batch of {frame.size} tasks")
        self._size = frame.size
        return wire.as_bytes(self._replica.tensors.inputs)[: frame.size * self._layout.input_bytes]

    def _obey(self, frame: Frame) -> None:
        replica, launcher = self._replica, self._server.launcher
        has_cores = 0 < frame.cores <= launcher.facts["at_most"][0]
        if frame.kind == wire.LAUNCH and not replica and has_cores:
            self._layout = TensorLayout(launcher.jobs[frame.variant])
            stage, fast = frame.variant, bool(frame.size)
            self._replica = launcher.launch(0, frame.cores, stage=stage, full_speed=fast)
            self._epoll.register(self._replica, select.EPOLLIN)
        elif frame.kind == wire.RETIRE:
            self.retires = True
            self._server.retire()
        elif frame.kind == wire.START and replica:
            replica.order(frame.batch_id, frame.size, frame.variant)
        elif frame.kind == wire.LIMIT and replica and has_cores:
            replica.limit(frame.cores)
            self._beat()
        else:
            raise PeerError(f"it sends a frame of kind {frame.kind}")

    def _beat(self) -> None:
        if replica := self._replica:
            used_s = replica.cpu_s(), replica.throttled_s()
            self._status = Frame(wire.STATUS, 0, 0, 0, 0, 0.0, replica.granted_cores(), *used_s)
        self._link.send(self._status)

    def _tell(self, replica: LocalReplica) -> None:
        event = replica.poll()
        # what else it says is a beat old: to read limits takes a while
        status = self._status._replace(cpu_s=replica.cpu_s())
        if isinstance(event, Ready):
            self._link.send(status._replace(kind=wire.READY))
        elif isinstance(event, Answered):
            size, self._size = self._size, 0
            told = status._replace(kind=wire.ANSWER, size=size, batch_id=event.batch_id)
            told = told._replace(took_s=event.finished_s - event.started_s)
            self._link.send(told, self._layout.answers(replica.tensors, size, event.failed))
        elif isinstance(event, Death):
            raise WorkerError(event.reason)


def hang_up(sock: socket.socket) -> None:
    """Have whoever uses a socket notice that it has ended."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
