"""What the fleet knows of a replica, wherever it runs.

A replica loads the model, then answers one batch after another under a CPU limit. The one
implementation so far is a child process (:mod:`sponge_env.live.local`); a pod or a process
on another machine needs these two protocols and no change to the fleet. Every
implementation passes ``tests/test_replica_contract.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Ready(NamedTuple):
    """The replica has loaded its model and waits for a batch."""

    at_s: float
    """Stamp of this machine's monotonic clock, as in all events."""


class Answer(NamedTuple):
    """The replica has answered its batch and waits for the next."""

    batch_id: int
    started_s: float
    finished_s: float
    cpu_s: float
    """CPU time since the event before, the handling of messages included."""


class Death(NamedTuple):
    """The replica is gone, and its batch with it. Nothing comes after."""

    reason: str
    """What it said last, for the user."""


Event = Ready | Answer | Death


class Replica(Protocol):
    """One copy of the model under a CPU limit. No method blocks but :meth:`close`."""

    id: int
    """Identity within the fleet; a later replica has a larger one."""
    pid: int | None
    """Process id on this machine, if it is a process here."""

    def fileno(self) -> int:
        """Return a file descriptor that is readable while :meth:`poll` has an event."""

    def start(self, batch_id: int, request_ids: Sequence[int]) -> None:
        """Send a batch to a replica that waits for one.

        To one that has just died it may be sent in vain; the death follows as an event.
        """

    def limit(self, cores: float) -> None:
        """Ask for physical cores from now on, also for what is running.

        May come into force later, as in a cluster; :meth:`granted_cores` tells when.

        Raises:
            WorkerError: They are refused.
        """

    def poll(self) -> Event | None:
        """Take the next event; None if there is none yet."""

    def kill(self) -> None:
        """End it without waiting for it; its death follows as an event."""

    def close(self) -> None:
        """End it and release everything of it. Safe to call twice."""

    def granted_cores(self) -> float:
        """Return the physical cores in force, as the limiter itself reports them."""

    def cpu_s(self) -> float:
        """Return the CPU time used so far, the cold start included; also after the end."""

    def throttled_s(self) -> float:
        """Return how long the limit had it stopped so far; also after the end."""


class Launcher(Protocol):
    """Starts replicas somewhere, and owns what they share."""

    limiter: str
    """What limits the CPU, e.g. ``cgroup-v1``."""
    period_s: float
    """Period in which the limit grants CPU time."""
    tick_s: float
    """Time between two looks at what was used; until then a limit can be overdrawn."""

    def launch(self, id: int, cores: float, *, full_speed: bool = False) -> Replica:
        """Start a replica, which loads its model under its limit of physical cores.

        At full speed it loads without one, until :meth:`Replica.limit` is called.

        Raises:
            WorkerError: It cannot be started or limited.
        """

    def close(self) -> None:
        """Release what the replicas shared; they must be closed. Safe to call twice."""
