"""Replicas on other machines: the front end's side of :mod:`sponge_env.live.node`."""

import json
import logging
import math
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
from sponge_env.live.child import Job, plain
from sponge_env.live.local import too_many_as_sentence
from sponge_env.live.protocol import Answered, Death, Event, LiveConfig, Ready
from sponge_env.live.stages import Stages
from sponge_env.live.wire import Frame, Link, PeerError, TensorLayout

LOG = logging.getLogger("sponge_env")

SILENT_S, GONE_S = 0.3, 0.7  # Without a beat for so long a replica gets no work, and counts as dead
AVOIDED_S = 5.0  # For so long a node on which a replica has died gets no other, if there is one
FRAMES_AT_ONCE = 64  # Read from one connection, so that none holds up the others
WITHOUT_IT = "going on without it for now: %s"
RETRY_S = 0.5  # Pause before a node is tried again


class UnreachableError(WorkerError):
    """A node that is not there, for now."""


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(text: str) -> list[Address]:
    """Return the nodes of ``HOST:PORT,...``, or raise ``ConfigError``."""
    found = []
    for part in text.split(","):
        host, _, port = part.rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"--replicas must be local or nodes as HOST:PORT,..., not {text!r}")
        found.append(Address(host.strip("[]"), int(port)))
    return found


def dial(address: Address, token: str, own: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
    """Return a connection to a node, and its facts, or raise ``WorkerError``."""
    until_s = time.monotonic() + wire.HANDSHAKE_S
    try:
        sock = socket.create_connection(address, timeout=wire.HANDSHAKE_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.authenticate(sock, token, wire.FRONT_END, until_s)
            head = Frame(*wire.HEAD.unpack(wire.read_exactly(sock, wire.HEAD.size, until_s)))
            length = min(head.length, wire.MAX_TEXT_BYTES)
            facts = json.loads(wire.read_exactly(sock, length, until_s))
            _check(facts, own)
            numbers = (facts[name] for name in ("cpus", "period_s", "tick_s"))
            limiter = facts["limiter"]
            if not (wire.plausible(*numbers) and facts["cpus"] and plain(limiter, 20) == limiter):
                raise ValueError("it has impossible facts")
            return sock, facts
        except BaseException:
            sock.close()
            raise
    except (PeerError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WorkerError(f"node {address} cannot be used: {error}") from None
    except OSError as error:
        why = error.strerror or error
        raise UnreachableError(f"node {address} cannot be reached: {why}") from None


def _check(facts: dict[str, Any], own: dict[str, Any]) -> None:
    for what, needed in own.items():
        found = facts[what]
        enough = found == needed
        if what == "at_most":
            enough = all(x >= y for x, y in zip(found, needed, strict=True))
        if not enough:
            shown = plain(str(found), wire.MAX_REASON)
            raise ValueError(
                f"its {what.replace('_', ' ')} is {shown}, needed is {needed}; start both sides "
                "with the same version, --model, --scenario and --core-unit"
            )


class RemoteReplica:
    """A replica on a node, without a connection at first. Implements ``Replica``."""

    # Its descriptor is there from the start: an epoll that watches a bell, and the connection once
    # there is one. attach, fail and check_beat may be called from any thread.

    pid: int | None = None
    limits_late = True

    @too_many_as_sentence()
    def __init__(self, id: int, job: Job, where: str, cores: float, granted_cores: float) -> None:
        """Make one to be launched at ``where``, with physical cores as asked and as granted."""
        self.id, self.where, self.cores = id, where, cores
        self.silent, self.placed, self.closed = False, True, False
        self._last = Frame(wire.STATUS, cores=granted_cores)  # What the node reported last
        self._event_cpu_s, self.died_s = 0.0, -math.inf
        self._due: tuple[int, int, int] | None = (wire.READY, 0, 0)  # The next event, if one is
        self._sent_s = math.inf  # When the last batch was sent
        self._event: Event | None = None
        self._answers: list[NDArray[Any]] = []
        self._news: deque[socket.socket | str] = deque()  # Its connection, and why it dies
        self._lock, self._rung = threading.RLock(), False
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self.fileno = self._epoll.fileno
        self._layout, self._link = TensorLayout(job), Link(self._epoll, self._room)

    def attach(self, sock: socket.socket) -> None:
        """Hand over its connection."""
        if not self._tell(sock):
            sock.close()

    def fail(self, reason: str) -> None:
        """Have it die, with a reason for the user."""
        self._tell(reason)

    def _tell(self, news: socket.socket | str) -> bool:
        with self._lock:  # a closed bell's number may be another file's
            if not self.closed:
                self._news.append(news)
                self._ring()
            return not self.closed

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)
        self._rung = True

    def check_beat(self, now_s: float) -> None:
        """Notice that the node is silent, or has been for too long."""
        with self._lock:
            silent_s = now_s - self._link.heard_s
            # something may have come that has not been read yet
            if self.closed or not self._link.sock or silent_s < SILENT_S or self._epoll.poll(0):
                return
            self.silent = True
            if silent_s > GONE_S:
                self.fail(f"node {self.where} has given no sign of life for {GONE_S:g} s")

    def launch(self, stage: int, full_speed: bool) -> None:
        """Have the node launch it, once there is a connection."""
        self._send(Frame(wire.LAUNCH, stage, int(full_speed), cores=self.cores))

    def start(self, batch_id: int, tensors: Sequence[NDArray[Any]], variant: int = 0) -> None:
        """Send the inputs as far as the kernel takes them; the rest goes with :meth:`poll`."""
        frame = Frame(wire.START, variant, len(tensors), batch_id=batch_id)
        self._due, self._sent_s = (wire.ANSWER, batch_id, len(tensors)), time.monotonic()
        self._send(frame, self._layout.inputs(tensors))

    def answers(self, size: int) -> list[NDArray[Any]]:
        """Return what came last."""
        return self._answers[:size]

    def limit(self, cores: float) -> None:
        """Ask the node, which reports what is granted."""
        self.cores = cores
        self._send(Frame(wire.LIMIT, cores=cores))

    def _send(self, frame: Frame, parts: wire.Parts = ()) -> None:
        with suppress(OSError):  # the connection's end shows at the next poll
            self._link.send(frame, parts)

    def poll(self) -> Event | None:
        """Send what is left over, and take in the next event."""
        if self._rung:
            self._rung = False
            with suppress(BlockingIOError):  # it may be rung at this moment
                os.eventfd_read(self._bell)
        self._take_in()
        self.silent &= not self._is_heard
        event, self._event = self._event, None
        return event

    @property
    def _is_heard(self) -> bool:
        return time.monotonic() - self._link.heard_s < SILENT_S

    def _take_in(self) -> None:
        """Take in what has come, up to the next event."""
        if self._event is not None or self.closed:
            return
        try:
            while self._news:
                news = self._news.popleft()
                if isinstance(news, str):
                    raise WorkerError(news)
                self._link.open(news)
            self._link.flush()
            for _ in range(FRAMES_AT_ONCE):
                if self._event is not None or (found := self._link.take()) is None:
                    return
                self._event = self._event_of(*found)
        except WorkerError as error:
            self._event, self.died_s = Death(str(error)), time.monotonic()
        except (OSError, ValueError) as error:
            self._event, self.died_s = Death(f"node {self.where}: {error}"), time.monotonic()

    def _room(self, frame: Frame) -> memoryview:
        most = {wire.ANSWER: self._layout.max_answer_bytes, wire.END: wire.MAX_TEXT_BYTES}
        return memoryview(bytearray(min(frame.length, most.get(frame.kind, 0))))

    def _event_of(self, frame: Frame, body: memoryview) -> Event | None:
        if frame.kind == wire.END:
            raise WorkerError(plain(bytes(body).decode(errors="replace"), wire.MAX_REASON))
        if not wire.plausible(frame.took_s, frame.cores, frame.cpu_s, frame.throttled_s):
            raise PeerError("it reports impossible times or cores")
        self._last, now_s, before_s = frame, time.monotonic(), self._event_cpu_s
        if frame.kind in (wire.READY, wire.ANSWER):
            if (frame.kind, frame.batch_id, frame.size) != self._due:
                raise PeerError("it sends what nobody waits for")
            self._event_cpu_s, self._due = frame.cpu_s, None
        if frame.kind == wire.READY:
            return Ready(now_s)
        if frame.kind != wire.ANSWER:
            if frame.kind != wire.STATUS:
                raise PeerError(f"it sends a frame of kind {frame.kind}")
            return None
        self._answers, failed = self._layout.read(body, frame.size)
        # the node's clock is its own: what passed beside the batch counts as waiting
        # and may be a little faster, so that its batch seems to begin before it was sent
        started_s = max(now_s - frame.took_s, self._sent_s)
        cpu_s = max(0.0, frame.cpu_s - before_s)
        return Answered(frame.batch_id, started_s, now_s, cpu_s, failed)

    def _report(self) -> Frame:
        """Return the node's last report; other news is left to the next poll."""
        before = self._event
        self._take_in()
        if not self.closed and (self._event is not before or (self.silent and self._is_heard)):
            self._ring()
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
        if self._link.sock:
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
        for sock in (self._link.sock, *self._news):
            if isinstance(sock, socket.socket):
                sock.close()


class Node:
    """A node, and a connection on which it beats."""

    beats = False

    def __init__(self, address: Address) -> None:
        self.address, self.tried = address, threading.Event()
        self.facts: dict[str, Any] = {}
        self.error = WorkerError()  # Why it does not beat

    def watch(self, token: str, own: dict[str, Any], closed: threading.Event) -> None:
        """Connect to it again and again until that is closed."""
        while not closed.is_set():
            before = str(self.error)
            try:
                sock, self.facts = dial(self.address, token, own)
                with sock:
                    self.beats = True
                    self.tried.set()
                    sock.settimeout(SILENT_S)
                    while sock.recv(4096) and not closed.is_set():
                        pass
                self.error = UnreachableError(f"node {self.address} closed the connection")
            except WorkerError as error:
                self.error = error
            except OSError as error:
                self.error = UnreachableError(f"node {self.address} is silent: {error}")
            self.beats = False
            if self.tried.is_set() and str(self.error) != before and not closed.is_set():
                LOG.warning(WITHOUT_IT, self.error)
            self.tried.set()
            closed.wait(RETRY_S)


def in_thread(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Run a function in a thread that keeps no process from ending."""
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


class RemoteLauncher(Stages):
    """Starts replicas on nodes, each where fewest cores per CPU are held. Is a ``Launcher``."""

    # WorkerError if a node cannot be used or all are absent; a warning if some are absent.

    def __init__(self, configs: Sequence[LiveConfig], nodes: Sequence[Address], token: str) -> None:
        super().__init__(configs)
        self._token, self._replicas = token, list[RemoteReplica]()
        self._closed, self.nodes = threading.Event(), list(map(Node, nodes))
        self._machine_nodes = len(configs[0].nodes)
        own = token, self.facts, self._closed
        self._threads = [in_thread(node.watch, *own) for node in self.nodes]
        self._threads.append(in_thread(self._watch))
        for node in self.nodes:
            node.tried.wait()
        beating = [node.facts for node in self.nodes if node.beats]
        for node in self.nodes:
            if not node.beats:
                if not (beating and isinstance(node.error, UnreachableError)):
                    self.close()
                    raise node.error
                LOG.warning(WITHOUT_IT, node.error)
        self.limiter = "+".join(sorted({f"remote-{facts['limiter']}" for facts in beating}))
        self.period_s = max((facts["period_s"] for facts in beating), default=0.0)
        self.tick_s = max((facts["tick_s"] for facts in beating), default=0.0)

    def _watch(self) -> None:
        while not self._closed.wait(wire.BEAT_S / 2):
            for replica in self._replicas:
                replica.check_beat(time.monotonic())

    def launch(
        self, id: int, cores: float, *, stage: int = 0, node: int = 0, full_speed: bool = False
    ) -> RemoteReplica:
        """Return a replica that gets its connection later."""
        # If there are as many as the scenario's machine has nodes, they are those.
        fitting = [self.nodes[node]] if len(self.nodes) == self._machine_nodes else self.nodes
        if not (beating := [each for each in fitting if each.beats]):
            raise WorkerError(f"no node gives a sign of life: {fitting[0].error}")
        since_s = time.monotonic() - AVOIDED_S
        avoided = {each.where for each in self._replicas if each.died_s > since_s}

        def preference(node: Node) -> tuple[bool, bool, float]:
            load = self._load(node)
            full = load + cores / float(node.facts["cpus"]) > 1
            return full, str(node.address) in avoided, load

        chosen = min(beating, key=preference)
        granted_cores = float(chosen.facts["cpus"]) if full_speed else cores
        replica = RemoteReplica(id, self.jobs[stage], str(chosen.address), cores, granted_cores)
        self.start(replica, lambda: chosen.address, stage, full_speed)
        return replica

    def _load(self, node: Node) -> float:
        here = (r for r in self._replicas if r.where == str(node.address) and not r.closed)
        return sum(replica.cores for replica in here) / float(node.facts["cpus"])

    def start(
        self, replica: RemoteReplica, reach: Callable[[], Address], stage: int, full_speed: bool
    ) -> None:
        """Connect a replica, in a thread, to what ``reach`` returns, and watch whether it beats."""
        # ``reach`` may take its time. Its WorkerError, or the node's, is the reason of its death.
        since_s = time.monotonic() - AVOIDED_S
        kept = (each for each in self._replicas if not each.closed or each.died_s > since_s)
        self._replicas = [*kept, replica]
        replica.launch(stage, full_speed)
        try:
            in_thread(self._connect, replica, reach)
        except RuntimeError as error:  # too many of them
            replica.fail(str(error))

    def _connect(self, replica: RemoteReplica, reach: Callable[[], Address]) -> None:
        try:
            replica.attach(dial(reach(), self._token, self.facts)[0])
        except WorkerError as error:
            replica.fail(str(error))

    def close(self) -> None:
        """Let go of the nodes."""
        self._closed.set()
        for thread in self._threads:
            thread.join(SILENT_S)
