from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import QUOTA_PROFILE, SHORT, Scripted, short

from sponge_env.config import Arrivals, Network, Serving, Simulation
from sponge_env.encoding import OBS_DIM
from sponge_env.factory import make_system
from sponge_env.interfaces import Allocation, SystemSpec
from sponge_env.profile import Profile, load_profile
from sponge_env.results.schema import IntervalMetrics, names
from sponge_env.run.rollout import Run, run_episode
from sponge_env.vector.simulator import BatchSimulator

RUN = Run("scripted", "short", "sim", 0)


def test_intervals_add_up_to_the_ledger() -> None:
    system = make_system(SHORT, seed=1)
    intervals = [system.step(Allocation(8, 4)) for _ in range(SHORT.intervals)]
    assert system.done
    counts = system.core.counts
    for name in ("offered", "on_time", "late", "dropped", "failed", "violations", "hopeless"):
        assert sum(getattr(w, name) for w in intervals) == getattr(counts, name)
    assert intervals[-1].queued == counts.queued
    assert counts.offered > 200


def test_the_episode_ends_with_its_duration() -> None:
    system = make_system(short(duration_s=2.0), seed=0)
    system.step(Allocation(1, 1))
    assert not system.done
    system.step(Allocation(1, 1))
    assert system.done
    with pytest.raises(RuntimeError, match="the episode is over"):
        system.step(Allocation(1, 1))


@pytest.mark.parametrize(
    "allocation", [Allocation(0, 1), Allocation(17, 1), Allocation(1, 17), Allocation(2.5, 1)]
)
def test_allocations_outside_the_limits_are_refused(allocation: Allocation) -> None:
    system = make_system(SHORT, seed=0)
    with pytest.raises(ValueError, match=r"allocation\.(cores|batch) must be .* between 1 and 16"):
        system.step(allocation)


def test_cores_are_charged_for_every_replica() -> None:
    system = make_system(SHORT, seed=0)
    metrics = system.step(Allocation(cores=2, batch=4, replicas=3))
    assert metrics.cores == pytest.approx(6.0)
    assert metrics.replicas_ready == 1
    assert len(system.view().starting_s) == 2


def test_without_transfer_there_is_no_bandwidth() -> None:
    system = make_system(short(network=Network(trace="none")), seed=0)
    metrics = [system.step(Allocation(8, 8)) for _ in range(5)]
    assert all(math.isnan(m.bandwidth_bytes_per_s) for m in metrics)
    assert metrics[-1].delay_mean_s == pytest.approx(0.01)


def test_the_throttled_share_is_a_share() -> None:
    scenario = short(arrivals=Arrivals("constant", rate_rps=60.0))
    system = make_system(scenario, seed=0, profile=QUOTA_PROFILE)
    shares = [system.step(Allocation(2, 4, replicas=4)).throttled_share for _ in range(8)]
    assert 0.3 < max(shares) <= 1.0


def test_the_same_seed_gives_the_same_intervals() -> None:
    def intervals(seed: int) -> list[IntervalMetrics]:
        system = make_system(SHORT, seed)
        return [system.step(Allocation(6, 8)) for _ in range(SHORT.intervals)]

    assert repr(intervals(3)) == repr(intervals(3))
    assert repr(intervals(3)) != repr(intervals(4))


def test_views_show_what_happened() -> None:
    controller = Scripted(Allocation(2, 2))
    episode = run_episode(make_system(SHORT, seed=0), controller, RUN)
    first, later = controller.views[0], controller.views[-1]
    assert (first.last, len(first.arrivals), first.now_s) == (None, 0, 0.0)
    assert later.last == episode.intervals[-2]
    assert list(later.arrivals) == [w.offered for w in episode.intervals[:-1]]
    assert later.delays_s.max() == later.last.delay_max_s
    assert np.all(np.diff(later.queued_deadlines_s) >= 0)
    assert np.allclose(later.budgets_s, SHORT.slo_s - later.delays_s)


def test_a_planned_end_follows_a_resize() -> None:
    scenario = short(network=Network(trace="none", base_delay_s=0.0))
    scenario = dataclasses.replace(scenario, arrivals=Arrivals("constant", rate_rps=20.0))
    system = make_system(scenario, seed=0)
    system.step(Allocation(1, 16))
    (before,) = system.view().running
    now_s = system.view().now_s
    system._resize(Allocation(16, 16))
    (after,) = system.view().running
    assert after.size == before.size
    table_s = system.spec.latency.table_s(16, 16)
    ratio = table_s[before.size - 1, 15] / table_s[before.size - 1, 0]
    left_s = max(0.0, before.expected_end_s - now_s)
    assert after.expected_end_s == pytest.approx(now_s + left_s * ratio)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    drop=st.sampled_from(["none", "expired", "late"]),
    profile=st.sampled_from([load_profile("yolov5s"), QUOTA_PROFILE]),
    delay_s=st.sampled_from([0.0, 0.3]),
    allocations=st.lists(
        st.builds(Allocation, st.integers(1, 16), st.integers(1, 16), replicas=st.integers(1, 4)),
        min_size=1,
        max_size=10,
    ),
)
def test_every_request_ends_in_exactly_one_way(
    seed: int, drop: str, profile: Profile, delay_s: float, allocations: list[Allocation]
) -> None:
    scenario = short(
        serving=Serving(drop, 0.5 if drop == "late" else 0.0),  # type: ignore[arg-type]
        simulation=Simulation(actuation_delay_s=delay_s, cold_start_s=3.0),
    )
    system = make_system(scenario, seed, profile=profile)
    episode = run_episode(system, Scripted(*allocations), RUN)
    summary = episode.summary
    assert summary.offered == summary.on_time + summary.late + summary.dropped + summary.failed
    columns = system.core.ledger.columns()
    answered = np.isin(columns["outcome"], ("on_time", "late"))
    late = columns["finished_s"] > columns["deadline_s"]
    assert np.array_equal(columns["outcome"] == "late", late & answered)
    assert np.all(columns["started_s"][answered] >= columns["arrival_s"][answered])
    assert np.all(columns["finished_s"][answered] > columns["started_s"][answered])
    assert summary.core_seconds == pytest.approx(sum(w.core_seconds for w in episode.intervals))
    assert 0 <= summary.utilisation <= 1 + 1e-9


def test_a_crash_while_draining_costs_no_request_with_budget() -> None:
    scenario = short(duration_s=1.0, slo_s=30.0)
    system = make_system(scenario, seed=0)
    system.step(Allocation(4, 16))
    assert system.core.running
    system.worker.crash()  # type: ignore[attr-defined]
    counts = system.drain()
    assert (counts.on_time, counts.violations) == (counts.offered, 0)


def test_draining_serves_what_is_left_under_the_last_allocation() -> None:
    system = make_system(short(duration_s=1.0), seed=0)
    summary = run_episode(system, Scripted(Allocation(16, 16)), RUN).summary
    assert summary.offered > 0
    assert summary.dropped == 0
    assert system.core.counts.queued == system.core.counts.running == 0


def test_an_interrupt_leaves_a_partial_summary() -> None:
    class Interrupted(Scripted):
        def decide(self, view: object) -> Allocation:
            if len(self.views) == 3:
                raise KeyboardInterrupt
            return super().decide(view)  # type: ignore[arg-type]

    episode = run_episode(make_system(SHORT, seed=0), Interrupted(Allocation(8, 8)), RUN)
    assert episode.summary.partial
    assert episode.summary.duration_s == 3.0
    assert len(episode.intervals) == 3


def test_time_stands_still_while_a_controller_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may compile something, which on a real worker would take seconds of the episode."""
    happened: list[str] = []

    class Preparing(Scripted):
        def reset(self, spec: SystemSpec, seed: int) -> None:
            happened.append("reset")
            super().reset(spec, seed)

    system = make_system(SHORT, seed=0)
    for name in ("hold", "release"):
        monkeypatch.setattr(system.worker, name, lambda name=name: happened.append(name))
    run_episode(system, Preparing(Allocation(8, 8)), RUN)
    assert happened == ["hold", "reset", "release"]


def test_interval_metrics_are_numbers() -> None:
    metrics = make_system(SHORT, seed=0).step(Allocation(16, 16))
    for name in names(IntervalMetrics):
        assert isinstance(getattr(metrics, name), int | float), name
    assert not math.isnan(metrics.latency_mean_s)
    assert metrics.latency_p50_s <= metrics.latency_p99_s


@pytest.mark.parametrize(("short_trace", "intervals"), [("wrap", 20), ("end", 7)])
def test_a_short_trace_wraps_or_ends_the_episode(
    tmp_path: Path, short_trace: str, intervals: int
) -> None:
    path = tmp_path / "bandwidth.csv"
    rows = "\n".join(f"{second},2000000" for second in range(7))
    path.write_text(f"time_s,bandwidth_bytes_per_s\n{rows}\n")
    scenario = short(network=Network(trace=str(path)), short_trace=short_trace)
    system = make_system(scenario, seed=0)
    steps = 0
    while not system.done:
        system.step(Allocation(16, 8))
        steps += 1
    assert steps == intervals
    simulator = BatchSimulator([scenario], np.zeros(1, np.int64))
    simulator.reset(np.ones(1, np.bool_), np.zeros(1, np.int64), np.zeros((1, OBS_DIM), np.float32))
    for _ in range(intervals - 1):
        simulator.step(np.ones((1, 3), np.int64))
    assert not simulator.over[0]
    simulator.step(np.ones((1, 3), np.int64))
    assert simulator.over[0]
