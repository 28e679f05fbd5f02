"""The live system, on workers without processes: the same rules as the simulated one."""

import math

import numpy as np
import pytest
from differential import allocations, check_alike, check_columns, check_same
from drawn_scenarios import SEEDS, scenarios
from fake_worker import FakeStages, FakeWorker, profile_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import make_system, worker_settings
from scenarios import SHORT, STEADY_PROFILE, requests_at, short
from test_pipeline import model_of, pipeline, stage

from sponge_env import Allocation, StageAllocation
from sponge_env.live.system import LiveSystem
from sponge_env.run.suite import changed
from sponge_env.scenario.config import Initial, Limits, RequestClass, Serving, Simulation
from sponge_env.scenario.spec import make_spec, scenario_profile
from sponge_env.simulation.system import SimulatedSystem

OUTCOMES = ("queued", "running", "on_time", "late", "dropped", "failed")


def fake_worker(scenario, profile, spec, seed, **settings):
    return FakeWorker(**{**worker_settings(scenario, profile, spec, seed), **settings})


def live_system(scenario, seed=0, profile=None, workload=None, hold=False, **settings):
    profile = profile or scenario_profile(scenario)

    def make_worker(spec):
        return fake_worker(scenario, profile, spec, seed, **settings)

    return LiveSystem(scenario, seed, make_worker, profile, workload, hold_between_steps=hold)


def check_live(scenario, seed, crashes_s=()):
    """Compare the live system with the reference, each on a worker of its own."""
    profile, live = scenario_profile(scenario), live_system(scenario, seed, crashes_s=crashes_s)
    worker = fake_worker(scenario, profile, make_spec(scenario, profile), seed, crashes_s=crashes_s)
    check_alike(live, make_system(scenario, seed, worker=worker), allocations(scenario, seed))
    return live


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data(), seed=SEEDS)
def test_it_serves_as_the_reference_and_the_simulated_system_do(files, data, seed):
    # How long a resize takes is a real worker's own business. And the live system counts with the
    # pace of its batches, which is the profile's only where no noise makes some of them slow.
    scenario = changed(data.draw(scenarios(files)), {"simulation.actuation_delay_s": 0.0})
    if scenario.serving.drop == "unmeetable":
        scenario = changed(scenario, {"simulation.noise": 0.0})
    check_live(scenario, seed)
    crashes_s = data.draw(st.lists(st.floats(0, scenario.duration_s + 1), max_size=12).map(sorted))
    check_live(scenario, seed, crashes_s)
    live, simulated = live_system(scenario, seed), SimulatedSystem(scenario, seed)
    for wanted in allocations(scenario, seed)[: live.plan.intervals]:
        value, expected = live.step(Allocation(*wanted)), simulated.step(Allocation(*wanted))
        check_same(value, expected, "metrics", 1e-9)
        check_same(live.view(), simulated.view(), "view", 1e-9)
    for system in (live, simulated):
        system.drain()
    check_columns(live, simulated, 1e-9)


def test_controllers_are_told_of_the_delay_of_limits_from_outside(monkeypatch):
    scenario = short(simulation=Simulation(actuation_delay_s=0.2))
    assert live_system(scenario).spec.resize_delay_s == 0.0
    monkeypatch.setattr(FakeWorker, "limiter", "remote-cgroup-v2+remote-outside")
    assert live_system(scenario).spec.resize_delay_s == 0.2


def test_deaths_lead_to_every_outcome():
    """So that the comparison above is one of retries and failures, too."""
    cold = {"limits": Limits(16, 16, 3), "simulation": Simulation(cold_start_s=0.3)}
    scenario = short(slo_s=0.6, serving=Serving("expired"), **cold)
    live = check_live(scenario, 1, np.arange(0.0, 20.0, 0.7).tolist())
    columns = live.columns()
    assert set(columns["outcome"]) == {"on_time", "late", "dropped", "failed"}
    assert columns["attempts"].max() > 1
    assert live.worker.status().restarts > 5


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), seed=SEEDS)
def test_requests_are_conserved_at_any_moment(files, data, seed):
    scenario = data.draw(scenarios(files, Limits(16, 16, 4)))
    crashes_s = data.draw(st.lists(st.floats(0, scenario.duration_s), max_size=12).map(sorted))
    systems, crashing = [], {"crashes_s": crashes_s}
    crashing["watch"] = lambda: [check_conserved(each) for each in systems]
    systems.append(system := live_system(scenario, seed, **crashing))
    totals = dict.fromkeys(("offered", *OUTCOMES), 0)
    for wanted in allocations(scenario, seed)[: system.plan.intervals]:
        metrics = system.step(Allocation(*wanted))
        totals |= {name: totals[name] + getattr(metrics, name) for name in totals}
        totals |= {"queued": metrics.queued, "running": metrics.running}
        counts = check_conserved(system)
        assert counts == {name: totals[name] for name in OUTCOMES}
        assert totals["offered"] == sum(counts.values())
    system.drain()
    counts = check_conserved(system)
    assert counts["queued"] == counts["running"] == 0


def check_conserved(system):
    """Check that every request that has arrived is somewhere, exactly once; return where."""
    columns = system.columns()
    counts = {name: int(np.sum(columns["outcome"] == name)) for name in OUTCOMES}
    assert sum(counts.values()) == columns["id"].size
    assert len(set(columns["id"].tolist())) == columns["id"].size
    assert len(system.view().first.queued_deadlines_s) == counts["queued"]
    assert sum(batch.size for batch in system.view().first.running) == counts["running"]
    return counts


def test_a_learner_takes_its_time_between_two_steps():
    system = live_system(SHORT, hold=True, held_s=0.3)
    worker = system.worker
    assert worker.diary == ["hold"]
    with system.paused():
        assert worker.diary == ["hold"], "it stands still already"
    assert system.step(Allocation(4, 4, 2)).paused_s == 0.3
    assert worker.diary == ["hold", "release", "resize 4 x 2", "hold"]
    system.drain()
    assert worker.diary[4:] == ["release"]
    system.close()
    assert (worker.diary[5:], system.limiter) == (["close"], "fake")


def test_batches_name_their_requests_in_the_order_in_which_they_are_served():
    """The last three wait when a batch of two is formed."""
    requests = requests_at((0.0, 9.0), (0.03, 5.0), (0.02, 4.0), (0.01, 5.0))
    system = live_system(short(duration_s=2.0), profile=STEADY_PROFILE, workload=requests)
    system.step(Allocation(16, 2))
    worker = system.worker
    assert [batch.requests for batch in worker.batches] == [(0,), (2, 1), (3,)]
    assert len({batch.id for batch in worker.batches}) == 3


def slow_system(requests, duration_s, replicas, order="edf", **more):
    """Return one whose batches take 1.6 s on one core."""
    classes = (RequestClass(1.0, 1.0, 0.0),)  # without classes first in is first due
    scenario = short(duration_s=duration_s, serving=Serving("none", order), classes=classes)
    more |= {"initial": Allocation(1, 1, replicas), "cold_start_s": 0.2}
    return live_system(scenario, profile=STEADY_PROFILE, workload=requests, **more)


@pytest.mark.parametrize(("due_s", "outcome"), [(0.5, "failed"), (math.nextafter(0.5, 1), "late")])
def test_no_budget_is_left_at_the_deadline(due_s, outcome):
    system = slow_system(requests_at((0.0, due_s)), 4.0, 1, crashes_s=(0.5,))
    for _ in range(4):
        system.step(Allocation(1, 1))
    assert system.columns()["outcome"].tolist() == [outcome]


def test_one_batch_hangs_while_others_come_back_over_and_over():
    """A request that comes back takes a new place; the batch that hangs must not use them up."""
    requests = requests_at((0.0, 99.0), *((0.001 * k, 98.0) for k in range(1, 30)))
    times, crashes_s = iter([1e9] + [1.0] * 1000), np.arange(0.5, 20.0, 0.37).tolist()
    system = slow_system(requests, 40.0, 2, crashes_s=crashes_s, spared=0, noise=times.__next__)
    for _ in range(20):
        system.step(Allocation(1, 2, 2))
        assert set(system.columns()["outcome"]) <= {"running", "queued", "failed"}
    while not system.done:
        system.step(Allocation(1, 2, 2))
    outcomes, attempts = (system.columns()[name] for name in ("outcome", "attempts"))
    assert (set(attempts[outcomes == "failed"]), sum(attempts) > 50) == ({3}, True)
    assert set(outcomes) == {"failed", "on_time", "running"}


@pytest.mark.parametrize("order", ["edf", "fifo"])
def test_what_kills_replicas_ends_alone(order):
    """Three times a batch with the first request dies; twice the second is in it."""
    requests = requests_at((0.0, 97.0), (0.0, 98.0), (0.1, 99.0))
    system = slow_system(requests, 9.0, 1, order, crashes_s=(0.5, 1.0, 1.5))
    for _ in range(9):
        system.step(Allocation(1, 2))
    columns = system.columns()
    assert columns["outcome"].tolist() == ["failed", "on_time", "on_time"]
    assert (columns["attempts"].tolist(), columns["batch_size"].tolist()) == ([3, 3, 1], [1, 1, 1])


HELD = Initial(cores=2, batch=2, replicas=2)
CHAIN = pipeline(
    stage("detector", "video-detector", fan_out_shares=(0.2, 0.3, 0.5), initial=HELD),
    stage("classifier", "video-classifier", initial=HELD),
    stage("reader", "nlp-sentiment", initial=HELD),
)
FORK = pipeline(
    stage("a", "video-detector", initial=HELD),
    stage("b", "nlp-sentiment", after=("a",), initial=HELD),
    stage("c", "video-classifier", after=("a",), initial=HELD),
    stage("d", "sentiment-text", after=("b", "c"), initial=HELD),
)
ASKED = ((2, 2), (4, 1), (1, 4), (3, 3))  # cores and batch sizes to go through


def live_stages(scenario, seed, **more):
    return LiveSystem(scenario, seed, lambda spec: FakeStages(profile_workers(spec), **more))


def stage_allocations(scenario):
    held = [StageAllocation(*own, replicas=2) for own in ASKED * scenario.intervals]
    count = len(scenario.stages)
    return [Allocation(stages=tuple(held[k : k + count])) for k in range(scenario.intervals)]


@pytest.mark.parametrize("scenario", [CHAIN, FORK], ids=["chain", "fork and join"])
@pytest.mark.parametrize("seed", range(2))
def test_it_serves_stages_as_the_simulated_system_does(scenario, seed):
    live, simulated = live_stages(scenario, seed), SimulatedSystem(scenario, seed)
    for asked in stage_allocations(scenario):
        check_same(live.step(asked), simulated.step(asked), "metrics", 1e-8)
        check_same(live.view(), simulated.view(), "view", 1e-8)
    for system in (live, simulated):
        system.drain()
    columns, expected = live.columns(), simulated.columns()
    for name in ("id", "outcome", "stage"):
        np.testing.assert_array_equal(columns[name], expected[name], err_msg=name)
    np.testing.assert_allclose(columns["finished_s"], expected["finished_s"], atol=1e-8)


def test_the_first_stage_s_answers_say_how_many_tasks_there_are():
    def tasks(request):
        return request % 4

    live, model = live_stages(CHAIN, 0, tasks=tasks), model_of(CHAIN, SimulatedSystem(CHAIN, 0))
    model.fan_out = lambda row, at, done: tasks(row) if at == 0 else 1
    arrival_s, deadline_s = live._workload.arrival_s, live._workload.deadline_s
    for interval, asked in enumerate(stage_allocations(CHAIN)):
        live.step(asked)
        now = (arrival_s > interval) & (arrival_s <= interval + 1)
        arrivals = list(zip(arrival_s[now], deadline_s[now], strict=True))
        model.serve(arrivals, asked.stages, interval + 1.0)
    columns = live.columns()
    expected = {t.row: (t.outcome, t.finished_s) for t in model.tickets if t.outcome}
    rows = zip(columns["id"], columns["outcome"], columns["finished_s"], strict=True)
    ended = ("on_time", "late", "dropped")
    found = {int(row): (o, pytest.approx(s, abs=1e-8)) for row, o, s in rows if o in ended}
    assert len(found) > 50
    assert expected == found


@pytest.mark.parametrize("seed", range(2))
def test_no_request_is_lost_when_replicas_of_any_stage_die(seed):
    rng = np.random.default_rng(seed)
    times_s = np.sort(rng.uniform(0, CHAIN.duration_s, 12)).tolist()
    live = live_stages(CHAIN, seed, crashes=[(time_s, int(rng.integers(3))) for time_s in times_s])
    restarts = 0
    for asked in stage_allocations(CHAIN):
        restarts += live.step(asked).restarts
    live.drain()
    outcomes = live.columns()["outcome"]
    assert restarts > 3
    assert len(outcomes) == int(live._env["sent"]) - 1
    assert set(outcomes) <= {"on_time", "late", "dropped", "failed"}
    assert not live.view().stages[0].running
