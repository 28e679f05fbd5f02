"""The real worker: batches on real replicas, in real time, on a clock that can be held."""

import contextlib
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from sponge_env.errors import ModelError, WorkerError
from sponge_env.interfaces import Allocation, Batch, Completion, WorkerStatus
from sponge_env.live.fleet import HEARTBEAT_S, EndedBatch, Fleet, Phase, Watch
from sponge_env.live.local import PLACE, too_many_as_sentence
from sponge_env.live.protocol import Launcher, LiveConfig, Replica
from sponge_env.packing import placed
from sponge_env.scenario.spec import check_fits, check_stage_allocation

LIMITED_S = 2.0  # How long the first limits may take to come into force before the clock starts

Tensor = NDArray[Any]
Task = tuple[int, Tensor]  # A place among a request's tasks in a stage, and its input or answer


class EpisodeClock:
    """Maps the machine's monotonic clock to seconds since the start of the episode."""

    # CLOCK_MONOTONIC is the same in all processes, so stamps of a child process can be mapped too.
    # While the clock is held, for instance for a learner, episode time stands still.

    def __init__(self) -> None:
        self._changes = [(time.monotonic(), 0.0, True)]
        """When it began to run or to stand still, its own time then, and whether it ran."""

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return not self._changes[-1][2]

    def at(self, monotonic_s: float) -> float:
        """Return the episode time of a monotonic stamp; in a hold, that of its instant."""
        recent = (change for change in reversed(self._changes) if change[0] <= monotonic_s)
        since_s, at_s, ran = next(recent, self._changes[0])
        return at_s + (monotonic_s - since_s) if ran else at_s

    def hold(self) -> None:
        """Stop the clock; does nothing while it is held."""
        if not self.held:
            now_s = time.monotonic()
            self._changes.append((now_s, self.at(now_s), False))

    def release(self) -> float:
        """Let the clock run on; return how long it was held, 0 if it was not."""
        if not self.held:
            return 0.0
        (since_s, at_s, _), now_s = self._changes[-1], time.monotonic()
        self._changes.append((now_s, at_s, True))
        return now_s - since_s


class LiveWorker(contextlib.AbstractContextManager["LiveWorker"]):
    """Runs batches on real replicas, in real time. Implements ``interfaces.Worker``.

    There are settings for each stage. The constructor returns when the initial replicas are ready;
    they start at full speed, then their limits are put in force and the clock starts. If none
    starts, that is a ``WorkerError``. The launcher, by default that of :data:`~.live.local.PLACE`,
    is closed with the worker. All methods but ``wake`` belong to one thread at a time.

    Answers are kept until their request is forgotten. ``checks`` is called then, with the sample
    that a request brought and all answers to it.
    """

    def __init__(
        self, *configs: LiveConfig, launcher: Launcher | None = None,
        checks: Callable[[NDArray[Any], Sequence[NDArray[Any]]], None] | None = None,
    ) -> None:  # fmt: skip
        self.config, self._checks = configs[0], checks
        self._actuation_s = 0.0
        with contextlib.ExitStack() as cleanup:
            self.launcher = launcher or PLACE.open(configs)
            cleanup.callback(self.launcher.close)
            self.limiter = self.launcher.limiter
            self._handover = Handover(self.launcher, len(configs), self.config.of_a_set)
            for stage in range(len(configs)):
                self.launcher.sample(0, stage)  # drawn now, and not while the clock runs
            self.bring, self.take_answers = self._handover.bring, self._handover.take_answers
            with too_many_as_sentence():
                self._watch = Watch()
            self.wake = self._watch.wake
            cleanup.callback(self._watch.close)
            shared = self.launcher, self._watch
            self._fleets = [Fleet(config, *shared, k) for k, config in enumerate(configs)]
            sizes = [(fleet.target.cores, fleet.target.replicas) for fleet in self._fleets]
            for fleet, own in zip(self._fleets, placed(self.config.nodes, sizes)[0], strict=True):
                fleet.grow(own, full_speed=True)
            while any(fleet.starting_s for fleet in self._fleets):
                self._watch.poll(HEARTBEAT_S)
            for fleet in self._fleets:
                fleet.warmed_up()
            until_s = time.monotonic() + LIMITED_S
            while any(fleet.in_force > fleet.held for fleet in self._fleets):
                if time.monotonic() > until_s:
                    break  # others say what is granted
                self._watch.poll(until_s - time.monotonic())
            # also when it is not closed: at the latest when this process ends
            self._finalizer = weakref.finalize(self, _release, cleanup.pop_all(), os.getpid())
        self._fitted = self._state()  # The state when allocations were last put in force
        self._clock, self._charged_s = EpisodeClock(), 0.0
        self._charge()

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`wait` would return."""
        return self._watch.selector.fileno()

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, stage by stage and oldest first; for inspection only."""
        return tuple(member.replica for fleet in self._fleets for member in fleet.members)

    def now(self) -> float:
        """Return the time since the start of the episode, without the times held."""
        return self._clock.at(time.monotonic())

    def hold(self) -> None:
        """Stop the clock; what runs goes on, and batches that end do so at the hold's instant."""
        self._clock.hold()

    def release(self) -> float:
        """Let the clock run on; return how long it was held."""
        held_s = self._clock.release()
        for fleet in self._fleets:
            fleet.extend_timeouts(held_s)
        return held_s

    def idle(self, stage: int = 0) -> int:
        """Return how many replicas of a stage could start a batch now."""
        return len(self._fleets[stage].idle)

    def start(self, batch: Batch) -> None:
        """Give a batch to the idle replica of its stage with the lowest id."""
        if not (fleet := self._fleets[batch.stage]).idle:
            raise RuntimeError("no replica is idle")
        fleet.start(batch, self._handover.take(batch))

    def forget(self, requests: Sequence[int]) -> None:
        """Let go of what is kept for requests that have ended."""
        if self._checks:
            for request in requests:
                if (answers := self._handover.take_whole(request)) is not None:
                    self._checks(self.launcher.sample(request), answers)
        self._handover.forget(requests)

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Block until something changes, at the latest until ``until_s``; not on a held clock."""
        while True:
            left_s = until_s - self.now()
            changed, ended = self._watch.poll(max(0.0, left_s))
            if self._state() != self._fitted:  # else there is nothing to fit
                self._charge()
                self._fit()
            if changed or left_s <= 0:
                return sorted(map(self._complete, ended), key=lambda c: c.finished_s)

    def _state(self) -> list[tuple[float, ...]]:
        return [(f.held, f.in_force, f.serving, f.pauses) for f in self._fleets]

    def resize(self, allocation: Allocation) -> None:
        """Put cores and replicas in force, or raise ``ConfigError`` or ``WorkerError``."""
        # Only as far as draining replicas leave room.
        begin_s = time.monotonic()
        for fleet, own in zip(self._fleets, allocation.stages, strict=True):
            target = own._replace(variant=0)  # a batch says its own
            check_stage_allocation(target, fleet.config)
            # checked for one ready replica: others that became ready meanwhile get what is left
            check_fits([target], fleet.config.nodes, (1,))
            fleet.target = target
        for fleet in self._fleets:
            fleet.shrink(fleet.target.replicas, self._room(fleet))
        self._fit()
        self._actuation_s = time.monotonic() - begin_s

    def _fit(self) -> None:
        """Come as close to the allocations as those that still drain allow, stage by stage."""
        # First those that get less, so that there is room for those that get more, as in the core.
        fleets = sorted(self._fleets, key=lambda f: f.target.cores * f.target.replicas > f.held)
        for fleet in fleets:
            fleet.fit(self._room(fleet))
        self._charge()
        self._fitted = self._state()

    def _room(self, fleet: Fleet) -> list[int]:
        """Return the core units of each node that other stages do not hold."""
        room = [*self.config.nodes]
        for member in (m for other in self._fleets if other is not fleet for m in other.members):
            room[member.node] -= member.cores
        return room

    def status(self, stage: int = 0) -> WorkerStatus:
        """Return the state of a stage's replicas and the counters up to now."""
        # Cores in use are the CPU time of all replicas until now, with running batches, messages
        # and cold starts; ``cpu_s`` counts batches when they end, with their messages.
        self._charge()
        fleet = self._fleets[stage]
        core_unit = fleet.config.core_unit
        serving = [member for member in fleet.members if member.state is not Phase.STARTING]
        granted_cores = [m.replica.granted_cores() for m in serving or fleet.members]
        return WorkerStatus(
            ready=fleet.serving, starting_s=tuple(fleet.starting_s), held_cores=fleet.held_cores,
            effective_cores=fmean(granted_cores or [0.0]) / core_unit,
            core_seconds=fleet.core_seconds,
            used_core_seconds=(fleet.cpu_s - fleet.warm_up_cpu_s) / core_unit,
            cpu_s=fleet.batch_cpu_s, throttled_s=fleet.throttled_s, restarts=fleet.restarts,
            actuation_s=0.0 if stage else self._actuation_s,
        )  # fmt: skip

    def close(self) -> None:
        """Stop; leave no process and no control group behind. Safe to call twice."""
        self._finalizer()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _charge(self) -> None:
        now_s = self.now()
        for fleet in self._fleets:
            fleet.core_seconds += fleet.held_cores * max(0.0, now_s - self._charged_s)
            fleet.held_cores = fleet.in_force
        self._charged_s = now_s

    def _complete(self, end: EndedBatch) -> Completion:
        answer, at, where = end.answer, self._clock.at, (end.batch, end.replica_id)
        if answer is None:
            self._handover.give_back(end.batch)
            return Completion(*where, at(end.sent_s), self.now(), ok=False)
        self._fleets[end.batch.stage].batch_cpu_s += answer.cpu_s
        started_s, finished_s = at(answer.started_s), at(answer.finished_s)
        tasks = self._handover.answered(end.batch, end.tensors, answer.failed)
        return Completion(*where, started_s, finished_s, cpu_s=answer.cpu_s, tasks=tasks)


@dataclass(slots=True)
class Kept:
    """What is kept of a request until it ends."""

    waiting: list[list[Task]]  # Inputs of tasks that wait, for each stage
    answers: list[Task] = field(default_factory=list)  # Those of the last stage
    last_tasks: int | None = None  # Tasks in the last stage, as far as the one before it said so
    failed: str = ""  # Why a model failed on one of its tasks, if one did
    is_sample: bool = False  # Whether it brought no input


class Handover:
    """Keeps inputs until their tasks are answered, and the answers of the last stage, if any."""

    # A request that brings no input, and a task of a stage for which the one before it left none,
    # gets a sample. Batches name requests, not tasks: the first of its inputs that waits is served
    # first, and answers are known by their place.

    def __init__(self, launcher: Launcher, stages: int, of_a_set: bool = False) -> None:
        # Answers of this stage and later ones lead to no other.
        self._launcher, self._final = launcher, 0 if of_a_set else stages - 1
        self._requests = defaultdict[int, Kept](lambda: Kept([[] for _ in range(stages)]))
        self._running: dict[int, list[tuple[Kept, Task]]] = {}
        """The tasks of each batch; of requests that were forgotten since, nothing else is left."""

    def bring(self, request: int, tensor: Tensor, stage: int = 0) -> None:
        """Keep the input that a request brings to the stage that it enters until it ends."""
        self._requests[request].waiting[stage] = [(0, tensor)]

    def take(self, batch: Batch) -> list[Tensor]:
        """Return the inputs of a batch that begins."""
        running = self._running[batch.id] = []
        for request in batch.requests:
            kept = self._requests[request]
            if not (waiting := kept.waiting[batch.stage]):
                waiting.append((0, self._launcher.sample(request, batch.stage)))
                kept.is_sample = True
            running.append((kept, waiting.pop(0)))
        return [tensor for _, (_, tensor) in running]

    def give_back(self, batch: Batch) -> None:
        """Keep the inputs of a batch whose replica died for another."""
        for kept, task in self._running.pop(batch.id):
            kept.waiting[batch.stage].append(task)

    def answered(
        self, batch: Batch, answers: Sequence[Tensor], failed: Mapping[int, str] | None = None
    ) -> tuple[int, ...]:
        """Leave a batch's answers for the next stage; return how many tasks each leads to."""
        # Answers are stacks of inputs; there are none where a stage's answers lead to no known
        # tasks. The last stage's are kept until taken. :meth:`take_answers` raises what ``failed``;
        # a sample must not fail.
        last = batch.stage >= self._final
        for place, reason in (failed or {}).items():
            if (kept := self._running[batch.id][place][0]).is_sample:
                raise WorkerError(f"the model fails on its samples: {reason}")
            kept.failed = reason
        # without answers there is nothing to keep
        for (kept, (place, _)), answer in zip(self._running.pop(batch.id), answers, strict=False):
            if last:
                kept.answers.append((place, answer))
            else:
                kept.waiting[batch.stage + 1] = list(enumerate(answer))
                kept.last_tasks = len(answer)
        return () if last else tuple(map(len, answers))

    def take_answers(self, request: int) -> list[Tensor]:
        """Return what the last stage answered to a request's tasks, or raise ``ModelError``."""
        if (kept := self._requests.get(request)) is None:
            return []
        if kept.failed:
            raise ModelError(kept.failed)
        answers, kept.answers = kept.answers, []
        return [tensor for _, tensor in sorted(answers, key=itemgetter(0))]

    def take_whole(self, request: int) -> list[Tensor] | None:
        """Return the same if all tasks of the request are answered, else None."""
        kept = self._requests.get(request)
        whole = kept is not None and kept.last_tasks == len(kept.answers)
        return self.take_answers(request) if whole else None

    def forget(self, requests: Iterable[int]) -> None:
        """Let go of what is kept for requests that have ended."""
        for request in requests:
            self._requests.pop(request, None)


def _release(cleanup: contextlib.ExitStack, pid: int) -> None:
    if os.getpid() == pid:  # in a fork, all this is still its parent's
        cleanup.close()
