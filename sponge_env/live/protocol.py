"""A replica as the fleet knows it, wherever it runs, and the settings of all replicas.

A replica loads its models, variants that answer the same question, then answers one batch after
another under a CPU limit. It is a child process (:mod:`sponge_env.live.local`), or one on
another machine (:mod:`sponge_env.live.remote`); others need these two protocols and no change to
the fleet. Every implementation passes ``tests/test_replica_contract.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from sponge_env.interfaces import Allocation
from sponge_env.scenario.config import Limiter
from sponge_env.scenario.option import positive, require
from sponge_env.scenario.profile import LOCAL_MODEL
from sponge_env.scenario.spec import check_fits, check_stage_allocation


class Ready(NamedTuple):
    """The replica has loaded its models and waits for a batch."""

    at_s: float  # Stamp of this machine's monotonic clock, as in all events


class Answered(NamedTuple):
    """The replica has answered its batch and waits for the next."""

    batch_id: int
    started_s: float
    finished_s: float
    cpu_s: float  # CPU time since the event before, the handling of messages included
    failed: Mapping[int, str] | None = None  # Why the model failed, by the place of the task


class Death(NamedTuple):
    """The replica is gone, and its batch with it. Nothing comes after."""

    reason: str  # The last line of its standard error, for the user


Event = Ready | Answered | Death


class Replica(Protocol):
    """One copy of the models under a CPU limit. No method blocks but :meth:`close`."""

    id: int  # Identity within the fleet; a later replica has a larger one
    pid: int | None  # Process id on this machine, if it is a process here
    limits_late: bool  # Whether limits may act later, or be set by others: what is granted counts
    silent: bool  # Whether where it runs gives no sign of life; it gets no batch meanwhile
    placed: bool  # Whether it has a place to run; until then it does not count as hung

    def fileno(self) -> int:
        """Return a descriptor, always the same, readable when :meth:`poll` may have news."""

    def start(self, batch_id: int, tensors: Sequence[NDArray[Any]], variant: int = 0) -> None:
        """Send a batch to a replica that waits for one; in vain if it has just died.

        ``tensors`` are the inputs of its tasks, ``variant`` is the index of the model that answers.
        """

    def answers(self, size: int) -> list[NDArray[Any]]:
        """Return the last batch's first answers; those that lead to tasks are stacks of inputs."""

    def limit(self, cores: float) -> None:
        """Ask for physical cores, in force when :meth:`granted_cores` says so; or WorkerError."""

    def poll(self) -> Event | None:
        """Take the next event; None if there is none yet."""

    def kill(self) -> None:
        """End it without waiting for it; its death follows as an event."""

    def close(self) -> None:
        """End it and release everything of it. Safe to call twice."""

    def granted_cores(self) -> float:
        """Return the physical cores in force; this and the counters below are at most 1 s old."""

    def cpu_s(self) -> float:
        """Return the CPU time used so far, the cold start included; also after the end."""

    def throttled_s(self) -> float:
        """Return how long the limit had it stopped so far; also after the end."""


class CpuLimiter:
    """Limits the CPU of a child process, or raises ``OSError``; as it is, it does nothing."""

    def __init__(self, cpus: int) -> None:
        self._cpus, self._cores = cpus, float(cpus)
        self._throttled_s = 0.0

    def attach(self, pid: int) -> None:
        """Begin to limit a child process not yet waited for; it may be gone already."""

    def apply(self, cores: float) -> None:
        """Grant physical cores from now on, also to what is running."""

    def granted_cores(self) -> float:
        """Return the physical cores granted, as the limiter itself reports them."""
        return self._cores

    def throttled_s(self) -> float:
        """Return how long the process stood stopped by the limit; also after the end."""
        return self._throttled_s

    def close(self) -> None:
        """Stop limiting; the process must have ended. Safe to call twice."""


class Launcher(Protocol):
    """Starts the replicas of all stages somewhere, and owns what they share."""

    limiter: str  # What limits the CPU, e.g. ``cgroup-v1``
    period_s: float  # Period in which it does
    tick_s: float  # Time between two looks of it at what was used
    max_tasks: Sequence[int]  # Of each stage, how many tasks of the next an answer leads to at most

    def sample(self, request_id: int, stage: int = 0) -> NDArray[Any]:
        """Return an input of a stage's model, for a request that brings none."""

    def launch(
        self, id: int, cores: float, *, stage: int = 0, node: int = 0, full_speed: bool = False
    ) -> Replica:
        """Start a replica, which loads its model under its limit of physical cores.

        ``node`` is its node in the worker's account, for launchers that have the same nodes. At
        full speed it loads without a limit, until :meth:`Replica.limit` is called. Raises
        ``WorkerError`` if it cannot be started or limited.
        """

    def close(self) -> None:
        """Release what the replicas shared; they must be closed. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """How the real worker is set up."""

    model: str = LOCAL_MODEL  # Known model, path of an ONNX file, or ``module:Class``
    variants: tuple[str, ...] = ()
    """Models that answer the same question, all in each replica; only that one if left out."""
    of_a_set: bool = False  # Whether it is one of a set of models, with requests of its own
    batch_max: int = 16  # Largest batch
    cores_max: int = 16  # Largest number of core units of one replica
    core_unit: float = 1 / 16  # Physical cores in one core unit
    replicas_max: int = 16  # Largest number of replicas
    nodes: tuple[int, ...] = (1 << 30,)  # Core units that all replicas on each node may hold
    initial: Allocation = field(default_factory=lambda: Allocation(cores=1, batch=1))
    """Allocation in force when the clock starts, with all its replicas warm."""
    limiter: Limiter = "auto"  # How CPU is limited; ``auto`` takes control groups where it may
    batch_timeout_s: float = 60.0  # A longer batch is taken for hung, and its replica is restarted
    cold_start_s: float = 8.0  # Expected cold start, until the first one was measured

    def __post_init__(self) -> None:
        for name in ("batch_max", "cores_max", "replicas_max"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("core_unit", "batch_timeout_s", "cold_start_s"):
            positive(name, getattr(self, name))
        check_stage_allocation(self.initial.stages[0], self)
        check_fits(self.initial.stages, self.nodes)

    def physical_cores(self, cores: int) -> float:
        """Return the physical cores of core units."""
        # rounded, so that n units of 1/n are a whole core for every n
        return round(cores * self.core_unit, 9)
