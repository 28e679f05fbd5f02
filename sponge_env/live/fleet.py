"""The replicas of a worker: started, watched, restarted, limited and stopped together."""

import contextlib
import enum
import logging
import math
import select
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sponge_env.core.records import HELD, STARTING, STAYING
from sponge_env.core.replicas import cores_that_fit, start_on, starting_cores
from sponge_env.errors import WorkerError
from sponge_env.interfaces import Batch
from sponge_env.live.protocol import Answered, Death, Launcher, LiveConfig, Ready, Replica

LOG = logging.getLogger("sponge_env")

HEARTBEAT_S = 1.0  # Longest single wait for the replicas, after which hung ones are looked for
MAX_SELECTED = 1024  # Descriptors that ``select`` takes
START_TIMEOUT_S = 300.0  # A replica that is not ready by then is taken for hung, and replaced
START_ATTEMPTS = 3  # How often the first replicas are started at most until one is ready
SHORT_LIFE_S = 0.5  # Several in a row that live no longer, once ready, do not start either
MAX_DOUBLINGS = 5  # Of the pause after failed attempts to start replicas: 1, 2, 4 s and so on


class PreciseSelector(selectors.EpollSelector):
    """Watches any number of descriptors, and waits to the microsecond."""

    # epoll rounds waits up to whole milliseconds; ``select`` does not, but takes no descriptor from
    # 1024 on. So ``select`` waits for the one of epoll, which has a low number as a rule.

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, and return which are ready."""
        if self.fileno() < MAX_SELECTED and (timeout is None or timeout > 0):
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Phase(enum.IntEnum):
    """What a replica is doing; on a scale-in the lowest goes first."""

    STARTING = 0
    IDLE = 1
    BUSY = 2


@dataclass(slots=True, eq=False)
class Member:
    """A replica and its state in the fleet. Times are monotonic."""

    replica: Replica
    launched_s: float
    hangs_from_s: float  # When it is taken for hung; times without a poll do not count
    cores: int  # Core units that it is limited to; 0 while it starts at full speed
    node: int = 0  # Of the machine's
    state: Phase = Phase.STARTING
    ready_s: float = -math.inf
    draining: bool = False  # Whether it is stopped after its batch
    batch: Batch | None = None  # The batch it runs
    sent_s: float = 0.0  # When that was sent


class EndedBatch(NamedTuple):
    """A batch that ended on a replica."""

    batch: Batch
    replica_id: int
    sent_s: float
    answer: Answered | None  # None when the replica died under it
    tensors: list[NDArray[Any]]  # Its answers, in the last stage or where they lead to tasks


class Watch:
    """Waits for the replicas of several fleets at once."""

    def __init__(self) -> None:
        self.fleets: list[Fleet] = []
        self.selector = PreciseSelector()
        self._wakes = socket.socketpair()
        for end in self._wakes:
            end.setblocking(False)
        self.selector.register(self._wakes[0], selectors.EVENT_READ)

    def poll(self, timeout_s: float) -> tuple[bool, list[EndedBatch]]:
        """Wait for something; return whether it happened, and what batches ended."""
        # Raises WorkerError if none of the first replicas starts.
        ready, happened, ended = self.selector.select(min(timeout_s, HEARTBEAT_S)), False, []
        for key, _ in ready:
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wakes[0].recv(4096)
                happened = True
            else:
                fleet, member = key.data
                was_silent = member.replica.silent
                news, batches = fleet.take_event(member)
                happened |= news or member.replica.silent != was_silent
                ended += batches
        for fleet in self.fleets:
            fleet.kill_hung()
        return happened, ended

    def wake(self) -> None:
        """Make a :meth:`poll` in another thread return; safe from any thread."""
        # full: it returns anyway; closed: there is no poll
        with contextlib.suppress(OSError):
            self._wakes[1].send(b"!")

    def close(self) -> None:
        """Stop all replicas."""
        for fleet in self.fleets:
            fleet.stop(list(fleet.members))
        self.selector.close()
        for end in self._wakes:
            end.close()


class Fleet:
    """All replicas of a stage, each under the same CPU limit, and the account of their cores."""

    def __init__(
        self, config: LiveConfig, launcher: Launcher, watch: Watch, stage: int = 0
    ) -> None:
        self.config = config
        self.members: list[Member] = []  # Oldest first
        self.target = config.initial.stages[0]  # What was asked for
        self.cores = self.target.cores  # Core units of each that serves; those that start have one
        self.core_seconds = self.held_cores = 0.0  # Up to the last charge, and those held since
        self.batch_cpu_s = self.warm_up_cpu_s = 0.0  # Of ended batches, and before the clock began
        self.cold_start_s = config.cold_start_s  # Time until the last one was ready; first a guess
        self.restarts = 0
        self._launch = partial(launcher.launch, stage=stage)
        last = config.of_a_set or stage + 1 == len(launcher.max_tasks)
        self._keeps_answers = last or launcher.max_tasks[stage] > 0
        self._next_id = self._failed_starts = self._short_lives = 0
        self._past_throttled_s = self._past_cpu_s = 0.0
        self._warm = False
        self._start_timeout_s = max(START_TIMEOUT_S, 3 * config.cold_start_s)
        self._failed_s = self._resumes_s = -math.inf  # Last failed start; next one at the earliest
        self._selector = watch.selector
        watch.fleets.append(self)

    @property
    def throttled_s(self) -> float:
        """Time that replicas, past ones included, stood stopped by their limit."""
        return self._past_throttled_s + sum(m.replica.throttled_s() for m in self.members)

    @property
    def cpu_s(self) -> float:
        """CPU time that replicas, past ones included, used for anything."""
        return self._past_cpu_s + sum(m.replica.cpu_s() for m in self.members)

    @property
    def held(self) -> int:
        """Core units of all replicas, those that start or drain included."""
        return sum(member.cores for member in self.members)

    @property
    def in_force(self) -> float:
        """The same; where limits come late, the larger of asked and granted of each replica."""
        held, unit = 0.0, self.config.core_unit
        for member in self.members:  # a kernel's quota is rounded
            late = member.replica.limits_late
            granted = round(member.replica.granted_cores() / unit, 2) if late else 0.0
            held += max(member.cores, granted)
        return held

    @property
    def idle(self) -> list[Member]:
        """Replicas that could start a batch, oldest first."""
        return [m for m in self.members if m.state is Phase.IDLE and not m.replica.silent]

    @property
    def staying(self) -> list[Member]:
        """Replicas that are not draining, oldest first."""
        return [member for member in self.members if not member.draining]

    @property
    def serving(self) -> int:
        """Replicas that have loaded and are not draining."""
        return len(self.staying) - self.starting

    @property
    def starting(self) -> int:
        """Replicas that have not loaded yet."""
        return sum(member.state is Phase.STARTING for member in self.members)

    @property
    def _cores_to_start(self) -> int:
        return starting_cores(self.cores, len(self.members) - self.starting)

    @property
    def starting_s(self) -> list[float]:
        """Expected time until each cold-starting replica is ready, ascending."""
        now_s = time.monotonic()
        starting = (m for m in self.members if m.state is Phase.STARTING)
        return sorted(max(0.0, m.launched_s + self.cold_start_s - now_s) for m in starting)

    def warmed_up(self) -> None:
        """Take note that the first replicas, started at full speed, are ready; limit them."""
        self._warm = True
        self.cold_start_s = self.config.cold_start_s  # full speed tells nothing of it
        self.warm_up_cpu_s = self.cpu_s
        self.limit(self.cores)

    def fit(self, room: Sequence[int]) -> None:
        """Come as close to the allocation as each node's room and those that drain allow."""
        cores, on_nodes = self.target.cores, self._on_nodes(room)
        missing = range(self.target.replicas - len(self.staying))
        new = [node for _ in missing if (node := start_on(cores, len(room), on_nodes)) >= 0]
        self.limit(cores_that_fit(cores, len(self.members) - self.starting, len(room), on_nodes))
        self.grow(new)

    def _on_nodes(self, room: Sequence[int]) -> list[int]:
        """Return the numbers that the core keeps of each node."""
        on_nodes = [number for cores in room for number in (cores, 0, 0, 0)]
        for member in self.members:
            on_nodes[4 * member.node + HELD] += 1
            on_nodes[4 * member.node + STAYING] += not member.draining
            on_nodes[4 * member.node + STARTING] += member.state is Phase.STARTING
        return on_nodes

    def start(self, batch: Batch, tensors: Sequence[NDArray[Any]]) -> None:
        """Give a batch to the oldest idle replica, or raise ``RuntimeError`` if none is idle."""
        member = self.idle[0]
        member.state, member.batch = Phase.BUSY, batch
        member.sent_s = time.monotonic()
        member.hangs_from_s = member.sent_s + self.config.batch_timeout_s
        member.replica.start(batch.id, tensors, batch.variant)

    def limit(self, cores: int) -> None:
        """Grant core units to each replica that has loaded, also to what is running."""
        # Those that start have fewer, but at first full speed.
        self.cores = cores
        for member in self.members:
            starts = member.state is Phase.STARTING
            own = self._cores_to_start if starts else cores
            # a quota write refills the kernel's tokens: none without need
            if member.cores != own and not (starts and member.cores == 0):
                member.cores = own
                member.replica.limit(self.config.physical_cores(own))

    def shrink(self, replicas: int, room: Sequence[int]) -> None:
        """Stop replicas beyond a number, in the order of the core; busy ones finish their batch."""
        surplus = []
        while len(staying := self.staying) > replicas:
            pairs = zip(room, self._on_nodes(room)[STAYING::4], strict=True)
            left = [cores - self.target.cores * count for cores, count in pairs]
            ranks = [(m.state > 0, left[m.node], m.state, -m.replica.id) for m in staying]
            surplus.append(staying[ranks.index(min(ranks))])
            surplus[-1].draining = True
        self.stop([member for member in surplus if member.state is not Phase.BUSY])

    def grow(self, nodes: Sequence[int], *, full_speed: bool = False) -> None:
        """Start a further replica on each of some nodes, as many as the machine allows."""
        # If one is refused or dies as it starts, that is tried again after a while; if the very
        # first one is refused, that is a WorkerError.
        few = self._cores_to_start
        cores = self.config.physical_cores(few)
        for node in nodes:
            launched_s = time.monotonic()
            if self.pauses:
                return
            try:
                replica = self._launch(self._next_id, cores, node=node, full_speed=full_speed)
            except WorkerError as error:
                if not (self._warm or self.members):
                    raise
                # as text: an error would keep alive the memory of all the frames it came through
                self._start_failed(launched_s, str(error))
                return
            self._next_id += 1
            until_s = launched_s + self._start_timeout_s
            self.members.append(Member(replica, launched_s, until_s, few * (not full_speed), node))
            self._selector.register(replica, selectors.EVENT_READ, (self, self.members[-1]))

    @property
    def pauses(self) -> bool:
        """Whether it is too early to start a replica, after a failure."""
        return time.monotonic() < self._resumes_s

    def kill_hung(self) -> None:
        """Kill what has run for too long; its death shows at the next poll."""
        # This comes after the events: a report may have waited while there was no poll.
        now_s = time.monotonic()
        for member in self.members:
            if not member.replica.placed:
                member.hangs_from_s = now_s + self._start_timeout_s
            elif now_s > member.hangs_from_s:
                member.replica.kill()

    def extend_timeouts(self, seconds: float) -> None:
        """Give all replicas as much more time as there was no poll."""
        for member in self.members:
            member.hangs_from_s += seconds

    def stop(self, members: Sequence[Member]) -> None:
        """Stop replicas now, and keep their counters."""
        for member in members:  # all at once: a replica takes its time to end
            member.replica.kill()
        for member in members:
            self._selector.unregister(member.replica)
            member.replica.close()
            self._past_throttled_s += member.replica.throttled_s()
            self._past_cpu_s += member.replica.cpu_s()
            self.members.remove(member)

    def take_event(self, member: Member) -> tuple[bool, list[EndedBatch]]:
        """Take in a replica's event; return whether there was one, and its batch if that ended."""
        event, ended = member.replica.poll(), []
        if event is not None and (batch := member.batch) is not None:
            answer = event if isinstance(event, Answered) else None
            keeps = answer is not None and self._keeps_answers
            tensors = member.replica.answers(batch.size) if keeps else []
            ended.append(EndedBatch(batch, member.replica.id, member.sent_s, answer, tensors))
            member.batch = None
        if isinstance(event, Death):
            self._replace(member, event)
        elif event is not None:
            member.state, member.hangs_from_s = Phase.IDLE, math.inf
            if isinstance(event, Ready):
                if self._short_lives <= START_ATTEMPTS:  # else to be ready means nothing
                    self._failed_starts = 0
                self._resumes_s, member.ready_s = -math.inf, time.monotonic()
                self.cold_start_s = event.at_s - member.launched_s
            elif member.draining:
                self.stop([member])
        return event is not None, ended

    def _replace(self, dead: Member, death: Death) -> None:
        """Start another replica in place of one that died."""
        self.stop([dead])
        # One that is ready may die with its first batch, and the next ones as well.
        is_short = time.monotonic() < dead.ready_s + SHORT_LIFE_S
        self._short_lives = self._short_lives + 1 if is_short else 0
        if dead.state is Phase.STARTING or self._short_lives > START_ATTEMPTS:
            self._start_failed(dead.launched_s, death.reason)
        if not dead.draining:
            self.restarts += 1
            self.grow([dead.node])

    def _start_failed(self, launched_s: float, reason: str) -> None:
        """Pause before the next attempt; replicas of one attempt that fail count once."""
        # Raises WorkerError if none of the first ones starts in a few attempts.
        if launched_s < self._failed_s:
            return
        self._failed_s = time.monotonic()
        self._failed_starts += 1
        if not self._warm and self._failed_starts < START_ATTEMPTS:
            return
        why = f"replicas do not start, attempt {self._failed_starts}: {reason}"
        if not (self._warm or self.serving):
            raise WorkerError(why)
        pause_s = HEARTBEAT_S * 2 ** min(self._failed_starts - 1, MAX_DOUBLINGS)
        self._resumes_s = self._failed_s + pause_s
        text = "going on with %d replicas, the next attempt is in %g s: %s"
        LOG.warning(text, self.serving, pause_s, why)
