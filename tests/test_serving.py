"""The core's rules of queue, batches, drops, ledger and CPU quota, on what is made by hand."""

import math

import numpy as np
import pytest
from core_doors import CoreService
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.quota import QuotaBucket
from scenarios import STEADY_PROFILE, requests_at, short

from sponge_env.interfaces import Allocation
from sponge_env.latency import QuotaService
from sponge_env.scenario.config import RequestClass, Serving
from sponge_env.simulation.system import SimulatedSystem

FAST, SLOW = Allocation(16, 1), Allocation(1, 1)  # batches of one request that take 0.1 s and 1.6 s
FIFO = {"classes": (RequestClass(1.0, 1.0, 0.0),), "slo_s": 1.0}


def serve(workload, *plan, serving=Serving("none"), **changes):  # noqa: B008  # it is frozen
    """Serve requests under one allocation after the other, an interval of 1 s each."""
    scenario = short(duration_s=float(len(plan)), serving=serving, **changes)
    system = SimulatedSystem(scenario, 0, STEADY_PROFILE, workload)
    for allocation in plan:
        system.step(allocation)
    return system


def by_id(system, name):
    columns = system.columns()
    return columns[name][np.argsort(columns["id"])].tolist()


TIMES_S = st.tuples(st.floats(0.01, 0.09), st.sampled_from([0.1, 2.0]) | st.floats(0.1, 9))


@settings(deadline=None)
@given(st.lists(TIMES_S, min_size=1, max_size=9))
def test_the_order_of_service(times_s):
    """By deadline or by arrival, and where these are equal by id."""
    requests = requests_at((0.0, 9), *times_s)
    arrivals_s, deadlines_s = zip(*times_s, strict=True)
    for order, keys in (("edf", deadlines_s), ("fifo", arrivals_s)):
        serving = Serving("none", order)
        system = serve(requests, FAST, serving=serving, **(FIFO if order == "fifo" else {}))
        columns = system.columns()
        assert np.isin(columns["outcome"], ("on_time", "late")).all()
        started = columns["id"][np.argsort(columns["started_s"])].tolist()
        assert started == [0, *(1 + np.argsort(keys, kind="stable")).tolist()]


def test_a_request_answered_exactly_at_its_deadline_is_on_time():
    for deadline_s, outcome in ((0.1, "on_time"), (math.nextafter(0.1, 0), "late")):
        assert by_id(serve(requests_at((0.0, deadline_s)), FAST), "outcome") == [outcome]


@pytest.mark.parametrize(
    ("serving", "expected"), [(Serving("expired"), ["on_time", "dropped", "on_time"]),
     (Serving("none"), ["on_time", "late", "on_time"])],
)  # fmt: skip
@pytest.mark.parametrize("order", ["edf", "fifo"])
def test_drop_policies(serving, expected, order):
    """The second is 0.05 s late when the first is answered at 0.1 s."""
    changes = FIFO if order == "fifo" else {}
    serving = Serving(serving.drop, order)
    requests = requests_at((0.0, 1.0), (0.01, 0.05), (0.02, 2.0))
    system = serve(requests, FAST, serving=serving, **changes)
    assert by_id(system, "outcome") == expected
    if "dropped" in expected:
        assert by_id(system, "finished_s")[1] == pytest.approx(0.1)
        assert math.isnan(by_id(system, "started_s")[1])
        assert by_id(system, "attempts") == [1, 0, 1]


@pytest.mark.parametrize(("late_s", "outcome"), [(0.0, "late"), (1e-9, "dropped")])
def test_exactly_at_its_deadline_a_request_has_not_expired(late_s, outcome):
    system = serve(requests_at((0.0, 1.0), (0.01, 0.1 - late_s)), FAST, serving=Serving("expired"))
    assert by_id(system, "outcome")[1] == outcome


@pytest.mark.parametrize(("drop", "allocation"), [("expired", SLOW), ("none", FAST)])
def test_hopeless_requests_count_apart(drop, allocation):
    """Nothing can be answered in less than 0.1 s, which is the fourth one's budget."""
    deadlines_s = (0.15, 0.4, 0.2, math.nextafter(0.2, 0))
    requests = requests_at((0.0, 9.0), *((0.1, deadline_s) for deadline_s in deadlines_s))
    system = serve(requests, allocation, serving=Serving(drop))
    metrics = system.view().last
    assert by_id(system, "hopeless") == [False, True, False, False, True]
    assert (metrics.hopeless, metrics.violations, metrics.avoidable_violations) == (2, 4, 2)


UNIT = 1 / 16
PERIOD_S, TICK_S = 0.02, 0.004


def bucket(cores, work_s, phase=0.0, unit=UNIT, **settings):
    quota = QuotaService(PERIOD_S, (work_s,), 0.0, tick_s=TICK_S, **settings)
    return CoreService(quota, unit, cores, phase)


MEASURED_MS = (
    (17.60, 48.14), (19.48, 46.58), (1.66, 44.17), (3.20, 42.59), (4.96, 42.61), (6.56, 60.18),
    (8.40, 38.61),
)  # fmt: skip
"""Begin within the 20 ms of a period, and duration, of 5 ms of work under 1/16 core: a loop
that did nothing else on Linux 6.18 with 250 ticks per second, whose clock began with a tick
and whose quota was refilled 5.6 ms into each period of it."""


def test_lone_work_takes_as_long_as_it_did_on_linux():
    service = bucket(cores=1, work_s=0.005, phase=5.6 / 20)
    for number, (begin_ms, took_ms) in enumerate(MEASURED_MS):
        begin_s = number * 10 * PERIOD_S + begin_ms * 1e-3
        service.start(begin_s, 1, 1.0)
        assert service.finish_s - begin_s == pytest.approx(took_ms * 1e-3, abs=0.2e-3)


def test_a_cold_start_that_takes_no_time_is_over_at_once():
    service = bucket(cores=1, work_s=0.005)
    service.load(3.0, 0.0, loading=1)
    assert service.finish_s == 3.0


MOVES = st.sampled_from(["start", "load", "advance", "resize", "share"])


@settings(deadline=None)
@given(
    cores=st.integers(1, 16), phase=st.floats(0.0, 1.0, exclude_max=True),
    wake_s=st.sampled_from([None, 0.0, 0.001]), resume_s=st.sampled_from([0.0, 0.0003]),
    moves=st.lists(st.tuples(st.floats(0.0, 0.2), MOVES, st.integers(1, 16)), max_size=12),
)  # fmt: skip
def test_core_and_reference_keep_the_same_account(cores, phase, wake_s, resume_s, moves):
    costs = {"wake_s": wake_s, "resume_s": resume_s, "loading_contention": 1.5}
    quota = QuotaService(PERIOD_S, (0.02,), 0.0, tick_s=TICK_S, **costs)
    core = CoreService(quota, UNIT, cores, phase)
    reference, now_s = QuotaBucket(quota, np.array([0.02]), UNIT, cores, phase), 0.0
    for gap_s, move, number in moves:
        now_s += gap_s
        if move in ("start", "load"):
            now_s = max(now_s, core.finish_s)
        for service in (core, reference):
            if move == "start":
                service.start(now_s, 1, number / 4)
            elif move == "load":
                service.load(now_s, number / 8, number)
            elif move == "advance":
                service.advance(now_s)
            else:
                getattr(service, move)(now_s, number)
        for name in ("finish_s", "used_core_s", "throttled_s"):
            assert getattr(core, name) == pytest.approx(getattr(reference, name), rel=1e-9), name


class Kernel:
    """The same account in steps of 10 microseconds, looked through at every step."""

    # Refills, ticks and begins of work never fall together here: their order is not defined.

    STEP_S = 1e-5
    PERIOD, TICK, SLICE, KEPT = 2000, 400, 500, 100

    def __init__(self, granted, phase):
        self.now, self.granted, self.phase = 0, granted, phase
        self.pool, self.slice, self.stopped = granted, 0, False

    def run(self, begin, work):
        while self.now < begin:
            self.pass_step()
        while work:
            if not self.stopped:
                self.slice -= 1
                work -= 1
            self.pass_step()
            if work and not self.stopped and self.now % self.TICK == 0 and self.slice <= 0:
                self.draw()
        if self.slice <= 0:
            self.draw()
        elif self.slice > self.KEPT:
            self.pool, self.slice = self.pool + self.slice - self.KEPT, self.KEPT
        return self.now

    def pass_step(self):
        self.now += 1
        if self.now % self.PERIOD == self.phase:
            self.pool = self.granted
            if self.stopped:
                paid = min(self.pool, -self.slice)
                self.pool, self.slice = self.pool - paid, self.slice + paid
                self.stopped = self.slice < 0

    def draw(self):
        drawn = min(self.pool, self.SLICE - self.slice)
        self.pool, self.slice = self.pool - drawn, self.slice + drawn
        self.stopped = self.slice <= 0


@settings(deadline=None)
@given(
    cores=st.integers(1, 19), phase=st.integers(0, 199).map(lambda k: 10 * k + 3),
    works=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=6),
)  # fmt: skip
def test_bucket_equals_looking_at_every_step(cores, phase, works):
    kernel = Kernel(granted=100 * cores, phase=phase)
    service = bucket(cores, 1.0, phase / Kernel.PERIOD, unit=1 / 20)
    end = worked = 0
    for gap, work in works:
        begin = 10 * (math.ceil(end / 10) + gap) + 5
        service.start(begin * Kernel.STEP_S, 1, 10 * work * Kernel.STEP_S)
        end = kernel.run(begin, 10 * work)
        assert service.finish_s == pytest.approx(end * Kernel.STEP_S, abs=1e-9)
        worked += 10 * work
    service.advance(end * Kernel.STEP_S + 1e-6)
    assert service.used_core_s / 20 == pytest.approx(worked * Kernel.STEP_S)
