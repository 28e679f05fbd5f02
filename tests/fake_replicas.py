"""Replicas in memory: they do what a test tells them, or all that is asked of them at once."""

import os
import time
from collections import deque

import numpy as np

from sponge_env.errors import WorkerError
from sponge_env.live.fleet import Phase
from sponge_env.live.protocol import Answered, Death, Ready


def crash(worker, stage=0):
    """Kill a stage's first replica that serves, of several a busy one."""
    members = worker._fleets[stage].members
    serving = [member for member in members if member.state is not Phase.STARTING]
    if not serving:
        raise RuntimeError("no replica serves that could crash")
    max(serving, key=lambda member: (member.state, -member.replica.id)).replica.kill()


class Monotonic:
    now_s = 1000.0

    def monotonic(self):
        return self.now_s


CPU_S = 0.001  # CPU time that a batch takes
LOAD_S = 0.01  # CPU time that a replica takes until it is ready


class FakeReplica:
    """A ``Replica`` without a process, whose events a test makes; a willing one needs no test."""

    pid = None
    silent = False
    limits_late = placed = True

    def __init__(self, id, cores, launcher):
        self.id, self.closed, self.killed = id, False, False
        self.batch_id, self.tensors, self.variant = None, (), 0
        self._launcher, self._cpu_s = launcher, 0.0
        self._limits = [(0.0, cores)]  # when each comes into force
        self._events = deque()
        self._pending = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        if launcher.willing:
            self.ready()

    def ready(self):
        self._cpu_s += LOAD_S
        self._tell(Ready(time.monotonic()))

    def answer(self):
        assert self.batch_id is not None, "it has no batch"
        self._cpu_s += CPU_S
        now_s = time.monotonic()
        # whoever polls in another thread may start the next batch at once
        answer, self.batch_id = Answered(self.batch_id, now_s, now_s, CPU_S), None
        self._tell(answer)

    def die(self, reason="it was killed"):
        self.killed = True
        self._tell(Death(reason))

    def _tell(self, event):
        self._events.append(event)
        os.eventfd_write(self._pending, 1)

    def fileno(self):
        return self._pending

    def poll(self):
        if not self._events:
            return None
        os.eventfd_read(self._pending)
        return self._events.popleft()

    def start(self, batch_id, tensors, variant=0):
        assert self.batch_id is None, "it has a batch already"
        if self.killed:
            return
        self.batch_id, self.tensors, self.variant = batch_id, tensors, variant
        if self._launcher.willing:
            self.answer()

    def answers(self, size):
        return [tensor.copy() for tensor in self.tensors[:size]]

    def limit(self, cores):
        self._limits.append((time.monotonic() + self._launcher.limit_delay_s, cores))

    def granted_cores(self):
        return [cores for since_s, cores in self._limits if since_s <= time.monotonic()][-1]

    def cpu_s(self):
        return self._cpu_s

    def throttled_s(self):
        return self._cpu_s / 2

    def kill(self):
        if not self.killed:
            self.die()

    def close(self):
        if not self.closed:
            self.closed = True
            os.close(self._pending)


class FakeLauncher:
    """Starts fakes, willing or not, whose limits come late. Implements ``Launcher``."""

    limiter = "fake"
    period_s = tick_s = 0.01
    max_tasks = (0,)

    def __init__(self, willing=True, limit_delay_s=0.0):
        self.willing, self.limit_delay_s, self.launched = willing, limit_delay_s, []
        self.refuses, self.refused, self.closed = False, 0, False

    def sample(self, request_id, stage=0):
        return np.array([request_id])

    def launch(self, id, cores, *, stage=0, node=0, full_speed=False):
        if self.refuses:
            self.refused += 1
            raise WorkerError("no replica is to be had")
        self.launched.append(FakeReplica(id, 1.0 if full_speed else cores, self))
        return self.launched[-1]

    def close(self):
        self.closed = True
