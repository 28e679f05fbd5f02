"""The system that serves calls, in virtual time: each ends exactly once, whatever happens."""

from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
from fake_calls import Client, served_system
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import QUOTA_PROFILE, short
from test_pipeline import pipeline, stage

from sponge_env import Allocation, StageAllocation
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Initial, Limits, RequestClass, Simulation
from sponge_env.serve.calls import Inbox
from sponge_env.serve.interface import Call, Status
from sponge_env.serve.system import TICK_S

ONE = short(limits=Limits(16, 16, 3, total_cores=48), simulation=Simulation(cold_start_s=0.3))
ONE_CPU = short(limits=Limits(16, 16, 3), simulation=Simulation(cold_start_s=0.3))
HELD = Initial(cores=2, batch=2, replicas=2)
TWO = pipeline(
    stage("finder", "video-detector", fan_out=3, initial=HELD),
    stage("reader", "nlp-sentiment", initial=HELD),
)
KINDS = (RequestClass(1.0, 0.6, 0.0), RequestClass(1.0, 0.8, 0.0, "b"))
MODELS = pipeline(
    stage("a", "video-detector", initial=HELD), stage("b", "nlp-sentiment", initial=HELD, after=()),
    classes=KINDS, limits=Limits(cores=4, total_cores=10),
)  # fmt: skip
SCENARIOS = {"one stage": ONE, "two stages": TWO, "two models": MODELS}
ENDED = ("on_time", "late", "dropped", "failed", "cancelled")


def tasks_of(x):
    return int(x) % 4


def asked(scenario, cores, batch, replicas):
    """Return the same allocation for each stage, within the limits."""
    limits = (stage.limits for stage in scenario.pipeline)
    most = ((own.cores, own.batch, own.replicas) for own in limits)
    held = (map(min, own, (cores, batch, replicas)) for own in most)
    return Allocation(stages=tuple(StageAllocation(*own) for own in held))


def client_of(scenario=ONE, *arguments, **options):
    return Client(served_system(scenario, *arguments, **options))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(list(SCENARIOS)))
def test_each_call_ends_exactly_once(data, name):
    scenario = SCENARIOS[name]
    stages, times_s = len(scenario.pipeline), st.floats(0.0, 5.0)
    crashes = st.lists(st.tuples(times_s, st.integers(0, stages - 1)), max_size=6).map(sorted)
    queue_max = data.draw(st.integers(1, 12))
    client = client_of(scenario, queue_max=queue_max, crashes=data.draw(crashes), tasks=tasks_of)
    system = client.system
    deeds = st.one_of(
        st.tuples(times_s, st.just("submit"), st.floats(-0.1, 2.0)),
        st.tuples(times_s, st.just("cancel"), st.integers(0, 50)),
        st.tuples(times_s, st.just("submit_for"), st.floats(0.01, 1.0)),
    )
    for at_s, what, how in data.draw(st.lists(deeds, max_size=60).map(sorted)):
        client.at(at_s, getattr(client, what), how)
    totals, intervals = dict.fromkeys(("offered", *ENDED), 0), data.draw(st.integers(1, 5))
    for interval in range(intervals):
        sizes = (data.draw(st.integers(1, most)) for most in (16, 16, 3))
        metrics = system.step(asked(scenario, *sizes))
        if interval + 1 < intervals:
            totals = {key: totals[key] + getattr(metrics, key) for key in totals}
        check_rows(system._table)
    system.close_by(system.stamp(system.worker.now() + data.draw(st.floats(0.0, 3.0))))
    system.drain()
    system.abandon(Status.STOPPED)

    check_told(client, name)
    # the metrics of the last interval went on while the system drained
    totals = {key: totals[key] + int(system._metrics[key][0]) for key in totals}
    pending = check_accounts(client, totals)
    assert not system._by_ticket
    assert not system.inbox
    check_rows(system._table)
    check_batches(client)
    if name != "one stage":
        assert system._env["opened"] == pending


def check_rows(table):
    """Check that each row is free or used, and none is both."""
    held = [row for row, call in enumerate(table._calls) if call or table._tasks[row]]
    assert sorted([*table._free, *held]) == list(range(table.spare))


def check_told(client, name):
    """Check that each call was told once how it ended, with an answer of its own."""
    for ticket, told in client.replies.items():
        assert len(told) == 1
        (reply,), x = told, client.inputs[ticket]
        assert (reply.output is not None) == (reply.status is Status.ANSWERED)
        if reply.output is None:
            continue
        expected = [[x + 0.5, k + 0.5] for k in range(tasks_of(x))]
        expected = expected if name == "two stages" else [[x + 0.5]]
        assert reply.output.tolist() == expected
        assert reply.queue_s >= 0 < min(reply.service_s, reply.batch)
        assert reply.variant


def check_batches(client):
    """Check that each batch that has ended counts, with its stage, size and time."""
    counted = client.system.batches.totals()
    for k, sizes in enumerate(counted):
        ended = [c for c in client.worker.ended if c.batch.stage == k]
        assert {each.size: each.ended for each in sizes} == Counter(c.batch.size for c in ended)
        service_s = sum(c.finished_s - c.started_s for c in ended)
        assert sum(each.service_s for each in sizes) == pytest.approx(service_s)
    assert len(counted) == len(client.worker.workers)


def check_accounts(client, totals):
    """Check that the metrics say what the clients were told; return how many still run."""
    told = {status: client.statuses.count(status) for status in Status}
    answered = totals["on_time"] + totals["late"]
    dropped = told[Status.EXPIRED] + told[Status.REFUSED]
    pending = totals["offered"] - sum(totals[key] for key in ENDED)
    # Of what runs when all is stopped nobody asks how it ends; nor of what was taken back then.
    assert pending >= 0
    assert (totals["offered"], answered) == (len(client.replies), told[Status.ANSWERED])
    assert totals["failed"] <= told[Status.FAILED]
    assert dropped <= totals["dropped"] <= dropped + told[Status.STOPPED]
    assert totals["cancelled"] <= told[Status.CANCELLED] <= totals["cancelled"] + pending
    assert sum(told.values()) == totals["offered"]
    return pending


def replies_of(client, status):
    return [told[0] for told in client.replies.values() if told and told[0].status is status]


def test_a_model_that_is_unloaded_ends_its_calls_and_keeps_one_core():
    client, wanted = client_of(MODELS), asked(MODELS, 4, 1, 1)
    client.submit_at(0.5, 5.0, count=40)
    client.at(0.55, client.system.set_loaded, [1], False)
    client.submit_at(0.6, 5.0, count=4)
    client.step(wanted)
    assert len(replies_of(client, Status.STOPPED)) > 10
    assert client.statuses[-4:].count(Status.STOPPED) == 2  # of what came later
    assert not replies_of(client, Status.REFUSED)
    assert client.step(wanted).stages["b"]["cores"] == 1.0
    assert client.system.allocation.stages == (StageAllocation(4, 1), StageAllocation(1, 1))
    client.system.set_loaded([1], True)
    client.submit_at(2.5, 5.0, count=2)
    client.step(wanted)
    assert (client.statuses[-2:], client.system.allocation) == ([Status.ANSWERED] * 2, wanted)


def test_calls_of_a_model_that_is_loaded_again_at_once_were_stopped_not_taken_back():
    client = client_of(MODELS)
    client.submit_at(0.5, 5.0, count=40)
    for on in (False, True):
        client.at(0.55, client.system.set_loaded, [1], on)
    client.step(asked(MODELS, 4, 1, 1))
    assert len(replies_of(client, Status.STOPPED)) > 10
    assert not replies_of(client, Status.CANCELLED)


def test_what_cannot_be_met_is_refused_at_once():
    """The fastest service of one request takes 26 ms here."""
    client = client_of(ONE)
    fastest_s = float(client.system._arrays.models["hopeless_below_s"][0, 0])
    for at_s, budget_s in ((0.1, -1.0), (0.2, 0.9 * fastest_s), (0.3, 1.1 * fastest_s)):
        client.submit_at(at_s, budget_s)
    metrics = client.step(Allocation(16, 1))
    assert client.statuses == [Status.REFUSED, Status.REFUSED, Status.ANSWERED]
    assert (metrics.offered, metrics.dropped, metrics.on_time) == (3, 2, 1)


@pytest.mark.parametrize("scenario", [ONE, MODELS])
def test_controllers_see_all_requests_that_arrived_those_refused_too(scenario):
    client = client_of(scenario)
    for k in range(30):
        client.submit_at(0.1 + 0.01 * k, 0.5 if k % 3 == 0 else -1.0)
    metrics, view = client.step(asked(scenario, 4, 4, 1)), client.system.view()
    assert metrics.offered == view.delays_s.size == view.arrived_s.size == 30
    count = len(view.stages)
    assert [stage.arrivals.tolist() for stage in view.stages] == [[30 / count]] * count


@pytest.mark.parametrize("order", ["edf", "fifo"])
def test_calls_are_served_in_the_order_of_the_scenario(order):
    client = client_of(changed(ONE, {"serving.order": order, "serving.drop": "none"}))
    client.submit_at(0.1, 5.0, 3)
    client.submit_at(0.1, 2.0)
    client.step(Allocation(1, 1))
    ends_s = [told[0].finished_s for told in client.replies.values()]
    assert (ends_s[3] < ends_s[1]) == (order == "edf")


def test_what_runs_counts_as_long_as_it_holds_its_replica():
    """Thirteen run until 0.56 s on 16 cores, which is far from the cheapest way to use them."""
    client = client_of(ONE)
    client.submit_at(0.1, 5.0, 13)
    for at_s, due_s in ((0.11, 0.50), (0.12, 0.71), (0.13, 0.91)):
        client.submit_at(at_s, due_s - at_s)
    client.step(Allocation(16, 16))
    assert client.statuses[13:] == [Status.REFUSED, Status.ANSWERED, Status.ANSWERED]


def test_more_than_there_is_room_for_is_refused():
    client = client_of(ONE, queue_max=3)
    client.submit_at(0.1, 30.0, 5)
    client.system.step(Allocation(1, 1))
    refused = replies_of(client, Status.REFUSED)
    assert client.statuses[-2:] == [Status.REFUSED] * len(refused)
    assert all(reply.retry_after_s > 0 for reply in refused)
    assert client.system._metrics["overflowed"][0] == 0


def test_a_model_s_backlog_takes_no_room_from_another():
    client = client_of(MODELS, queue_max=4)
    for budget_s in (60.0, -1.0) * 8 + (60.0, 5.0):
        client.submit_at(0.1, budget_s)
    client.step(asked(MODELS, 4, 1, 1))
    (last,) = [*client.replies.values()][-1]
    assert (last.status, len(replies_of(client, Status.REFUSED))) == (Status.ANSWERED, 8 + 5)


def test_what_waits_longer_than_it_may_has_expired_then():
    """Not only at the end of the interval, or when a replica is idle: here there is none."""
    client, told = client_of(ONE, crashes=[(0.1, 0)]), []
    client.submit_at(0.15, 0.2)
    client.at(0.38, lambda: told.extend(client.statuses))
    client.step(Allocation(16, 1))
    assert told == [Status.EXPIRED]
    ((reply,),) = client.replies.values()
    assert not reply.in_time
    assert reply.finished_s == pytest.approx(client.system.stamp(0.35), abs=1e-4)


def test_what_is_taken_back_as_it_expires_ends_once():
    """Its place in the pipeline belongs to the next call by then."""
    client = client_of(TWO, crashes=[(0.05, 0), (0.05, 0)], tasks=tasks_of)
    for _ in range(16):
        client.at(0.1, client.submit_for, 0.2)
    client.submit_at(0.1 + 0.2 + TICK_S, 30.0, 16)
    ended = [client.step(asked(TWO, 2, 2, 2)) for _ in range(20)]
    assert client.statuses == [Status.EXPIRED] * 16 + [Status.ANSWERED] * 16
    assert (sum(m.offered for m in ended), sum(m.dropped for m in ended)) == (32, 16)
    assert (sum(m.cancelled for m in ended), client.system._env["opened"]) == (0, 0)


def test_the_place_of_what_has_just_expired_is_free():
    client = client_of(ONE, queue_max=1, crashes=[(0.85, 0)])
    client.submit_at(0.9, 0.5)
    client.step(Allocation(16, 1))
    while client.worker.now() < 2.0:
        client.worker.wait(2.0)  # nobody serves
    client.submit(30.0)
    client.step(Allocation(16, 1))
    assert client.statuses == [Status.EXPIRED, Status.ANSWERED]


def test_goodput_holds_under_overload():
    """Three times what all cores can serve, which is 100 a second."""
    client = client_of(ONE_CPU, QUOTA_PROFILE, queue_max=1024)
    capacity_rps, seconds = client.system.spec.first.capacity_rps, 10
    times_s = np.arange(0, seconds, 1 / (3 * capacity_rps))
    for at_s in times_s.tolist():
        client.submit_at(at_s, 0.5)
    metrics = [client.step(Allocation(16, 16)) for _ in range(seconds)]
    assert sum(m.on_time for m in metrics) / seconds > 0.9 * capacity_rps
    assert sum(m.late for m in metrics) < 0.02 * len(times_s)
    refused = client.statuses.count(Status.REFUSED)
    assert refused > 0.9 * sum(m.dropped for m in metrics)
    shed = [reply for reply in replies_of(client, Status.EXPIRED) if reply.in_time]
    assert len(shed) == sum(m.dropped for m in metrics) - refused
    on_time = [reply for reply in replies_of(client, Status.ANSWERED) if reply.in_time]
    assert len(on_time) == sum(m.on_time for m in metrics)


def test_memory_does_not_grow_with_time():
    client, sizes = client_of(TWO, tasks=tasks_of), set()
    system = client.system
    for interval in range(60):
        for k in range(8):
            client.submit_at(interval + 0.1 * k, 0.5)
        system.step(asked(TWO, 2, 2, 2))
        handover = client.worker.handover
        sizes.add(tuple(map(len, (handover._requests, handover._running, system._table._batches))))
    assert max(map(sum, sizes)) < 40
    assert len(system._history[0]) == 30
    assert not system._env["ended"]


def test_waiting_and_service_add_up_over_stages():
    client = client_of(TWO, tasks=tasks_of)
    client.submit_at(0.1, 5.0)
    client.submit_at(0.2, 5.0, 3)
    for _ in range(4):
        client.step(asked(TWO, 2, 1, 1))
    for ticket, (reply,) in client.replies.items():
        began_s = client.system.stamp(0.1 if client.inputs[ticket] == 0 else 0.2)
        assert reply.queue_s + reply.service_s == pytest.approx(reply.finished_s - began_s)
    queues_s = [reply.queue_s for (reply,) in client.replies.values()]
    assert queues_s[0] == pytest.approx(0.0, abs=1e-9)
    assert max(queues_s) > 0


def test_a_batch_leaves_out_what_it_would_make_late():
    """A batch of ten takes 100 ms; what comes meanwhile has 15 ms left then, enough for itself."""
    client = client_of(ONE_CPU, QUOTA_PROFILE)
    client.submit_at(0.01, 5.0, 10)
    for budget_s in (0.075, 1.0, 1.0, 1.0):
        client.submit_at(0.05, budget_s)
    metrics = client.step(Allocation(16, 16))
    assert (metrics.on_time, metrics.late, metrics.dropped) == (14, 0, 0)
    assert [reply.batch for (reply,) in client.replies.values()] == [10] * 10 + [1, 3, 3, 3]


def test_a_slow_time_is_forgotten_when_nothing_tells_of_it_any_more():
    """As long as all is given up because of it, no batch would tell that it is over."""
    client = client_of(ONE)
    usual_s = float(client.system.spec.stages[0].latencies[0].table_s(16, 16)[0, 15])
    for _ in range(100):
        client.system._slowdowns[0].add(0, 1, 16, 3 * usual_s)
    for second in range(12):
        client.submit_at(second + 0.5, 1.7 * usual_s)
        client.step(Allocation(16, 1))
    assert client.statuses[0] is Status.REFUSED
    assert client.statuses[-1] is Status.ANSWERED


def test_a_batch_whose_cores_have_changed_says_nothing_of_the_pace():
    client = client_of(ONE)
    system = client.system
    client.submit_at(0.9, 5.0)
    system.step(Allocation(1, 1))
    system.step(Allocation(16, 1))
    assert (client.statuses, system._slowdowns[0].factor) == ([Status.ANSWERED], 1.0)
    assert not system._steady_cores


CALL = Call(np.zeros(1), 0.0, 1.0, 8)


def filled_inbox(count, wake):
    inbox = Inbox(wake)
    return inbox, [inbox.submit(CALL, lambda _: None) for _ in range(count)]


class Interrupted(deque):
    """After something is put in, another thread does this before the first one goes on."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = meanwhile

    def append(self, item):
        super().append(item)
        self.meanwhile()


def test_no_call_is_left_without_waking_the_engine():
    """Not even after one that the engine took while it was awake for another reason."""
    client, wakes = client_of(short()), []
    system = client.system
    inbox = system.inbox = Inbox(lambda: wakes.append(1))
    inbox._waiting = Interrupted(lambda: system._take_in(0.0, 0.0))
    client.submit(30.0)
    assert (len(inbox), len(wakes)) == (0, 1)
    system._take_in(0.0, 0.0)  # woken, it finds nothing
    inbox._waiting = deque()
    client.submit(30.0)
    assert (len(inbox), len(wakes)) == (1, 2)


def test_the_engine_is_woken_once_for_many():
    wakes = []
    inbox, tickets = filled_inbox(5, lambda: wakes.append(1))
    assert (len(wakes), [submitted.ticket for submitted in inbox.take(3)]) == (1, tickets[:3])
    inbox.cancel(tickets[4])
    assert len(wakes) == 2
    left = [(submitted.ticket, submitted.call) for submitted in inbox.take(9)]
    assert left == [(tickets[3], CALL), (tickets[4], CALL), (tickets[4], None)]


def test_two_may_take_at_the_same_time():
    inbox, tickets = filled_inbox(3, lambda: None)
    first = inbox.take(3)
    assert [next(first).ticket, *(each.ticket for each in inbox.take(3))] == tickets
    assert list(first) == []


def test_answers_may_lead_to_more_tasks_than_the_scenario_says():
    finder, reader = TWO.pipeline
    narrow = pipeline(replace(finder, fan_out=1), reader)
    client = client_of(narrow, queue_max=4, tasks=lambda x: 40)
    client.submit_at(0.1, 3000.0, 4)
    while len(client.statuses) < 4:
        client.step(asked(narrow, 2, 2, 1))
    assert client.statuses == [Status.ANSWERED] * 4
    assert {len(told[0].output) for told in client.replies.values()} == {40}


def test_a_single_text_is_an_answer():
    """NumPy gives an element of an array of texts as no array."""
    system = client_of(ONE).system
    system.worker.take_answers = lambda _: [np.bytes_(b"yes")]
    assert system._output(0).tolist() == [b"yes"]
