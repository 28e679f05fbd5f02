"""The system that serves calls: requests come from outside, and each gets a reply when it ends.

Everything else is the live system's. Nothing grows with the time that it serves: rows of
``requests`` are free once their request has ended, and the ledger starts over after each move.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core import entry
from sponge_env.core.batching import is_on_time
from sponge_env.core.compiled import rows as as_rows
from sponge_env.core.records import LEDGER_ROW, LISTED_REQUEST, Arrays
from sponge_env.errors import ModelError
from sponge_env.interfaces import Allocation, Batch, Completion, Outcome, SystemSpec, Worker
from sponge_env.live.fleet import HEARTBEAT_S
from sponge_env.live.system import LiveSystem
from sponge_env.metrics import IntervalMetrics
from sponge_env.models.model import TensorSpec
from sponge_env.scenario.config import Arrivals, Network, Serving, Variant
from sponge_env.scenario.graph import is_set
from sponge_env.scenario.profile import Profile, local_model
from sponge_env.scenario.scenario import Scenario
from sponge_env.serve.calls import BatchCounts, Inbox, OpenCall, RowTable, Submitted
from sponge_env.serve.interface import Call, Reply, Status
from sponge_env.simulation.configuration import Configuration
from sponge_env.simulation.workload import Workload

LOG = logging.getLogger("sponge_env")

PLANNED_S = 60.0  # Duration of the scenario that tables are made for; serving has no end
TICK_S = 1e-6  # How long after its deadline a request has expired
MAX_WAIT_S = 86_400.0  # Later deadlines are shortened to it: controllers calculate with them
MAX_AT_ONCE = 256  # Calls that are taken in before batches are formed and replies are sent

_STATUS: dict[int, Status] = {
    Outcome.ON_TIME: Status.ANSWERED, Outcome.LATE: Status.ANSWERED,
    Outcome.DROPPED: Status.EXPIRED, Outcome.FAILED: Status.FAILED,
    Outcome.CANCELLED: Status.CANCELLED,
}  # fmt: skip
_COLUMNS = LEDGER_ROW.names or ()
_ROW, _OUTCOME, _FINISHED = map(_COLUMNS.index, ("row", "outcome", "finished_s"))


class CallWorker(Worker, Protocol):
    """A worker that takes the requests' own inputs, and keeps the answers."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`wait` would return."""

    def bring(self, request: int, tensor: NDArray[Any], stage: int = 0) -> None:
        """Keep the input that a request brings to a stage, until it ends."""

    def take_answers(self, request: int) -> list[NDArray[Any]]:
        """Return the answers to the last stage's tasks, in order, or raise ``ModelError``."""


def variant_name(variant: Variant) -> str:
    """Return the name of a variant for clients: its own, or its model's on this machine."""
    model = local_model(variant.profile)
    return variant.called if variant.name or model is None else Path(model).stem


def endless(scenario: Scenario) -> Scenario:
    """Return a scenario as it is served: no traffic of its own, and what is late is dropped."""
    # Of a set of models, classes say which objective each has.
    classes = (replace(kind, arrivals=None) for kind in scenario.classes)
    return replace(
        scenario, duration_s=max(PLANNED_S, 2 * scenario.interval_s), start="cold",
        classes=tuple(classes) if is_set(scenario.stages) else (),
        arrivals=Arrivals(kind="constant", rate_rps=1.0),
        network=Network(trace="none", base_delay_s=0.0),
        serving=Serving(drop="unmeetable", order=scenario.serving.order),
    )  # fmt: skip


class ServedSystem(LiveSystem):
    """The live system on calls that come in through an inbox, and end each exactly once."""

    worker: CallWorker

    def __init__(
        self, scenario: Scenario, make_worker: Callable[[SystemSpec], CallWorker],
        profile: Profile | None = None, *, outputs: TensorSpec | None = None, queue_max: int = 1024,
    ) -> None:  # fmt: skip
        """Start to serve a scenario without end; see :class:`LiveSystem` for the worker."""
        # Its traffic is not drawn. Requests of a model beyond ``queue_max`` are refused. The last
        # stage's ``outputs`` are needed where a request may have no task there.
        self._outputs = outputs or TensorSpec(())
        self._table = RowTable(queue_max, max(1, len(scenario.models)))  # Rows of ``requests``
        self._by_ticket: dict[int, OpenCall] = {}
        self._past: list[tuple[Any, ...]] = []  # Rows of the ledger read in this interval
        self._arriving: list[tuple[float, float, float, int]] = []
        """When calls came, their delays, budgets and stages."""
        self._arrivals = np.zeros((4, 0))
        self._closing_s = math.inf
        self._ended_s = 0.0  # End of the present interval
        self._waiting = False  # Whether anything may wait in the queues
        self.turn = threading.Condition(threading.Lock())  # The thread that holds it serves
        self.lent = False  # Whether another one may serve while the serving thread waits
        self._next_s = -math.inf  # Until when it waits, if it does
        self._error: Exception | None = None  # Of the other thread
        self._dropped = Status.EXPIRED
        self.unloaded: frozenset[int] = frozenset()  # Stages that take no calls
        super().__init__(endless(scenario), 0, make_worker, profile)
        self._offset_s = time.monotonic() - self.worker.now()
        self.variants = [tuple(map(variant_name, stage.variants)) for stage in self.plan.pipeline]
        """What the variants of each stage are called."""
        self.batches = BatchCounts([stage.batch_max for stage in self.spec.stages])
        self.inbox = Inbox(self.worker.wake)

    def _make_memory(self, setup: Configuration, seed: int, workload: Workload | None) -> Arrays:
        room, count = setup.room, self._table.spare + 1
        again = max(stage.batch_max for stage in self.spec.stages)  # of a replica that died
        room.hold(self.spec, count + again, self.max_tasks)
        room.ledger = 2 * count + MAX_AT_ONCE
        # Replicas, those that drain included, have at least a core each.
        room.replicas = min(room.replicas, self.spec.total_cores)
        requests = as_rows(np.zeros((1, count), LISTED_REQUEST))
        requests["sent_s"] = requests["arrival_s"] = np.inf
        return setup.allocate(1)._replace(requests=requests)

    def _rehearse(self) -> None:
        moves = self._arrays, self._metrics
        entry.offer(*moves, 0, 0, (0.0, 0.0, 0.0), 0.0, 0.0, True, 0)
        entry.cancel(*moves, 0, 0.0)
        super()._rehearse()

    @property
    def done(self) -> bool:
        """Never: there is no last interval."""
        return False

    @property
    def is_closed(self) -> bool:
        """Whether it has been told to close, and no call or no time is left."""
        if self._closing_s == math.inf:
            return False
        return self.worker.now() >= self._closing_s or not (self._by_ticket or self.inbox)

    def at(self, monotonic_s: float) -> float:
        """Return the time of a stamp of the machine's monotonic clock."""
        return monotonic_s - self._offset_s

    def stamp(self, now_s: float) -> float:
        """Return the stamp of the machine's monotonic clock at a time."""
        return now_s + self._offset_s

    def close_by(self, monotonic_s: float) -> None:
        """Serve on until all calls have ended, at most until then."""
        self._closing_s = self.at(monotonic_s)

    def set_loaded(self, stages: Iterable[int], loaded: bool) -> None:
        """Take calls for some stages, or end them and take no more; in the thread of the loop."""
        self.unloaded = self.unloaded - {*stages} if loaded else self.unloaded | {*stages}
        for ticket, call in list(self._by_ticket.items()):
            if call.stage in self.unloaded:
                self.inbox.cancel(ticket, Status.STOPPED)

    def step(self, allocation: Allocation, decision_s: float = 0.0) -> IntervalMetrics:
        """See :meth:`System.step`; stages that take no calls keep a replica of one core."""
        stages = [*allocation.stages]
        for k in self.unloaded:
            stages[k] = stages[k]._replace(cores=1, batch=1, replicas=1, variant=0)
        if not self.spec.models:  # replicas may have become ready since it was decided
            stages = [*self.spec.fit_stages(stages, "cores", self._ready)]
        return super().step(replace(allocation, stages=tuple(stages)), decision_s)

    def abandon(self, status: Status) -> None:
        """End all calls that are left with a status, whatever the worker still does."""
        self._dropped = status
        try:
            self._take_calls(self.worker.now(), len(self.inbox))
            entry.abandon(self._arrays, self._metrics, self.worker.now())
            self._read_ledger()
        finally:
            for call in list(self._by_ticket.values()):
                self._end_call(call, Reply(status, finished_s=time.monotonic()))

    def drain(self) -> None:
        """Serve what is left under the allocation in force, as :meth:`close_by` says."""
        while not self.is_closed:
            self._drive(self._closing_s)

    def _last_arrivals(self) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
        return *self._arrivals[:3].copy(), self._arrivals[3].astype(np.int64)

    def _next_arrivals(self, offered: int) -> None:
        self._arrivals = np.array(self._arriving, np.float64).reshape(offered, 4).T
        self._arriving = []

    def _ended_since(self, ended: int) -> NDArray[Any]:
        past, self._past = self._past, []
        return np.array(past, LEDGER_ROW)

    def _ends_s(self) -> float:
        """Return when the interval ends that begins; missed intervals are skipped."""
        interval_s = self.spec.interval_s
        self._ended_s = max(self._ended_s, self.worker.now() - interval_s / 2) + interval_s
        return self._ended_s

    def _wait(self, until_s: float) -> None:
        if self.lent:
            self._next_s = until_s
            self.turn.wait(min(max(0.0, until_s - self.worker.now()), HEARTBEAT_S))
            self._next_s = until_s = -math.inf
        if self._error is not None:
            raise self._error
        super()._wait(until_s)

    def serve_now(self, events: bool) -> bool:
        """Do what is due now, in another thread; with ``events``, take in the worker's first.

        Return False, with nothing done, while the serving thread has its turn.
        """
        if not self.turn.acquire(blocking=False):
            return False
        try:
            if self.lent:
                if events:
                    super()._wait(-math.inf)
                    if not (self._by_ticket or self.inbox or self._closing_s < math.inf):
                        return True  # all are answered: the ledger is read when something comes
                if (next_s := self._advance(self._ended_s)) is None or next_s < self._next_s:
                    self.turn.notify()
        except Exception as error:
            self._error, self.lent = error, False
            self.turn.notify()
        finally:
            self.turn.release()
        return True

    def _is_over(self, now_s: float, until_s: float) -> bool:
        return now_s >= until_s or self.is_closed

    def _take_in(self, now_s: float, until_s: float) -> float:
        next_s = math.inf
        if self._waiting:
            next_s = entry.drop_expired(self._arrays, self._metrics, now_s)
            self._waiting = next_s < math.inf
        next_s = min(next_s, self._take_calls(now_s, MAX_AT_ONCE))
        # A request may still be answered at its deadline: it expires after that.
        return min(next_s + TICK_S, self._closing_s)

    def _take_calls(self, now_s: float, count: int) -> float:
        """Take in what has come; return the earliest deadline of these calls, or now for more."""
        next_s = math.inf
        for submitted in self.inbox.take(count):
            if submitted.call is None:
                self._cancel(submitted, now_s)
            else:
                next_s = min(next_s, self._offer(submitted, submitted.call, now_s))
        return now_s if self.inbox else next_s

    def _offer(self, submitted: Submitted, call: Call, now_s: float) -> float:
        """Take in a call, or refuse it; return its deadline, infinite if it does not wait."""
        if call.stage in self.unloaded:
            send(submitted.done, Reply(Status.STOPPED, finished_s=self.stamp(now_s)))
            return math.inf
        deadline_s = min(self.at(call.deadline_s), now_s + MAX_WAIT_S)
        sent_s = min(now_s, self.at(call.sent_s))
        if not self._table.has_room(call.stage):
            self._read_ledger()  # what has just expired
        # Only what waits has a row of its own.
        has_row, row = self._table.has_room(call.stage), self._table.next
        times_s = sent_s, now_s, deadline_s
        self._arriving.append((now_s, now_s - sent_s, deadline_s - now_s, call.stage))
        ticket = submitted.ticket
        # From here on it gets a reply, even if something below goes wrong.
        own = OpenCall(ticket, row, now_s, submitted.done, now_s, call.stage)
        self._by_ticket[ticket] = own
        moves, payload_bytes = (self._arrays, self._metrics), float(call.payload_bytes)
        decides_s, k = self._ended_s, call.stage
        late_by_s = entry.offer(*moves, row, ticket, times_s, payload_bytes, decides_s, has_row, k)
        if late_by_s != 0.0:
            self._read_ledger()  # before the row is another's
            retry_s = self.spec.interval_s if math.isnan(late_by_s) else late_by_s
            refusal = Reply(Status.REFUSED, finished_s=self.stamp(now_s), retry_after_s=retry_s)
            self._end_call(own, refusal)
            return math.inf
        self._table.hold(own)
        self.worker.bring(ticket, call.tensor, call.stage)
        self._waiting = True
        return deadline_s

    def _cancel(self, submitted: Submitted, now_s: float) -> None:
        self._read_ledger()  # it may just have ended: clients cancel when a deadline passes
        if (call := self._by_ticket.get(submitted.ticket)) is not None:
            entry.cancel(self._arrays, self._metrics, call.row, now_s)
            self._end_call(call, Reply(submitted.status, finished_s=self.stamp(now_s)))

    def _start(self, k: int) -> bool:
        return self._waiting and super()._start(k)

    def _begin(self, batch: Batch, rows: NDArray[Any]) -> None:
        self._table.begin(batch.id, rows.tolist())
        super()._begin(batch, rows)

    def _end(self, completion: Completion) -> None:
        batch = completion.batch
        cores = int(self._arrays.stages["planned_cores"][0, batch.stage])
        stages = self._arrays.stages[0]
        # If nothing waits for the replica, replies come before the accounts, which take as long.
        at_once = completion.ok and len(stages) == 1 and bool(stages["tail"] <= stages["head"])
        for call in self._table.end(batch.id):
            call.add_batch(completion)
            call.batch, call.cores = batch.size, cores
            call.variant = self.variants[batch.stage][batch.variant]
            if at_once and call.ticket in self._by_ticket:
                end_s, due_s = completion.finished_s, self._arrays.requests["deadline_s"]
                outcome = Outcome.ON_TIME if is_on_time(due_s[0, call.row], end_s) else Outcome.LATE
                self._end_call(call, self._reply(call, outcome, end_s))
        super()._end(completion)
        if completion.ok:
            self.batches.add(completion)
        self._waiting |= batch.stage + 1 < len(self.spec.stages) or not completion.ok

    def _read_ledger(self) -> None:
        if not (ended := int(self._env["ended"])):
            return
        rows = self._arrays.ledger[0, :ended].tolist()
        self._past += rows
        self._env["ended"] = 0
        tickets = []
        for closed in rows:
            if (call := self._table.close(closed[_ROW])) is None:
                continue  # it was refused
            tickets.append(call.ticket)
            if call.ticket in self._by_ticket:
                self._end_call(call, self._reply(call, closed[_OUTCOME], closed[_FINISHED]))
        self.worker.forget(tickets)

    def _reply(self, call: OpenCall, outcome: int, finished_s: float) -> Reply:
        in_time = outcome == Outcome.ON_TIME
        if outcome == Outcome.DROPPED:  # before its deadline, if it was shed
            in_time = finished_s <= float(self._arrays.requests["deadline_s"][0, call.row])
        status = self._dropped if outcome == Outcome.DROPPED else _STATUS[outcome]
        output, reason = None, ""
        try:
            if status is Status.ANSWERED:
                output = self._output(call.ticket)
        except ModelError as error:
            status, reason = Status.INVALID, str(error)
        queue_s = max(0.0, finished_s - call.arrived_s - call.service_s)
        times_s = self.stamp(finished_s), queue_s, call.service_s
        last = call.batch, call.cores, call.variant
        return Reply(status, output, *times_s, *last, in_time=in_time, reason=reason)

    def _output(self, ticket: int) -> NDArray[Any]:
        if not (answers := self.worker.take_answers(ticket)):
            return np.zeros((0, *self._outputs.shape), self._outputs.element)
        return np.asarray(answers[0])[np.newaxis] if len(answers) == 1 else np.stack(answers)

    def _end_call(self, call: OpenCall, reply: Reply) -> None:
        del self._by_ticket[call.ticket]
        send(call.done, reply)


def send(done: Callable[[Reply], None], reply: Reply) -> None:
    """Send a reply through a callback, whose errors are only logged."""
    try:
        done(reply)
    except Exception:
        LOG.exception("a reply could not be sent")
