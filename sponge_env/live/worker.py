"""The real worker: batches on real replicas, in real time, on a clock that can be held."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from sponge_env.core.replicas import fit
from sponge_env.interfaces import Allocation, Batch, Completion, WorkerStatus
from sponge_env.live.fleet import HEARTBEAT_S, Ended, Fleet, Phase, Watch
from sponge_env.live.handover import Handover
from sponge_env.live.local import LocalMachine, open_launchers, too_many_as_sentence
from sponge_env.live.replica import Launcher, LiveConfig, Replica
from sponge_env.scenario.spec import check_stage_allocation, check_total_cores


class EpisodeClock:
    """Maps the machine's monotonic clock to seconds since the start of the episode.

    ``CLOCK_MONOTONIC`` is the same in all processes, so stamps of a child process can be
    mapped too. While the clock is held, for instance for a learner, episode time stands still.
    """

    def __init__(self) -> None:
        self._turns = [(time.monotonic(), 0.0, True)]
        """When it began to run or to stand still, its own time then, and whether it ran."""

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return not self._turns[-1][2]

    def now_s(self) -> float:
        """Return the episode time now."""
        return self.at(time.monotonic())

    def at(self, monotonic_s: float) -> float:
        """Return the episode time of a monotonic stamp that is not in the future.

        What happened during a hold happened at the hold's instant.
        """
        recent = reversed(self._turns)  # stamps are: the last ones decide
        turn = next((turn for turn in recent if turn[0] <= monotonic_s), self._turns[0])
        since_s, at_s, ran = turn
        return at_s + (monotonic_s - since_s) if ran else at_s

    def hold(self) -> None:
        """Stop the clock; does nothing while it is held."""
        if not self.held:
            now_s = time.monotonic()
            self._turns.append((now_s, self.at(now_s), False))

    def release(self) -> float:
        """Let the clock run on; return how long it was held, 0 if it was not."""
        if not self.held:
            return 0.0
        since_s, at_s, _ = self._turns[-1]
        self._turns.append((time.monotonic(), at_s, True))
        return self._turns[-1][0] - since_s


def _release(cleanup: contextlib.ExitStack, pid: int) -> None:
    if os.getpid() == pid:  # what a fork drops is still its parent's
        cleanup.close()


class Part:
    """The replicas of one stage, and the account of their cores."""

    def __init__(
        self, config: LiveConfig, launcher: Launcher, watch: Watch, keeps_answers: bool = False
    ) -> None:
        self.config, self.fleet = config, Fleet(config, launcher, watch, keeps_answers)
        self.target = config.initial
        self.cores = self.target.cores
        self.cpu_s = self.warm_up_cpu_s = 0.0
        self.core_seconds = self.held_cores = 0.0

    @property
    def held(self) -> int:
        """Core units of all replicas, those that start or drain included."""
        return self.cores * len(self.fleet.members)

    def fit(self, room_cores: int) -> None:
        """Come as close to the allocation as the room and those that still drain allow."""
        target, fleet = self.target, self.fleet
        staying, held = len(fleet.staying), len(fleet.members)
        cores, added = fit(target.cores, target.replicas, staying, held, room_cores, room_cores)
        # a quota write refills the kernel's tokens: none without need
        if cores != self.cores:
            self.cores = cores
            fleet.limit(self.config.physical_cores(cores))
        fleet.grow(added)


class LiveWorker(contextlib.AbstractContextManager["LiveWorker"]):
    """Runs batches on real replicas, in real time. Implements ``interfaces.Worker``.

    There are settings for each stage. The constructor returns when the initial replicas are ready;
    they start at full speed, then their limits are put in force and the clock starts. If none
    starts, that is a ``WorkerError``. The launchers, by default those of child processes on this
    machine, are closed with the worker. All methods but :meth:`wake` belong to one thread at a
    time.

    What is answered is thrown away, unless it leads to tasks or this worker ``keeps_answers``, or
    ``checks`` them: that is called with the sample that a request brought and all answers to it.
    """

    def __init__(
        self,
        config: LiveConfig | Sequence[LiveConfig] | None = None,
        launcher: Launcher | Sequence[Launcher] | None = None,
        *,
        keeps_answers: bool = False,
        checks: Callable[[NDArray[Any], Sequence[NDArray[Any]]], None] | None = None,
    ) -> None:
        self._checks, keeps_answers = checks, keeps_answers or checks is not None
        configs = config if isinstance(config, Sequence) else [config or LiveConfig()]
        self.config = configs[0]
        self._actuation_s = 0.0
        with contextlib.ExitStack() as cleanup:
            launchers = self._launchers(configs, launcher, cleanup)
            self.launcher, self._handover = launchers[0], Handover(launchers)
            with too_many_as_sentence():
                self._watch = Watch()
            cleanup.callback(self._watch.close)
            self._parts = [
                Part(*each, self._watch, keeps_answers and k == len(configs) - 1)
                for k, each in enumerate(zip(configs, launchers, strict=True))
            ]
            self._warm_up()
            # also when nobody closes it: at the latest when this process ends
            self._finalizer = weakref.finalize(self, _release, cleanup.pop_all(), os.getpid())
        self._clock, self._charged_s = EpisodeClock(), 0.0
        self._charge()

    @staticmethod
    def _launchers(
        configs: Sequence[LiveConfig],
        given: Launcher | Sequence[Launcher] | None,
        cleanup: contextlib.ExitStack,
    ) -> Sequence[Launcher]:
        """Return a launcher for each stage, which the cleanup closes."""
        if given is not None:
            launchers = given if isinstance(given, Sequence) else [given]
            for launcher in launchers:
                cleanup.callback(launcher.close)
            return launchers
        machine = LocalMachine(configs)
        cleanup.callback(machine.close)
        return open_launchers(configs, machine)

    def _warm_up(self) -> None:
        """Start the first replicas of all stages, and wait until they are ready."""
        for part in self._parts:
            part.fleet.warm_up(part.target.replicas, part.config.physical_cores(part.cores))
        while any(part.fleet.starting_s for part in self._parts):
            self._watch.poll(HEARTBEAT_S)
        for part in self._parts:
            part.fleet.warmed_up()
            part.warm_up_cpu_s = part.fleet.cpu_s

    @property
    def limiter(self) -> str:
        """What limits the CPU: cgroup-v1, cgroup-v2, duty-cycle or none."""
        return self.launcher.limiter

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, stage by stage and oldest first; for inspection only."""
        return tuple(member.replica for part in self._parts for member in part.fleet.members)

    def now(self) -> float:
        """Return the time since the start of the episode, without the times held."""
        return self._clock.now_s()

    def hold(self) -> None:
        """Stop the clock; what runs goes on, and batches that end do so at the hold's instant."""
        self._clock.hold()

    def release(self) -> float:
        """Let the clock run on; return how long it was held."""
        held_s = self._clock.release()
        for part in self._parts:
            part.fleet.extend_timeouts(held_s)
        return held_s

    def idle(self, stage: int = 0) -> int:
        """Return how many replicas of a stage could start a batch now."""
        return len(self._parts[stage].fleet.idle)

    def start(self, batch: Batch) -> None:
        """Give a batch to the idle replica of its stage with the lowest id."""
        fleet = self._parts[batch.stage].fleet
        if not fleet.idle:
            raise RuntimeError("no replica is idle")
        fleet.start(batch, self._handover.take(batch), batch.variant)

    def bring(self, request: int, tensor: NDArray[Any]) -> None:
        """Keep the input that a request brings, until it ends; others get a sample."""
        self._handover.bring(request, tensor)

    def take_answers(self, request: int) -> list[NDArray[Any]]:
        """Return what was answered to the last stage's tasks of a request, in their order."""
        return self._handover.take_answers(request)

    def forget(self, requests: Sequence[int]) -> None:
        """Let go of what is kept for requests that have ended."""
        for request in requests if self._checks else ():
            answers = self._handover.take_whole(request)
            if self._checks and answers is not None:
                self._checks(self.launcher.sample(request), answers)
        self._handover.forget(requests)

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Block until something changes, at the latest until ``until_s``; not on a held clock.

        Replicas that die over and over before they are ready are a ``WorkerError`` where no other
        of their stage serves.
        """
        if self._clock.held:
            raise RuntimeError("cannot wait while the clock is held; release it first")
        while True:
            left_s, held = until_s - self.now(), self._held()
            changed, ended = self._watch.poll(max(0.0, left_s))
            if self._held() != held:
                self._charge()
                self._fit()
            if changed or left_s <= 0:
                return sorted(map(self._complete, ended), key=lambda c: c.finished_s)

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return now; safe from any thread."""
        self._watch.wake()

    def resize(self, allocation: Allocation) -> None:
        """Put cores and replicas in force, as far as those that drain leave room.

        More than the settings allow is a ``ConfigError``, a limit that the kernel refuses a
        ``WorkerError``.
        """
        begin_s = time.monotonic()
        for part, own in zip(self._parts, allocation.stages, strict=True):
            target = Allocation(stages=(own._replace(variant=0),))  # a batch says its own
            check_stage_allocation(target.stages[0], part.config)
            check_total_cores(target.stages, part.config.total_cores)
            part.target = target
        for part in self._parts:
            part.fleet.shrink(part.target.replicas)
        self._fit()
        self._actuation_s = time.monotonic() - begin_s

    def _held(self) -> list[int]:
        """Return the core units that each stage holds; as long as that is so, nothing is to fit."""
        return [part.held for part in self._parts]

    def _fit(self) -> None:
        """Come as close to the allocations as those that still drain allow, stage by stage.

        First those that get less, so that there is room for those that get more, as in the core.
        """
        parts = sorted(self._parts, key=lambda part: part.target.total_cores > part.held)
        for part in parts:
            if not part.fleet.gives_up:
                others = sum(other.held for other in parts if other is not part)
                part.fit(self.config.total_cores - others)
        self._charge()

    def status(self, stage: int = 0) -> WorkerStatus:
        """Return the state of a stage's replicas and the counters up to now.

        Cores in use are the CPU time of all replicas until now, that of running batches,
        of messages and of cold starts included; ``cpu_s`` counts batches when they end,
        with the handling of their messages.
        """
        self._charge()
        part = self._parts[stage]
        fleet, core_unit = part.fleet, part.config.core_unit
        granted_cores = [member.replica.granted_cores() for member in fleet.members[:1]]
        return WorkerStatus(
            ready=fleet.serving,
            starting_s=tuple(fleet.starting_s),
            held_cores=part.held_cores,
            effective_cores=sum(granted_cores) / core_unit,
            core_seconds=part.core_seconds,
            used_core_seconds=(fleet.cpu_s - part.warm_up_cpu_s) / core_unit,
            cpu_s=part.cpu_s,
            throttled_s=fleet.throttled_s,
            restarts=fleet.restarts,
            actuation_s=0.0 if stage else self._actuation_s,
        )

    def crash(self, stage: int = 0) -> None:
        """Inject a failure: kill a stage's first replica that serves, of several a busy one."""
        members = self._parts[stage].fleet.members
        serving = [m for m in members if m.state is not Phase.STARTING]
        if not serving:
            raise RuntimeError("no replica serves that could crash")
        max(serving, key=lambda member: (member.state, -member.replica.id)).replica.kill()

    def close(self) -> None:
        """Stop; leave no process and no control group behind. Safe to call twice."""
        self._finalizer()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _charge(self) -> None:
        """Charge the cores held since the last time, then those that are held now."""
        now_s = self.now()
        for part in self._parts:
            part.core_seconds += part.held_cores * max(0.0, now_s - self._charged_s)
            part.held_cores = float(part.held)
        self._charged_s = now_s

    def _complete(self, end: Ended) -> Completion:
        """Put the end of a batch on the episode's clock."""
        answer, at = end.answer, self._clock.at
        if answer is None:
            self._handover.give_back(end.batch)
            return Completion(end.batch, end.replica_id, at(end.sent_s), self.now(), ok=False)
        self._parts[end.batch.stage].cpu_s += answer.cpu_s
        started_s, finished_s = at(answer.started_s), at(answer.finished_s)
        tasks = self._handover.answered(end.batch, end.tensors)
        return Completion(
            end.batch, end.replica_id, started_s, finished_s, cpu_s=answer.cpu_s, tasks=tasks
        )
