from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sponge_env.serving.core import RequestQueue, ServingCore
from sponge_env.serving.drive import ArrivalCursor
from sponge_env.serving.edf import EdfQueue
from sponge_env.serving.fifo import FifoQueue
from sponge_env.serving.ledger import Ledger, Outcome
from strategies import request_lists

from sponge_env.interfaces import Batch, Completion, Request


def request(number: int, deadline_s: float = 1.0, arrival_s: float = 0.0) -> Request:
    return Request(number, arrival_s, arrival_s, deadline_s)


@given(st.lists(st.floats(0, 10)), st.integers(1, 8))
def test_queue_pops_in_deadline_order(deadlines: list[float], size: int) -> None:
    queue = EdfQueue()
    for number, deadline_s in enumerate(deadlines):
        queue.push(request(number, deadline_s))
    assert list(queue.deadlines_s()) == sorted(deadlines)
    popped: list[Request] = []
    while batch := queue.pop(size):
        assert len(batch) <= size
        popped.extend(batch)
    assert [r.deadline_s for r in popped] == sorted(deadlines)
    assert len({r.id for r in popped}) == len(deadlines)


def test_queue_breaks_ties_by_id() -> None:
    queue = EdfQueue()
    for number in (3, 1, 2):
        queue.push(request(number))
    assert [r.id for r in queue.pop(3)] == [1, 2, 3]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10))), st.integers(1, 8))
def test_fifo_queue_pops_in_order_of_arrival(times: list[tuple[float, float]], size: int) -> None:
    queue = FifoQueue()
    for number, (deadline_s, arrival_s) in enumerate(times):
        queue.push(request(number, deadline_s, arrival_s))
    assert list(queue.deadlines_s()) == sorted(deadline_s for deadline_s, _ in times)
    popped: list[Request] = []
    while batch := queue.pop(size):
        assert len(batch) <= size
        popped.extend(batch)
    expected = sorted((arrival_s, number) for number, (_, arrival_s) in enumerate(times))
    assert [(r.arrival_s, r.id) for r in popped] == expected


@pytest.mark.parametrize("make_queue", [EdfQueue, FifoQueue])
@given(st.lists(st.floats(0, 10)), st.floats(0, 10))
def test_queue_drops_exactly_what_is_due(
    make_queue: Callable[[], RequestQueue], deadlines: list[float], time_s: float
) -> None:
    queue = make_queue()
    for number, deadline_s in enumerate(deadlines):
        queue.push(request(number, deadline_s))
    due = sorted(r.deadline_s for r in queue.pop_due_before(time_s))
    assert due == sorted(d for d in deadlines if d < time_s)
    assert list(queue.deadlines_s()) == sorted(d for d in deadlines if d >= time_s)
    assert len(queue) == len(deadlines) - len(due)


def test_a_request_that_comes_back_after_a_crash_takes_its_old_place() -> None:
    core = ServingCore(math.inf, queue=FifoQueue())
    for number, deadline_s in enumerate((9.0, 5.0, 7.0)):
        core.offer(request(number, deadline_s, arrival_s=0.1 * number))
    first = core.form_batch(1.0, 1)
    assert first is not None
    core.settle(Completion(first, 0, 1.0, 2.0, ok=False))
    again = core.form_batch(2.0, 3)
    assert again is not None
    assert [r.id for r in again.requests] == [0, 1, 2]


def test_ledger_refuses_illegal_moves() -> None:
    ledger = Ledger()
    ledger.offer(request(1))
    with pytest.raises(ValueError, match="offered twice"):
        ledger.offer(request(1))
    with pytest.raises(ValueError, match="request 1 is QUEUED, not RUNNING"):
        ledger.retry(request(1))
    ledger.run([request(1)])
    with pytest.raises(ValueError, match="request 1 is RUNNING, not QUEUED"):
        ledger.drop(request(1), 0.0)


def test_a_request_answered_exactly_at_its_deadline_is_on_time() -> None:
    core = ServingCore(math.inf)
    core.offer(request(1, deadline_s=0.5))
    batch = core.form_batch(0.0, 4)
    assert batch is not None
    core.settle(Completion(batch, 0, 0.0, 0.5))
    assert core.counts.on_time == 1


@pytest.mark.parametrize(("grace_s", "dropped"), [(0.0, [1]), (0.5, []), (math.inf, [])])
def test_drop_policies(grace_s: float, dropped: list[int]) -> None:
    core = ServingCore(grace_s)
    core.offer(request(1, deadline_s=1.0))
    core.offer(request(2, deadline_s=2.0))
    batch = core.form_batch(1.25, 4)
    assert batch is not None
    assert core.counts.dropped == len(dropped)
    assert [r.id for r in batch.requests] == [n for n in (1, 2) if n not in dropped]


def test_a_crash_retries_while_the_budget_lasts() -> None:
    core = ServingCore(math.inf)
    core.offer(request(1, deadline_s=1.0))
    core.offer(request(2, deadline_s=3.0))
    batch = core.form_batch(0.0, 4)
    assert batch is not None
    core.settle(Completion(batch, 0, 0.0, 2.0, ok=False))
    assert (core.counts.failed, core.counts.queued) == (1, 1)
    again = core.form_batch(2.0, 4)
    assert again is not None
    core.settle(Completion(again, 1, 2.0, 2.5))
    columns = core.ledger.columns()
    assert list(columns["outcome"]) == ["failed", "on_time"]
    assert list(columns["attempts"]) == [1, 2]


def test_hopeless_requests_count_apart() -> None:
    core = ServingCore(0.0, hopeless_below_s=0.3)
    core.offer(request(1, deadline_s=0.2))
    core.offer(request(2, deadline_s=0.4))
    core.drop_expired(1.0)
    counts = core.counts
    assert (counts.hopeless, counts.violations, counts.avoidable) == (1, 2, 1)


@given(
    request_lists(),
    st.sampled_from([0.0, 0.2, math.inf]),
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 5), st.booleans()), max_size=60),
)
def test_requests_are_conserved_on_every_path(
    requests: list[Request], grace_s: float, actions: list[tuple[float, int, bool]]
) -> None:
    core = ServingCore(grace_s, hopeless_below_s=0.1)
    arrivals = ArrivalCursor(requests)
    now_s, offered = 0.0, 0
    in_flight: list[Batch] = []
    for gap_s, size, works in actions:
        now_s += gap_s
        for arrived in arrivals.due(now_s):
            core.offer(arrived)
            offered += 1
        if in_flight and size % 2:
            core.settle(Completion(in_flight.pop(0), 0, 0.0, now_s, ok=works))
        elif batch := core.form_batch(now_s, size):
            in_flight.append(batch)
        _assert_conserved(core, offered)
    core.abandon(now_s)
    for batch in in_flight:
        core.settle(Completion(batch, 0, 0.0, now_s))
    _assert_conserved(core, offered)
    assert core.counts.queued == core.counts.running == 0
    assert core.counts.ended == offered


def _assert_conserved(core: ServingCore, offered: int) -> None:
    counts = core.counts
    assert counts.offered == offered
    assert offered == counts.ended + counts.queued + counts.running
    assert counts.queued == len(core.queued_deadlines_s())
    assert counts.running == sum(batch.size for batch, _ in core.running.values())
    outcomes = list(core.ledger.columns()["outcome"])
    for outcome in Outcome:
        assert outcomes.count(outcome.name.lower()) == getattr(counts, outcome.name.lower())


def test_posted_requests_arrive_with_the_next_collect() -> None:
    core = ServingCore(math.inf)
    core.post(request(1))
    assert core.counts.offered == 0
    core.collect()
    assert core.counts.queued == 1
