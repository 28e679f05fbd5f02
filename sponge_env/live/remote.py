"""Replicas on other machines: the front end's side of :mod:`sponge_env.live.node`."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sponge_env.live.child import Job
from sponge_env.live.replica import Event, LiveConfig
from sponge_env.live.stages import Stages
from sponge_env.live.wire import Frame, Kind, Layout, Link

SILENT_S, GONE_S = 0.3, 0.7
"""Without a beat for so long a node gets no work, and its replicas count as dead."""
RETRY_S = 0.5
"""Pause before a node is tried again."""
MAX_REASON_BYTES = 4096


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RemoteReplica:
    """A replica on a node. Implements ``Replica``; it may not have a connection yet.

    Its descriptor is there from the start: an epoll that watches a bell, and the connection once
    there is one. :meth:`attach` and :meth:`fail` are for other threads, the rest is for one.
    """

    pid: int | None = None
    limits_late = True

    def __init__(self, id: int, job: Job, where: str, cores: float, granted_cores: float) -> None:
        """Make one that is to be on ``where``, with so many physical cores asked and granted."""
        self.id, self.where, self.cores, self.silent = id, where, cores, False
        self.closed = False
        self._layout = Layout(job)
        self._link: Link | None = None
        self._last = Frame(Kind.STATUS, cores=granted_cores)
        """What the node reported last."""
        self._event_cpu_s = 0.0
        self._dead = False
        self._answers: list[NDArray[Any]] = []
        self._events: deque[Event] = deque()
        self._unsent: list[tuple[Frame, Sequence[memoryview]]] = []
        self._news: deque[socket.socket | str] = deque()
        self._lock = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self.fileno = self._epoll.fileno

    def attach(self, sock: socket.socket) -> None:
        """Hand over its connection, on which a node launches it."""

    def fail(self, reason: str) -> None:
        """Let it die."""


class RemoteLauncher(Stages):
    """Starts replicas on nodes. Implements ``Launcher``."""

    def __init__(self, configs: Sequence[LiveConfig], addresses: Sequence[Address], token: str):
        raise NotImplementedError

    def start(
        self, replica: RemoteReplica, reach: Callable[[], Address], launch: Mapping[str, Any]
    ) -> None:
        """Connect a replica from a thread of its own; what ``reach`` or a node refuses kills it."""
