"""Replicas on other machines: the front end's side of :mod:`sponge_env.live.node`."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.live import wire
from sponge_env.live.child import Job
from sponge_env.live.replica import Answer, Death, Event, LiveConfig, Ready
from sponge_env.live.stages import Stages
from sponge_env.live.wire import Frame, Kind, Layout, Link, WireError

LOG = logging.getLogger("sponge_env")

SILENT_S, GONE_S = 0.3, 0.7
"""Without a beat for so long a replica gets no work, and counts as dead."""
RETRY_S = 0.5
"""Pause before a node is tried again."""


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnreachableError(WorkerError):
    """A node that is not there, for now."""


def parse_addresses(text: str) -> list[Address]:
    """Return the nodes of ``HOST:PORT,...``, or raise ``ConfigError``."""
    found = []
    for part in text.split(","):
        host, _, port = part.rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"--replicas must be local or nodes as HOST:PORT,..., not {text!r}")
        found.append(Address(host.strip("[]"), int(port)))
    return found


def dial(address: Address, token: str, hello: dict[str, Any]) -> tuple[socket.socket, Any]:
    """Connect to a node and say hello; return the connection and the node's facts.

    It takes :data:`~.wire.HANDSHAKE_S` at most. That a node is not there or refuses is a
    ``WorkerError``.
    """
    until_s = time.monotonic() + wire.HANDSHAKE_S
    try:
        sock = socket.create_connection(address, timeout=wire.HANDSHAKE_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.introduce(sock, token, until_s)
            wire.send_json(sock, Kind.HELLO, hello)
            return sock, wire.read_json(sock, Kind.SETUP, until_s)
        except BaseException:
            sock.close()
            raise
    except WireError as error:
        raise WorkerError(f"node {address} cannot be used: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreachableError(f"node {address} cannot be reached: {reason}") from None


def check_node(address: Address, facts: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a node that does not serve what this side needs, as a ``WorkerError``."""
    for what in ("version", "models", "tensors", "core_unit"):
        if facts.get(what) != own[what]:
            raise WorkerError(
                f"node {address} has {what.replace('_', ' ')} {facts.get(what)}, here it is "
                f"{own[what]}; start both with the same version, --model or --scenario"
            )
    for what, option in (("batches", "batch"), ("cores", "cores")):
        if any(theirs < ours for theirs, ours in zip(facts[what], own[what], strict=True)):
            raise WorkerError(
                f"node {address} has {what} of at most {facts[what]}, here they are up to "
                f"{own[what]}; start it with a larger --{option}"
            )


class RemoteReplica:
    """A replica on a node, which may not have its connection yet. Implements ``Replica``.

    Its descriptor is there from the start: an epoll that watches a bell, and the connection once
    there is one. :meth:`attach`, :meth:`fail` and :meth:`look` are for any thread.
    """

    pid: int | None = None
    limits_late = True

    def __init__(self, id: int, job: Job, where: str, cores: float, granted_cores: float) -> None:
        """Make one to be launched at ``where``, with physical cores as asked and as granted."""
        self.id, self.where, self.cores = id, where, cores
        self.silent = self.closed = False
        self._layout, self._link = Layout(job), None
        self._last = Frame(Kind.STATUS, cores=granted_cores)
        """What the node reported last."""
        self._event_cpu_s = 0.0
        self._unsent: list[tuple[Frame, wire.Parts]] = []
        self._event: Event | None = None
        self._answers: list[NDArray[Any]] = []
        self._news: deque[socket.socket | str] = deque()
        """Its connection, and why it dies."""
        self._lock = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self.fileno = self._epoll.fileno

    _link: Link | None

    def attach(self, sock: socket.socket) -> None:
        """Hand over the connection on which a node has launched it."""
        if not self._tell(sock):
            sock.close()

    def fail(self, reason: str) -> None:
        """Have it die, with a reason for the user."""
        self._tell(reason)

    def _tell(self, news: socket.socket | str) -> bool:
        with self._lock:  # a closed bell's number may be another file's
            if not self.closed:
                self._news.append(news)
                os.eventfd_write(self._bell, 1)
            return not self.closed

    def look(self, now_s: float) -> None:
        """Notice that the node is silent, or has been for too long."""
        link = self._link
        if link is None or now_s < link.heard_s + SILENT_S or link.has_news():
            return
        self.silent = True
        if now_s > link.heard_s + GONE_S and not self._news:
            self.fail(f"node {self.where} has given no sign of life for {GONE_S:g} s")

    def start(self, batch_id: int, tensors: Sequence[NDArray[Any]], variant: int = 0) -> None:
        """Send the inputs, as far as the kernel takes them; the rest goes with :meth:`poll`."""
        frame = Frame(Kind.START, variant, len(tensors), batch_id=batch_id)
        self._send(frame, self._layout.inputs(tensors))

    def answers(self, size: int) -> list[NDArray[Any]]:
        """Return what came last."""
        return self._answers[:size]

    def limit(self, cores: float) -> None:
        """Ask the node, which answers with what is granted."""
        self.cores = cores
        self._send(Frame(Kind.LIMIT, cores=cores))

    def _send(self, frame: Frame, parts: wire.Parts = ()) -> None:
        if self._link is None:
            self._unsent.append((frame, parts))
            return
        with suppress(OSError):  # the end of the connection shows at the next poll
            self._link.send(frame, parts)
        self._watch(self._link)

    def _watch(self, link: Link) -> None:
        """Let the descriptor be readable also when more can be sent, if there is more."""
        mask = select.EPOLLIN | (select.EPOLLOUT if link.backlog else 0)
        if link.watched != mask:
            (self._epoll.modify if link.watched else self._epoll.register)(link.sock, mask)
            link.watched = mask

    def poll(self) -> Event | None:
        """Send what is left over, and take in the next event."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        self._take_in()
        event, self._event = self._event, None
        return event

    def _take_in(self) -> None:
        """Take in what has come, up to the next event; after a death nothing comes."""
        if self._event is not None or self.closed:
            return
        try:
            while self._news:
                news = self._news.popleft()
                if isinstance(news, str):
                    raise WorkerError(news)
                self._link = Link(news, self._room)
                for frame, parts in self._unsent:
                    self._link.send(frame, parts)
                self._watch(self._link)
            if (link := self._link) is None:
                return
            if link.backlog:
                link.flush()
                self._watch(link)
            while self._event is None and (found := link.take()):
                self._event = self._event_of(*found)
            self.silent = self.silent and time.monotonic() > link.heard_s + SILENT_S
        except WorkerError as error:
            self._event = Death(str(error))
        except (OSError, ValueError) as error:
            self._event = Death(f"node {self.where}: {error}")

    def _room(self, frame: Frame) -> memoryview:
        ends = frame.kind == Kind.END
        most = wire.MAX_JSON_BYTES if ends else self._layout.max_answer_bytes
        if frame.length > most:
            raise WireError(f"it sends {frame.length} bytes")
        return memoryview(bytearray(frame.length))

    def _event_of(self, frame: Frame, body: memoryview) -> Event | None:
        if frame.kind == Kind.END:
            raise WorkerError(bytes(body).decode(errors="replace"))
        self._last, now_s = frame, time.monotonic()
        before_s = self._event_cpu_s
        if frame.kind in (Kind.READY, Kind.ANSWER):
            self._event_cpu_s = frame.cpu_s
        if frame.kind == Kind.READY:
            return Ready(now_s)
        if frame.kind != Kind.ANSWER:
            return None
        self._answers, failed = self._layout.read(body, frame.size)
        # the node's clock is its own: what passed beside the batch counts as waiting
        begun_s = now_s - frame.took_s
        return Answer(frame.batch_id, begun_s, now_s, frame.cpu_s - before_s, failed)

    def _report(self) -> Frame:
        """Return the node's last report, and leave an event that comes before it to the poll."""
        before = self._event
        self._take_in()
        if self._event is not before:
            os.eventfd_write(self._bell, 1)
        return self._last

    def granted_cores(self) -> float:
        """Return the physical cores in force as the node reports them."""
        return self._report().cores

    def cpu_s(self) -> float:
        """Return the CPU time as the node reports it."""
        return self._report().cpu_s

    def throttled_s(self) -> float:
        """Return the time stopped as the node reports it."""
        return self._report().throttled_s

    def kill(self) -> None:
        """End the connection, and with it the replica."""
        if self._link is not None:
            with suppress(OSError):
                self._link.sock.shutdown(socket.SHUT_RDWR)
        self.fail("it was killed")

    def close(self) -> None:
        """Close what there is; a connection that comes later is closed at once."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            os.close(self._bell)
            self._epoll.close()
        socks = [news for news in self._news if not isinstance(news, str)]
        for sock in [*socks, *([self._link.sock] if self._link else [])]:
            sock.close()


class Node:
    """A node, and a connection that shows whether it lives."""

    def __init__(self, address: Address, token: str, own: dict[str, Any]) -> None:
        """Begin to watch it, from a thread; ``own`` is what this side serves."""
        self.address, self.beats, self.facts = address, False, dict[str, Any]()
        self.error: WorkerError | None = None
        """Why it cannot be used."""
        self.tried, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(token, own), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of it; the thread ends soon."""
        self._closed.set()
        self._thread.join(SILENT_S)

    def _watch(self, token: str, own: dict[str, Any]) -> None:
        while not self._closed.is_set():
            try:
                sock, self.facts = dial(self.address, token, {})
                with sock:
                    check_node(self.address, self.facts, own)
                    self._follow(sock)
            except WorkerError as error:
                self.error = error
            except OSError:
                self.error = UnreachableError(f"node {self.address} closed the connection")
            self.beats = False
            self.tried.set()
            self._closed.wait(RETRY_S)

    def _follow(self, sock: socket.socket) -> None:
        heard_s = time.monotonic()
        sock.settimeout(wire.BEAT_S)
        while (silent_s := time.monotonic() - heard_s) < wire.HANDSHAKE_S:
            if self._closed.is_set():
                return
            self.beats = silent_s < SILENT_S
            self.tried.set()
            with suppress(TimeoutError):
                if not sock.recv(4096):
                    break
                heard_s = time.monotonic()
        raise ConnectionResetError


class RemoteLauncher(Stages):
    """Starts replicas on nodes that live, each where fewest cores per CPU are held.

    Implements ``Launcher``. A node that is there but cannot be used is a ``WorkerError``, and so is
    it if none is there; of others that are not there yet it warns.
    """

    def __init__(self, configs: Sequence[LiveConfig], addresses: Sequence[Address], token: str):
        super().__init__(configs)
        self._token, self._replicas = token, list[RemoteReplica]()
        self._closed = threading.Event()
        self.nodes = [Node(address, token, self.facts) for address in addresses]
        for node in self.nodes:
            node.tried.wait()
        try:
            for node in self.nodes:
                if node.error is not None:
                    if not isinstance(node.error, UnreachableError) or len(self._beating()) == 0:
                        raise node.error
                    LOG.warning("going on without it for now: %s", node.error)
        except BaseException:
            self.close()
            raise
        facts = [node.facts for node in self._beating()]
        kinds = sorted({each["limiter"] for each in facts})
        self.limiter = f"remote-{'+'.join(kinds)}"
        self.period_s = max((each["period_s"] for each in facts), default=0.0)
        self.tick_s = max((each["tick_s"] for each in facts), default=0.0)
        threading.Thread(target=self._watch, daemon=True).start()

    def _beating(self) -> list[Node]:
        return [node for node in self.nodes if node.beats]

    def _watch(self) -> None:
        while not self._closed.wait(wire.BEAT_S / 2):
            now_s = time.monotonic()
            for replica in self._replicas:
                replica.look(now_s)

    def launch(
        self, id: int, cores: float, *, stage: int = 0, full_speed: bool = False
    ) -> RemoteReplica:
        """Return a replica that gets its connection later."""
        if not (beating := self._beating()):
            raise WorkerError(f"no node gives a sign of life: {self.nodes[0].error}")
        node = min(beating, key=self._load)
        granted_cores = float(node.facts["cpus"]) if full_speed else cores
        replica = RemoteReplica(id, self.jobs[stage], str(node.address), cores, granted_cores)
        self.start(replica, lambda: node.address, stage, full_speed)
        return replica

    def _load(self, node: Node) -> float:
        here = (r for r in self._replicas if r.where == str(node.address) and not r.closed)
        return sum(replica.cores for replica in here) / float(node.facts["cpus"])

    def start(
        self, replica: RemoteReplica, reach: Callable[[], Address], stage: int, full_speed: bool
    ) -> None:
        """Connect a replica from a thread of its own, and watch whether its node lives.

        ``reach`` returns where, and may take its time. Its ``WorkerError``, and whatever keeps the
        node from launching it, is the reason of the replica's death.
        """
        self._replicas = [*(each for each in self._replicas if not each.closed), replica]
        launch = {"stage": stage, "cores": replica.cores, "full_speed": full_speed}
        arguments = replica, reach, {"launch": launch}
        threading.Thread(target=self._connect, args=arguments, daemon=True).start()

    def _connect(
        self, replica: RemoteReplica, reach: Callable[[], Address], hello: dict[str, Any]
    ) -> None:
        try:
            address = reach()
            sock, facts = dial(address, self._token, hello)
        except WorkerError as error:
            replica.fail(str(error))
            return
        try:
            check_node(address, facts, self.facts)
        except WorkerError as error:
            sock.close()
            replica.fail(str(error))
        else:
            replica.attach(sock)

    def close(self) -> None:
        """Let go of the nodes."""
        self._closed.set()
        for node in self.nodes:
            node.close()
