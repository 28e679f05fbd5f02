"""Between the front ends and the engine of a server: calls, replies, snapshots.

A front end turns bytes into a :class:`Call` and a :class:`Reply` into bytes; the engine knows
nothing of protocols, and a front end nothing of queues. Times are seconds of the monotonic clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sponge_env.metrics import IntervalMetrics
from sponge_env.models.model import TensorSpec

VERSION = "1"  # The only version of a model


class Status(IntEnum):
    """How a call ended."""

    ANSWERED = 0  # With outputs, in time or late
    REFUSED = 1  # At once: its deadline cannot be met, or there is no room
    EXPIRED = 2
    """Dropped while it waited: its deadline passed, or it was shed (:attr:`Reply.in_time`) because
    it could not be met any more, or only at the cost of others."""
    FAILED = 3  # Three replicas died with it, or one and no time is left
    CANCELLED = 4  # The client went away or cancelled it
    STOPPED = 5  # The server shuts down
    INVALID = 6  # The model failed on its input; :attr:`Reply.reason` says why


@dataclass(frozen=True, slots=True)
class Call:
    """One task for the (first stage's) model: one row of a client's batch."""

    tensor: NDArray[Any]
    """Input with the shape and type of ``ServedModel.inputs``, a record of several tensors. It may
    be a view on the client's bytes: it is copied into the memory shared with the replica."""
    sent_s: float  # When the client sent it, as far as is known; else when it arrived
    deadline_s: float  # When it has to be answered
    payload_bytes: int  # Size of its body, from which controllers estimate the network
    stage: int = 0  # Place of the stage that it enters, of a set of models


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    status: Status
    output: NDArray[Any] | None = None  # (tasks, *outputs.shape) of the last stage; may be records
    finished_s: float = 0.0
    queue_s: float = 0.0  # Time that it waited, in all stages
    service_s: float = 0.0  # Time that it was in batches, in all stages
    batch: int = 0  # Size of its (last) batch
    cores: int = 0  # Core units that each replica of its (last) stage had
    variant: str = ""  # Model that answered it (last)
    retry_after_s: float = 0.0  # Of a refusal: when there should be room again
    in_time: bool = False
    """Of an answer, whether it is on time, as the system's metrics have it; of what was dropped,
    whether its deadline had not passed yet."""
    reason: str = ""  # Why the model failed

    @property
    def outcome(self) -> str:
        """What metrics and logs call it."""
        if self.status is Status.ANSWERED:
            return "on_time" if self.in_time else "late"
        return self.status.name.lower()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server serves; fixed while it runs."""

    name: str  # Of the model, as clients call it
    inputs: TensorSpec  # The tensors have names here, as have those of the outputs
    outputs: TensorSpec
    batch_max: int
    default_slo_s: float
    variants: tuple[str, ...]
    stages: tuple[str, ...]
    queue_max: int = 1024  # Calls that it holds at most, and rows that can be served together
    stage: int = 0  # Place of the first of its stages, of a set of models
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Parsed JSON of earlier requests, by its bytes: most clients send the same each time."""


class Batches(NamedTuple):
    """The batches of one size that have ended with answers."""

    size: int  # Tasks in each
    ended: int
    service_s: float  # From their beginnings to their ends, all together


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the engine after an interval."""

    now_s: float  # Time since the server began
    agent: str
    last: IntervalMetrics | None  # Metrics of the last interval
    cores: tuple[int, ...]  # Of each stage, of one replica
    replicas: tuple[int, ...]
    batch: tuple[int, ...]
    variant: tuple[str, ...]
    queued: tuple[int, ...]
    budgets_s: tuple[float, ...]  # (<= 256,) left to those that wait in the first stage, ascending
    ready: bool


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that clients read at a path of its own, such as the metrics."""

    make: Callable[[str, str], tuple[str, bytes]]  # Type and content, by query and Accept header
    headers: Mapping[str, str] = field(default_factory=dict)  # By lower-case names
    open: bool = False  # Whether it needs no token, because it tells nothing of what happens here
