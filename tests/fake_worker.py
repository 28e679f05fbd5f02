"""Workers on a clock of their own, for tests of the live system without processes."""

import dataclasses
from functools import partial

from reference.worker import ProfileService, SimulatedWorker

from sponge_env.interfaces import Allocation


class FakeWorker(SimulatedWorker):
    """The reference's replicas, some of which die, and a diary of what was asked for."""

    limiter = "fake"

    def __init__(self, *args, crashes_s=(), spared=-1, held_s=0.0, watch=lambda: None, **settings):
        # At each of ``crashes_s`` a replica dies, if one serves then, but never the one ``spared``;
        # :meth:`release` says ``held_s``, and before every batch and every wait it calls ``watch``.
        super().__init__(*args, **settings)
        self._crashes_s = list(crashes_s)
        self._spared, self._held_s, self._watch = spared, held_s, watch
        self.diary = []  # what was called, waits and looks apart
        self.batches = []

    def start(self, batch):
        self._watch()
        self.batches.append(batch)
        super().start(batch)

    def wait(self, until_s):
        self._watch()
        crash_s = self._crashes_s[0] if self._crashes_s else float("inf")
        completions = super().wait(min(until_s, crash_s))
        if self.now() < crash_s:
            return completions
        self._crashes_s.pop(0)
        try:
            self.crash(self._spared)
        except RuntimeError:  # none serves
            self.diary.append("spared")
        return completions

    def resize(self, allocation):
        self.diary.append(f"resize {allocation.cores} x {allocation.replicas}")
        super().resize(allocation)

    def hold(self):
        self.diary.append("hold")

    def release(self):
        self.diary.append("release")
        return self._held_s

    def close(self):
        self.diary.append("close")


def profile_workers(spec):
    """Return a worker for each stage, whose batches take what its first profile says."""
    workers = []
    for own, initial in zip(spec.stages, spec.initial.stages, strict=True):
        table_s = own.latencies[0].table_s(own.batch_max, own.cores_max)
        service, held = partial(ProfileService, table_s), Allocation(stages=(initial,))
        workers.append(SimulatedWorker(service, held, cold_start_s=own.cold_start_s))
    return workers


class FakeStages(SimulatedWorker):
    """Plain workers side by side on one clock, one for each stage."""

    limiter = "fake"

    def __init__(self, workers, tasks=None, crashes=()):
        # ``tasks`` says how many the answer to a request in the first stage leads to, which the
        # system draws without; ``crashes`` when a replica of which stage dies, if one serves then.
        self.workers, self._tasks, self._crashes = list(workers), tasks, list(crashes)
        self.batches = []

    def now(self):
        return self.workers[0].now()

    def idle(self, stage=0):
        return self.workers[stage].idle()

    def start(self, batch):
        self.batches.append(batch)
        self.workers[batch.stage].start(batch)

    def wait(self, until_s):
        crash_s = self._crashes[0][0] if self._crashes else float("inf")
        events_s = [s for worker in self.workers for s in worker.events_s()]
        until_s, ended = min([until_s, crash_s, *events_s]), []
        for worker in self.workers:
            ended += worker.wait(until_s)
            while worker.now() < until_s:  # it had something to tell before
                ended += worker.wait(until_s)
        if self.now() >= crash_s:
            _, stage = self._crashes.pop(0)
            if self.workers[stage].status().ready:
                self.workers[stage].crash()
        return [self._told(c) for c in sorted(ended, key=lambda c: c.finished_s)]

    def _told(self, completion):
        if self._tasks is None or completion.batch.stage or not completion.ok:
            return completion
        tasks = tuple(map(self._tasks, completion.batch.requests))
        return dataclasses.replace(completion, tasks=tasks)

    def resize(self, allocation):
        for worker, own in zip(self.workers, allocation.stages, strict=True):
            worker.resize(Allocation(stages=(own,)))

    def status(self, stage=0):
        return self.workers[stage].status()
