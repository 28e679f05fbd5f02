"""Stages, by events, in the plainest way: what a pipeline does, and a set of models.

Requests are tickets of open tasks, queues are lists. Replicas stay as they are; cores, batch sizes
and variants change from interval to interval, and a resize rescales what is left of a batch.
Nothing is drawn: fan-outs are given by a function.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from reference.system import batch_in_time


@dataclass(frozen=True)
class StageModel:
    latency_s: Sequence[Sequence[Sequence[float]]]  # [variant][batch - 1][cores - 1]
    accuracies: Sequence[float]
    after: tuple[int, ...]
    replicas: int
    pace: float
    """How slow batches are taken to be when requests are given up, relative to these latencies."""
    certain: bool  # whether every request goes through


@dataclass(eq=False)
class Ticket:
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
    tickets: list[Ticket]
    variant: int
    finish_s: float


class Pipeline:
    """An episode that is fed with requests and allocations."""

    def __init__(self, stages, initial, fan_out, serving):
        """Start empty; ``fan_out(row, stage, done)`` is how many tasks an answer leads to."""
        self.stages, self.allocations, self.fan_out = stages, list(initial), fan_out
        self.serving, self.fifo, self.now_s = serving, serving.order == "fifo", 0.0
        self.queues, self.replicas = [[] for _ in stages], [[None] * s.replicas for s in stages]
        self.tickets, self.core_s = [], 0.0
        self.last_variants, self.switches = [a.variant for a in initial], [0] * len(stages)
        self.done_by = [[0] * len(stage.accuracies) for stage in stages]

    def serve(self, arrivals, allocations, until_s):
        """Serve an interval: arrivals are (arrival, deadline, stage), in the order of arrival."""
        self._resize(allocations)
        held = sum(a.cores * s.replicas for a, s in zip(allocations, self.stages, strict=True))
        self.core_s += held * (until_s - self.now_s)
        waiting = list(arrivals)
        while True:
            while waiting and waiting[0][0] <= self.now_s:
                self._offer(*waiting.pop(0))
            if self.now_s >= until_s:
                for k in range(len(self.stages)):
                    self._drop_expired(k)
                return
            for k in range(len(self.stages)):
                self._start(k)
            ends = [r.finish_s for row in self.replicas for r in row if r is not None]
            self.now_s = min([until_s, *ends, *(arrival_s for arrival_s, *_ in waiting[:1])])
            self._settle()

    def _resize(self, allocations):
        for k, (new, old) in enumerate(zip(allocations, self.allocations, strict=True)):
            for running in self.replicas[k]:
                if running is not None and running.finish_s > self.now_s:
                    row_s = self.stages[k].latency_s[running.variant][len(running.tickets) - 1]
                    left_s = running.finish_s - self.now_s
                    running.finish_s = (
                        self.now_s + left_s * row_s[new.cores - 1] / row_s[old.cores - 1]
                    )
        self.allocations = list(allocations)

    def _offer(self, arrival_s, deadline_s, stage=0):
        counts = ([0] * len(self.stages) for _ in range(2))
        ticket = Ticket(len(self.tickets), arrival_s, deadline_s, *counts, [0.0] * len(self.stages))
        self.tickets.append(ticket)
        self._join(stage, ticket)

    def _join(self, k, ticket):
        ticket.open[k] += 1
        self.queues[k].append(ticket)
        self.queues[k].sort(key=lambda each: (0 if self.fifo else each.deadline_s, each.row))

    def _drop_expired(self, k):
        below_s = self.serving.drop_below_s(self._fastest_s(k) + self._after_s(k))
        for ticket in list(self.queues[k]):
            if not ticket.outcome and ticket.deadline_s < self.now_s + below_s:
                self._close(ticket, "dropped", k, self.now_s)

    def _fastest_s(self, k):
        return min(s for variant in self.stages[k].latency_s for row in variant for s in row)

    def _after_s(self, k):
        """The shortest time that a request takes from a stage's end to its answer."""
        followers = [j for j, stage in enumerate(self.stages) if k in stage.after]
        own_s = [self._fastest_s(j) * self.stages[j].certain + self._after_s(j) for j in followers]
        return max(own_s, default=0.0)

    def _batch(self, k):
        self._drop_expired(k)
        queue, limit = self.queues[k], self.allocations[k].batch
        if self.serving.drop == "unmeetable" and not self.fifo:
            while queue and (limit := self._in_time(k, queue)) == 0:
                self._close(queue[0], "dropped", k, self.now_s)
        batch = queue[:limit]
        del queue[:limit]
        return batch

    def _in_time(self, k, queue):
        """Return how many can be answered before the first is late, 0 if too few for the rest."""
        asked, stage = self.allocations[k], self.stages[k]
        tables = stage.latency_s if asked.variant < 0 else [stage.latency_s[asked.variant]]
        takes_s = [
            stage.pace * min(table[size - 1][asked.cores - 1] for table in tables)
            for size in range(1, asked.batch + 1)
        ]
        left_s = queue[0].deadline_s - self.now_s - self._after_s(k)
        return batch_in_time(takes_s, left_s, len(queue))

    def _close(self, ticket, outcome, k, finished_s):
        ticket.outcome, ticket.finished_s, ticket.stage = outcome, finished_s, k
        for queue in self.queues:
            queue[:] = [each for each in queue if each is not ticket]

    def _start(self, k):
        allocation = self.allocations[k]
        for place, running in enumerate(self.replicas[k]):
            if running is None:
                batch = self._batch(k)
                if not batch:
                    return
                variant = self._variant(k, len(batch), batch[0].deadline_s)
                self.switches[k] += variant != self.last_variants[k]
                self.last_variants[k] = variant
                took_s = self.stages[k].latency_s[variant][len(batch) - 1][allocation.cores - 1]
                self.replicas[k][place] = Running(batch, variant, self.now_s + took_s)

    def _variant(self, k, count, most_urgent_s):
        """Return what was asked for, or the most accurate one that the slack allows."""
        stage, allocation = self.stages[k], self.allocations[k]
        if allocation.variant >= 0:
            return allocation.variant
        for variant in range(len(stage.latency_s) - 1, 0, -1):
            took_s = stage.latency_s[variant][count - 1][allocation.cores - 1]
            if took_s <= most_urgent_s - self.now_s:
                return variant
        return 0

    def _settle(self):
        ended = [
            (running.finish_s, k, place)
            for k, row in enumerate(self.replicas)
            for place, running in enumerate(row)
            if running is not None and running.finish_s <= self.now_s
        ]
        for _, k, place in sorted(ended):
            running, self.replicas[k][place] = self.replicas[k][place], None
            self.done_by[k][running.variant] += len(running.tickets)
            for ticket in running.tickets:
                if not ticket.outcome:
                    self._finish(k, ticket, running)

    def _finish(self, k, ticket, running):
        tasks = self.fan_out(ticket.row, k, ticket.done[k])
        ticket.open[k] -= 1
        ticket.done[k] += 1
        ticket.accuracy[k] += self.stages[k].accuracies[running.variant]
        for follower, stage in enumerate(self.stages):
            if stage.after == (k,):
                for _ in range(tasks):
                    self._join(follower, ticket)
            elif k in stage.after and follower not in ticket.joined:
                open_before = any(ticket.open[before] for before in self._before(follower))
                if not open_before and any(ticket.done[before] for before in stage.after):
                    ticket.joined.add(follower)
                    self._join(follower, ticket)
        if not any(ticket.open):
            in_time = running.finish_s <= ticket.deadline_s
            self._close(ticket, "on_time" if in_time else "late", k, running.finish_s)

    def _before(self, k):
        after = self.stages[k].after
        return set(after).union(*map(self._before, after))

    @staticmethod
    def accuracy(ticket):
        return math.prod([a / d for a, d in zip(ticket.accuracy, ticket.done, strict=True) if d])
