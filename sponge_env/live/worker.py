"""The real worker: batches on real replicas, in real time, on a clock that can be held."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Sequence

from sponge_env.core.replicas import fit
from sponge_env.interfaces import Allocation, Batch, Completion, WorkerStatus
from sponge_env.live.fleet import Ended, Fleet, Phase
from sponge_env.live.local import LocalLauncher, too_many_as_sentence
from sponge_env.live.replica import Launcher, LiveConfig, Replica
from sponge_env.spec import check_allocation


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


class LiveWorker(contextlib.AbstractContextManager["LiveWorker"]):
    """Runs batches on real replicas, in real time. Implements ``interfaces.Worker``.

    The constructor returns when the initial replicas are ready; they start at full speed,
    then their limits are put in force and the clock starts. If none starts, that is a
    ``WorkerError``. The launcher, by default that of child processes on this machine, is closed
    with the worker. All methods but :meth:`wake` belong to one thread at a time.
    """

    def __init__(self, config: LiveConfig | None = None, launcher: Launcher | None = None) -> None:
        self.config = config or LiveConfig()
        self._target = self.config.initial
        self._cores = self._target.cores
        self._cpu_s = self._actuation_s = 0.0
        with contextlib.ExitStack() as cleanup:
            self.launcher = launcher or LocalLauncher(self.config)
            cleanup.callback(self.launcher.close)
            with too_many_as_sentence():
                self._fleet = Fleet(self.config, self.launcher)
            cleanup.callback(self._fleet.close)
            physical_cores = self.config.physical_cores(self._cores)
            self._fleet.warm_up(self._target.replicas, physical_cores)
            # also when nobody closes it: at the latest when this process ends
            self._finalizer = weakref.finalize(self, _release, cleanup.pop_all(), os.getpid())
        self._warm_up_cpu_s = self._fleet.cpu_s
        self._clock = EpisodeClock()
        self._core_seconds = self._charged_s = self._held_cores = 0.0
        self._charge()

    @property
    def limiter(self) -> str:
        """What limits the CPU: cgroup-v1, cgroup-v2, duty-cycle or none."""
        return self.launcher.limiter

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, oldest first; for inspection only."""
        return tuple(member.replica for member in self._fleet.members)

    def now(self) -> float:
        """Return the time since the start of the episode, without the times held."""
        return self._clock.now_s()

    def hold(self) -> None:
        """Stop the clock; what runs goes on, and batches that end do so at the hold's instant."""
        self._clock.hold()

    def release(self) -> float:
        """Let the clock run on; return how long it was held."""
        held_s = self._clock.release()
        self._fleet.extend_timeouts(held_s)
        return held_s

    def idle(self) -> int:
        """Return how many replicas could start a batch now."""
        return len(self._fleet.idle)

    def start(self, batch: Batch) -> None:
        """Give a batch to the idle replica with the lowest id."""
        self._fleet.start(batch, [self.launcher.sample(request) for request in batch.requests])

    def wait(self, until_s: float) -> Sequence[Completion]:
        """Block until something changes, at the latest until ``until_s``; not on a held clock.

        Replicas that die over and over before they are ready are a ``WorkerError`` where no other
        serves.
        """
        if self._clock.held:
            raise RuntimeError("cannot wait while the clock is held; release it first")
        while True:
            left_s = until_s - self.now()
            changed, ended = self._fleet.poll(max(0.0, left_s))
            if changed:
                self._charge()
                if not self._fleet.gives_up:
                    self._fit()
            if changed or left_s <= 0:
                return sorted(map(self._complete, ended), key=lambda c: c.finished_s)

    def wake(self) -> None:
        """Make a :meth:`wait` in another thread return now; safe from any thread."""
        self._fleet.wake()

    def resize(self, allocation: Allocation) -> None:
        """Put cores and replicas in force, as far as those that drain leave room.

        More than the settings allow is a ``ConfigError``, a limit that the kernel refuses a
        ``WorkerError``.
        """
        check_allocation(allocation, self.config)
        begin_s = time.monotonic()
        self._target = allocation
        self._fleet.shrink(allocation.replicas)
        self._fit()
        self._actuation_s = time.monotonic() - begin_s

    def _fit(self) -> None:
        """Come as close to the allocation as those that still drain allow."""
        target, total, fleet = self._target, self.config.total_cores, self._fleet
        staying, held = len(fleet.staying), len(fleet.members)
        cores, added = fit(target.cores, target.replicas, staying, held, total, total)
        # a quota write refills the kernel's tokens: none without need
        if cores != self._cores:
            self._cores = cores
            fleet.limit(self.config.physical_cores(cores))
        fleet.grow(added)
        self._charge()

    def status(self) -> WorkerStatus:
        """Return the replicas' state and the counters up to now.

        Cores in use are the CPU time of all replicas until now, that of running batches,
        of messages and of cold starts included; ``cpu_s`` counts batches when they end,
        with the handling of their messages.
        """
        self._charge()
        fleet, core_unit = self._fleet, self.config.core_unit
        granted_cores = [replica.granted_cores() for replica in self.replicas[:1]]
        return WorkerStatus(
            ready=fleet.serving,
            starting_s=tuple(fleet.starting_s),
            held_cores=self._held_cores,
            effective_cores=sum(granted_cores) / core_unit,
            core_seconds=self._core_seconds,
            used_core_seconds=(fleet.cpu_s - self._warm_up_cpu_s) / core_unit,
            cpu_s=self._cpu_s,
            throttled_s=fleet.throttled_s,
            restarts=fleet.restarts,
            actuation_s=self._actuation_s,
        )

    def crash(self) -> None:
        """Inject a failure: kill the first replica that serves, a busy one if there is one."""
        serving = [m for m in self._fleet.members if m.state is not Phase.STARTING]
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
        self._core_seconds += self._held_cores * max(0.0, now_s - self._charged_s)
        self._charged_s = now_s
        self._held_cores = float(self._cores * len(self._fleet.members))

    def _complete(self, end: Ended) -> Completion:
        """Put the end of a batch on the episode's clock."""
        answer, at = end.answer, self._clock.at
        if answer is None:
            return Completion(end.batch, end.replica_id, at(end.sent_s), self.now(), ok=False)
        self._cpu_s += answer.cpu_s
        started_s, finished_s = at(answer.started_s), at(answer.finished_s)
        return Completion(end.batch, end.replica_id, started_s, finished_s, cpu_s=answer.cpu_s)
