"""Stages in a row, by events, in the plainest way: a specification of what a pipeline does.

Requests are dictionaries of open tasks, queues are sorted lists. Replicas stay as they are; cores,
batch sizes and variants change from interval to interval, and a resize rescales what is left of a
batch. Nothing is drawn: fan-outs are given by a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageModel:
    """What a stage is."""

    latency_s: Sequence[Sequence[Sequence[float]]]
    """[variant][batch - 1][cores - 1]"""
    accuracies: Sequence[float]
    after: tuple[int, ...]
    replicas: int


@dataclass
class Asked:
    """An allocation of a stage."""

    cores: int
    batch: int
    variant: int = 0


@dataclass
class Ticket:
    """A request and its open tasks."""

    row: int
    arrival_s: float
    deadline_s: float
    open: list[int]
    done: list[int]
    accuracy: list[float]
    joined: set[int] = field(default_factory=set)
    outcome: str = ""
    finished_s: float = math.nan
    stage: int = -1


@dataclass
class Running:
    """A batch on a replica."""

    tickets: list[Ticket]
    variant: int
    finish_s: float


class Pipeline:
    """An episode that is fed with requests and allocations."""

    def __init__(
        self,
        stages: Sequence[StageModel],
        initial: Sequence[Asked],
        fan_out: Callable[[int, int, int], int],
        drop_grace_s: float,
        fifo: bool = False,
    ) -> None:
        """Start empty; ``fan_out(row, stage, done)`` is how many tasks an answer leads to."""
        self.stages, self.asked, self.fan_out = stages, list(initial), fan_out
        self.drop_grace_s, self.fifo, self.now_s = drop_grace_s, fifo, 0.0
        self.queues: list[list[Ticket]] = [[] for _ in stages]
        self.replicas: list[list[Running | None]] = [[None] * s.replicas for s in stages]
        self.tickets: list[Ticket] = []
        self.core_s = 0.0
        self.last = [a.variant for a in initial]
        self.switches = [0] * len(stages)
        self.done_by = [[0] * len(stage.accuracies) for stage in stages]

    def serve(
        self, arrivals: Sequence[tuple[float, float]], asked: Sequence[Asked], until_s: float
    ) -> None:
        """Serve an interval: arrivals are (arrival, deadline), in the order of arrival."""
        self._put_in_force(asked)
        held = sum(a.cores * s.replicas for a, s in zip(asked, self.stages, strict=True))
        self.core_s += held * (until_s - self.now_s)
        waiting = list(arrivals)
        while True:
            while waiting and waiting[0][0] <= self.now_s:
                self._offer(*waiting.pop(0))
            if self.now_s >= until_s:
                for at in range(len(self.stages)):
                    self._drop_expired(at)
                return
            for at in range(len(self.stages)):
                self._start(at)
            ends = [r.finish_s for row in self.replicas for r in row if r is not None]
            arrivals = [arrival_s for arrival_s, _ in waiting[:1]]
            self.now_s = min([until_s, *ends, *arrivals])
            self._settle()

    def _put_in_force(self, asked: Sequence[Asked]) -> None:
        for at, (new, old) in enumerate(zip(asked, self.asked, strict=True)):
            for running in self.replicas[at]:
                if running is not None and running.finish_s > self.now_s:
                    table = self.stages[at].latency_s[running.variant][len(running.tickets) - 1]
                    scale = table[new.cores - 1] / table[old.cores - 1]
                    running.finish_s = self.now_s + (running.finish_s - self.now_s) * scale
        self.asked = list(asked)

    def _offer(self, arrival_s: float, deadline_s: float) -> None:
        count = len(self.stages)
        ticket = Ticket(
            len(self.tickets), arrival_s, deadline_s, [0] * count, [0] * count, [0.0] * count
        )
        self.tickets.append(ticket)
        self._join(0, ticket)

    def _join(self, at: int, ticket: Ticket) -> None:
        ticket.open[at] += 1
        self.queues[at].append(ticket)
        self.queues[at].sort(key=lambda each: (each.deadline_s, each.row))

    def _drop_expired(self, at: int) -> None:
        for ticket in list(self.queues[at]):
            if not ticket.outcome and ticket.deadline_s < self.now_s - self.drop_grace_s:
                self._close(ticket, "dropped", at)

    def _close(self, ticket: Ticket, outcome: str, at: int) -> None:
        ticket.outcome, ticket.finished_s, ticket.stage = outcome, self.now_s, at
        for queue in self.queues:
            queue[:] = [each for each in queue if each is not ticket]

    def _start(self, at: int) -> None:
        """Start what batches can."""
        for place, running in enumerate(self.replicas[at]):
            if running is None:
                self._drop_expired(at)
                if not self.queues[at]:
                    break
                order = self.queues[at]
                if self.fifo:
                    order = sorted(order, key=lambda each: each.row)
                batch = order[: self.asked[at].batch]
                most_urgent_s = self.queues[at][0].deadline_s
                if self.fifo:
                    most_urgent_s = batch[0].deadline_s
                for ticket in batch:
                    self.queues[at].remove(ticket)
                variant = self._variant(at, len(batch), most_urgent_s)
                self.switches[at] += variant != self.last[at]
                self.last[at] = variant
                table = self.stages[at].latency_s[variant]
                took_s = table[len(batch) - 1][self.asked[at].cores - 1]
                self.replicas[at][place] = Running(batch, variant, self.now_s + took_s)

    def _variant(self, at: int, count: int, most_urgent_s: float) -> int:
        stage, cores = self.stages[at], self.asked[at].cores
        asked = self.asked[at].variant
        if asked < 0:
            slack_s = most_urgent_s - self.now_s
            for variant in range(len(stage.latency_s) - 1, 0, -1):
                if stage.latency_s[variant][count - 1][cores - 1] <= slack_s:
                    return variant
            return 0
        return asked

    def _settle(self) -> None:
        while True:
            ended = [
                (running.finish_s, at, place)
                for at, row in enumerate(self.replicas)
                for place, running in enumerate(row)
                if running is not None and running.finish_s <= self.now_s
            ]
            if not ended:
                return
            _, at, place = min(ended)
            running = self.replicas[at][place]
            assert running is not None
            self.replicas[at][place] = None
            self.done_by[at][running.variant] += len(running.tickets)
            for ticket in running.tickets:
                if not ticket.outcome:
                    self._finish(at, ticket, running)

    def _finish(self, at: int, ticket: Ticket, running: Running) -> None:
        tasks = self.fan_out(ticket.row, at, ticket.done[at])
        ticket.open[at] -= 1
        ticket.done[at] += 1
        ticket.accuracy[at] += self.stages[at].accuracies[running.variant]
        for follower, stage in enumerate(self.stages):
            if stage.after == (at,):
                for _ in range(tasks):
                    self._join(follower, ticket)
            elif at in stage.after and follower not in ticket.joined:
                before = self._before(follower)
                if not any(ticket.open[k] for k in before) and any(
                    ticket.done[k] for k in stage.after
                ):
                    ticket.joined.add(follower)
                    self._join(follower, ticket)
        if not any(ticket.open):
            in_time = running.finish_s <= ticket.deadline_s
            self._close(ticket, "on_time" if in_time else "late", at)
            ticket.finished_s = running.finish_s

    def _before(self, at: int) -> set[int]:
        found: set[int] = set()
        for k in self.stages[at].after:
            found |= {k} | self._before(k)
        return found

    def accuracy(self, ticket: Ticket) -> float:
        """Return the accuracy of an answer."""
        means = [a / d for a, d in zip(ticket.accuracy, ticket.done, strict=True) if d]
        return math.prod(means)
