"""The service of a replica: on whole cores, and under a CPU quota against Linux, step by step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_doors import CoreService
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.quota import QuotaBucket
from scenarios import QUOTA_PROFILE, SHORT

from sponge_env.interfaces import Allocation
from sponge_env.latency import IDLE_S, QuotaService
from sponge_env.scenario.config import Arrivals, Initial, Limits, Simulation, Stage, Variant
from sponge_env.scenario.profile import save_profile
from sponge_env.simulation.system import SimulatedSystem

UNIT = 1 / 16
PERIOD_S, TICK_S = 0.02, 0.004


def test_loading_on_whole_cores_takes_its_time_on_any_of_them() -> None:
    service = CoreService(1, latency_s=[[1.0, 0.5]])
    service.load(1.0, 10.0, 3)
    service.resize(2.0, 2)
    service.advance(11.0)
    assert service.finish_s == 11.0
    assert service.used_core_s == 0.0


@given(
    st.integers(1, 16),
    st.lists(st.tuples(st.floats(0.001, 0.2), st.integers(1, 16)), max_size=5),
)
def test_whole_cores_do_the_same_work_at_any_speed(
    start: int, resizes: list[tuple[float, int]]
) -> None:
    service, now_s, cores, left = CoreService(start, latency_s=CORE_SECONDS), 0.0, start, 1.0
    service.start(0.0, 1, 1.0)
    for gap_s, new_cores in resizes:
        if left <= gap_s * cores / 1.6:
            break
        left -= gap_s * cores / 1.6
        now_s, cores = now_s + gap_s, new_cores
        service.resize(now_s, cores)
    assert service.finish_s == pytest.approx(now_s + left * 1.6 / cores)
    service.advance(service.finish_s)
    assert service.used_core_s == pytest.approx(1.6)


CORE_SECONDS = [[1.6 / cores for cores in range(1, 17)]]


def bucket(
    cores: int, work_s: float, phase: float = 0.0, unit: float = UNIT, **settings: Any
) -> CoreService:
    """Return a service under a quota."""
    quota = QuotaService(PERIOD_S, (work_s,), 0.0, tick_s=TICK_S, **settings)
    return CoreService(cores, limit=quota, work_s=[work_s], core_unit=unit, phase=phase)


MEASURED_MS = (
    (17.60, 48.14), (19.48, 46.58), (1.66, 44.17), (3.20, 42.59), (4.96, 42.61), (6.56, 60.18),
    (8.40, 38.61),
)  # fmt: skip
"""Begin within the 20 ms of a period, and duration, of 5 ms of work under 1/16 core: a loop
that did nothing else on Linux 6.18 with 250 ticks per second, whose clock began with a tick
and whose quota was refilled 5.6 ms into each period of it."""


def test_lone_work_takes_as_long_as_it_did_on_linux() -> None:
    service = bucket(cores=1, work_s=0.005, phase=5.6 / 20)
    for number, (begin_ms, took_ms) in enumerate(MEASURED_MS):
        begin_s = number * 10 * PERIOD_S + begin_ms * 1e-3
        service.start(begin_s, 1, 1.0)
        assert service.finish_s - begin_s == pytest.approx(took_ms * 1e-3, abs=0.2e-3)


def test_raising_the_quota_speeds_up_the_running_batch() -> None:
    service = bucket(cores=1, work_s=0.1)
    service.start(0.0, 1, 1.0)
    assert service.finish_s > 1.4
    service.resize(0.5, 16)
    assert 0.55 < service.finish_s < 0.6


def test_every_pause_costs() -> None:
    service, free = bucket(cores=8, work_s=0.1, resume_s=0.0002), bucket(cores=8, work_s=0.1)
    for each in (service, free):
        each.start(1.0, 1, 1.0)
        each.advance(each.finish_s)
    lost_s = (service.used_core_s - free.used_core_s) * UNIT
    assert lost_s == pytest.approx(11 * 0.0002, abs=0.0002), (
        "a pause about every 10 ms, and one before"
    )


def test_a_rest_costs_once_and_not_where_batches_follow_one_another() -> None:
    service = bucket(cores=16, work_s=0.01, wake_s=0.002, resume_s=0.001)
    service.load(0.0, 1.0, 1)
    gaps_s = 0.0, 0.9 * IDLE_S, 1.1 * IDLE_S, 1.0
    for gap_s, took_s in zip(gaps_s, (0.01, 0.01, 0.012, 0.012), strict=True):
        begin_s = service.finish_s + gap_s
        service.start(begin_s, 1, 1.0)
        assert service.finish_s - begin_s == pytest.approx(took_s)
    assert service.throttled_s == 0.0, "a whole CPU is no limit"


@pytest.mark.parametrize("resume_s", [0.0, 0.0006])
@pytest.mark.parametrize(
    ("cores", "loading", "expected_s"),
    [(1, 1, 6.4), (4, 1, 1.6), (4, 8, 2.4), (4, 15, 2.4)],
)
def test_loading_is_work_and_more_so_if_many_do_it_up_to_a_point(
    cores: int, loading: int, expected_s: float, resume_s: float
) -> None:
    service = bucket(cores, work_s=0.01, loading_contention=1.5, resume_s=resume_s)
    service.load(0.0, 6.4, loading)
    assert service.finish_s == pytest.approx(expected_s, rel=0.03)
    service.start(service.finish_s, 1, 1.0)
    assert service.used_core_s == pytest.approx(expected_s * cores, rel=0.03)


@settings(deadline=None)
@given(
    cores=st.integers(1, 16),
    phase=st.floats(0.0, 1.0, exclude_max=True),
    wake_s=st.sampled_from([None, 0.0, 0.001]),
    resume_s=st.sampled_from([0.0, 0.0003]),
    moves=st.lists(
        st.tuples(
            st.floats(0.0, 0.2),
            st.sampled_from(["start", "load", "advance", "resize", "share"]),
            st.integers(1, 16),
        ),
        max_size=12,
    ),
)
def test_core_and_reference_keep_the_same_account(
    cores: int,
    phase: float,
    wake_s: float | None,
    resume_s: float,
    moves: list[tuple[float, str, int]],
) -> None:
    costs_s = {"wake_s": wake_s, "resume_s": resume_s}
    quota = QuotaService(PERIOD_S, (0.02,), 0.0, tick_s=TICK_S, **costs_s)  # type: ignore[arg-type]
    core = bucket(cores, 0.02, phase, **costs_s)
    reference = QuotaBucket(quota, np.array([0.02]), UNIT, cores, phase)
    now_s = 0.0
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
    """The same account in steps of 10 microseconds, looked through at every step.

    Refills, ticks and begins of work never fall together here: their order is not defined.
    """

    STEP_S = 1e-5
    PERIOD, TICK, SLICE, KEPT = 2000, 400, 500, 100

    def __init__(self, granted: int, phase: int) -> None:
        self.now, self.granted, self.phase = 0, granted, phase
        self.pool, self.slice, self.stopped = granted, 0, False

    def run(self, begin: int, work: int) -> int:
        """Sleep until ``begin``, then work; return the end."""
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

    def pass_step(self) -> None:
        self.now += 1
        if self.now % self.PERIOD == self.phase:
            self.pool = self.granted
            if self.stopped:
                paid = min(self.pool, -self.slice)
                self.pool, self.slice = self.pool - paid, self.slice + paid
                self.stopped = self.slice < 0

    def draw(self) -> None:
        drawn = min(self.pool, self.SLICE - self.slice)
        self.pool, self.slice = self.pool - drawn, self.slice + drawn
        self.stopped = self.slice <= 0


@settings(deadline=None)
@given(
    cores=st.integers(1, 19),
    phase=st.integers(0, 199).map(lambda k: 10 * k + 3),
    works=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=6),
)
def test_bucket_equals_looking_at_every_step(
    cores: int, phase: int, works: list[tuple[int, int]]
) -> None:
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


def test_each_variant_has_overheads_of_its_own(tmp_path: Path) -> None:
    assert QUOTA_PROFILE.quota is not None
    slow = dataclasses.replace(
        QUOTA_PROFILE.quota, dispatch_s=0.05, dispatch_request_s=0.02, wake_s=0.005
    )
    for name, quota in (("quick", QUOTA_PROFILE.quota), ("slow", slow)):
        save_profile(dataclasses.replace(QUOTA_PROFILE, quota=quota), tmp_path / f"{name}.json")
    variants = tuple(
        Variant(str(tmp_path / f"{name}.json"), 0.9, name) for name in ("quick", "slow")
    )
    limits = Limits(cores=16, batch=1, replicas=1)
    rarely = dataclasses.replace(
        SHORT,
        stages=(Stage("model", variants, limits=limits, initial=Initial(16)),),
        limits=limits,
        arrivals=Arrivals(kind="constant", rate_rps=1.0),
        simulation=Simulation(noise=0.0),
    )
    took_s = []
    for variant in (0, 1):
        system = SimulatedSystem(rarely, 0)
        while not system.done:
            system.step(Allocation(cores=16, batch=1, variant=variant))
        columns = system.columns()
        took_s.append(np.nanmin(columns["finished_s"] - columns["started_s"]))
    quick = QUOTA_PROFILE.quota
    least_s = quick.dispatch_s + quick.dispatch_request_s + quick.wake_cost_s
    assert took_s[1] - took_s[0] == pytest.approx(0.075 - least_s, abs=1e-9)
