"""An engine that answers as a test says, without models or processes."""

import itertools
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from sponge_env.errors import ConfigError
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Reply, ServedModel, Snapshot, Status

FOUR, TWO = TensorSpec((4,)), TensorSpec((2,))


def served(inputs=FOUR, outputs=TWO):
    named = replace(inputs, name="input"), replace(outputs, name="output")
    return ServedModel("tiny", *named, 8, 1.0, ("tiny",), ("tiny",))


def sums(call):
    """Answer with the sum and the largest of the input, at once."""
    row = call.tensor
    output = np.array([[row.sum(), row.max()]], np.float32)
    return answered(output, in_time=time.monotonic() <= call.deadline_s)


def answered(output, **about):
    said = {"queue_s": 0.001, "service_s": 0.002, "batch": 2, "cores": 4, "variant": "tiny"}
    return Reply(Status.ANSWERED, output, time.monotonic(), **(said | {"in_time": True} | about))


class FakeEngine:
    """Takes calls; what is answered with None is held until it is finished or taken back."""

    def __init__(self, serves=None, answer=sums, others=()):
        self.served, self.answer, self.ready = serves or served(), answer, True
        self.models = {model.name: model for model in (self.served, *others)}
        self.unloaded, self.alive, self.followers = set(), True, []
        self.calls, self.cancelled, self.ended = [], [], ()
        self.agent, self.drained = "static-1", 0
        self.held, self.changed = {}, threading.Condition()
        self.now = None  # what the snapshot is, if a test says so
        self._tickets = itertools.count()

    def submit(self, call, done):
        reply = self.answer(call)
        with self.changed:
            ticket = next(self._tickets)
            self.calls.append(call)
            if reply is None:
                self.held[ticket] = done
            self.changed.notify_all()
        if reply is not None:
            done(reply)
        return ticket

    def lend(self, loop):
        return nullcontext()

    def cancel(self, ticket):
        with self.changed:
            done = self.held.pop(ticket, None)
            if done:
                self.cancelled.append(ticket)
            self.changed.notify_all()
        if done:
            done(Reply(Status.CANCELLED))

    def finish(self, reply):
        with self.changed:
            ended, self.held = list(self.held.values()), {}
            self.changed.notify_all()
        for done in ended:
            done(reply)

    def wait_until(self, true, timeout_s=10.0):
        with self.changed:
            assert self.changed.wait_for(lambda: true(self), timeout_s)

    def snapshot(self):
        if self.now is not None:
            return self.now
        return Snapshot(0.0, self.agent, None, (1,), (1,), (1,), ("tiny",), (0,), (), self.ready)

    def batches(self):
        return self.ended

    def publish(self, now):
        self.now = now
        for follower in self.followers:
            follower(now)

    def follow(self, follower):
        self.followers.append(follower)

    def end(self):
        self.alive = self.ready = False
        for follower in self.followers:
            follower(self.snapshot())

    def use(self, agent):
        if agent not in ("static-1", "static-2"):
            raise ConfigError(f"unknown agent {agent!r}; choose from static-1, static-2")
        self.agent = agent

    def set_loaded(self, name, loaded):
        (self.unloaded.discard if loaded else self.unloaded.add)(name)

    def is_loaded(self, name):
        return name not in self.unloaded

    def drain(self, timeout_s):
        with self.changed:
            self.ready = False
            self.drained += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.held, timeout_s)
        self.finish(Reply(Status.STOPPED))
