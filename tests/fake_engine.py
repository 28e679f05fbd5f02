"""An engine that answers as a test says, without models or processes."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import Batches, Call, Reply, ServedModel, Snapshot, Status

Answer = Callable[[Call], Reply | None]


FOUR, TWO = TensorSpec((4,)), TensorSpec((2,))


def served(inputs: TensorSpec = FOUR, outputs: TensorSpec = TWO) -> ServedModel:
    named = replace(inputs, name="input"), replace(outputs, name="output")
    return ServedModel("tiny", *named, 8, 1.0, ("tiny",), ("tiny",))


def sums(call: Call) -> Reply:
    """Answer with the sum and the largest of the input, at once."""
    row = call.tensor
    output = np.array([[row.sum(), row.max()]], np.float32)
    return answered(output, in_time=time.monotonic() <= call.deadline_s)


def answered(output: NDArray[Any], **about: Any) -> Reply:
    said = {"queue_s": 0.001, "service_s": 0.002, "batch": 2, "cores": 4, "variant": "tiny"}
    return Reply(Status.ANSWERED, output, time.monotonic(), **(said | {"in_time": True} | about))


class FakeEngine:
    """Takes calls; what is answered with None is held until it is finished or taken back."""

    def __init__(self, serves: ServedModel | None = None, answer: Answer = sums) -> None:
        self.served, self.answer, self.ready = serves or served(), answer, True
        self.alive = True
        self.followers: list[Callable[[Snapshot], None]] = []
        self.calls: list[Call] = []
        self.cancelled: list[int] = []
        self.agent, self.drained = "static-1", 0
        self.held: dict[int, Callable[[Reply], None]] = {}
        self.changed = threading.Condition()
        self.now: Snapshot | None = None
        """What the snapshot is, if a test says so."""
        self.ended: tuple[tuple[Batches, ...], ...] = ()
        self._tickets = itertools.count()

    def submit(self, call: Call, done: Callable[[Reply], None]) -> int:
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

    def cancel(self, ticket: int) -> None:
        with self.changed:
            done = self.held.pop(ticket, None)
            if done:
                self.cancelled.append(ticket)
            self.changed.notify_all()
        if done:
            done(Reply(Status.CANCELLED))

    def finish(self, reply: Reply) -> None:
        """End all that is held."""
        with self.changed:
            ended, self.held = list(self.held.values()), {}
            self.changed.notify_all()
        for done in ended:
            done(reply)

    def wait_until(self, true: Callable[["FakeEngine"], bool], timeout_s: float = 10.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: true(self), timeout_s)

    def snapshot(self) -> Snapshot:
        if self.now is not None:
            return self.now
        return Snapshot(0.0, self.agent, None, (1,), (1,), (1,), ("tiny",), (0,), (), self.ready)

    def batches(self) -> tuple[tuple[Batches, ...], ...]:
        return self.ended

    def publish(self, now: Snapshot) -> None:
        self.now = now
        for follower in self.followers:
            follower(now)

    def follow(self, follower: Callable[[Snapshot], None]) -> None:
        """Tell only the end: no interval passes."""
        self.followers.append(follower)

    def end(self) -> None:
        """End as an engine that cannot go on."""
        self.alive = self.ready = False
        for follower in self.followers:
            follower(self.snapshot())

    def use(self, agent: str) -> None:
        if agent not in ("static-1", "static-2"):
            raise ConfigError(f"unknown agent {agent!r}; choose from static-1, static-2")
        self.agent = agent

    def drain(self, timeout_s: float) -> None:
        with self.changed:
            self.ready = False
            self.drained += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.held, timeout_s)
        self.finish(Reply(Status.STOPPED))
