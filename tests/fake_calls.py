"""Workers in virtual time that take the inputs of calls and answer them, and clients by a script.

A first stage of several answers ``[[x, 0], [x, 1], ...]`` to ``[x]``; the last its input plus 0.5.
"""

import bisect
import dataclasses
import math

import numpy as np
from fake_worker import FakeStages, profile_workers

from sponge_env.live.worker import Handover
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Call
from sponge_env.serve.system import TICK_S, ServedSystem

OUTPUTS = TensorSpec((2,), "float64")


class NoSamples:
    """A launcher of whose models no sample may be shown: calls bring their own."""

    def sample(self, request_id, stage):
        raise AssertionError(f"request {request_id} was given a sample")


class CallStages(FakeStages):
    """Plain workers side by side that answer calls; implements ``CallWorker``."""

    def __init__(self, workers, tasks=lambda x: 1, crashes=(), of_a_set=False):
        """Start at time 0; ``tasks`` says how many follow the input ``[x]`` of a pipeline."""
        self._of_a_set = of_a_set
        super().__init__(workers, crashes=crashes)
        self.handover = own = Handover(NoSamples(), len(workers), of_a_set)
        self.bring, self.take_answers, self.forget = own.bring, own.take_answers, own.forget
        self.script, self.closed = [], False
        self.ended = []  # those of batches that did not crash
        self._fan_out, self._inputs = tasks, {}

    def start(self, batch):
        self._inputs[batch.id] = self.handover.take(batch)
        super().start(batch)

    def wait(self, until_s):
        at_s = self.script[0][0] if self.script else math.inf
        ended = super().wait(min(until_s, max(at_s, self.now())))
        while self.script and self.script[0][0] <= self.now():
            self.script.pop(0)[1]()
        return ended

    def _told(self, completion):
        batch = completion.batch
        inputs = self._inputs.pop(batch.id)
        if not completion.ok:
            self.handover.give_back(batch)
            return completion
        self.ended.append(completion)
        if self._of_a_set or batch.stage + 1 == len(self.workers):
            answers = [tensor + 0.5 for tensor in inputs]
        else:
            answers = [np.array([[x, k] for k in range(self._fan_out(x))]) for (x,) in inputs]
        return dataclasses.replace(completion, tasks=self.handover.answered(batch, answers))

    def close(self):
        self.closed = True


class Client:
    """What a script does to a system, and what it was told."""

    def __init__(self, system):
        self.system, self.step = system, system.step
        self.worker, self.replies, self.inputs = system.worker, {}, {}
        self._tickets = []

    def submit(self, budget_s, delay_s=0.0):
        now_s, x = self.system.stamp(self.worker.now()), float(len(self._tickets))
        stage = len(self._tickets) % max(1, len(self.system.spec.models))
        call, told = Call(np.array([x]), now_s - delay_s, now_s + budget_s, 100, stage), []
        ticket = self.system.inbox.submit(call, told.append)
        self._tickets.append(ticket)
        self.replies[ticket], self.inputs[ticket] = told, x
        return ticket

    def submit_at(self, time_s, budget_s, count=1):
        """Send calls then, after what was to be done then already."""
        for _ in range(count):
            self.at(time_s, self.submit, budget_s)

    def submit_for(self, budget_s):
        """Send a call, and take it back when its deadline has passed, as clients do."""
        ticket = self.submit(budget_s)
        self.at(self.worker.now() + budget_s + TICK_S, self.system.inbox.cancel, ticket)

    def cancel(self, number):
        if self._tickets:
            self.system.inbox.cancel(self._tickets[number % len(self._tickets)])

    def at(self, time_s, what, *arguments):
        action = time_s, lambda: what(*arguments)
        bisect.insort(self.worker.script, action, key=lambda each: each[0])

    @property
    def statuses(self):
        """How each call has ended, in the order in which they were sent."""
        return [told[0].status for told in self.replies.values() if told]


def served_system(scenario, profile=None, queue_max=64, **more):
    """Return a system on plain workers in virtual time."""

    def start(spec):
        return CallStages(profile_workers(spec), of_a_set=bool(spec.models), **more)

    return ServedSystem(scenario, start, profile=profile, outputs=OUTPUTS, queue_max=queue_max)
