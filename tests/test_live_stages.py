"""The live system of several stages, on workers without processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from differential import check_same
from fake_worker import FakeStages
from reference.worker import ProfileService, SimulatedWorker
from test_pipeline import model_of, pipeline, stage

from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec
from sponge_env.live.system import LiveSystem
from sponge_env.scenario.config import Initial
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.system import SimulatedSystem

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
ASKED = ((2, 2), (4, 1), (1, 4), (3, 3))
"""Cores and batch sizes to go through."""


def live_system(scenario: Scenario, seed: int, **more: Any) -> LiveSystem:
    """Return a live system on plain workers."""

    def make_worker(spec: SystemSpec) -> FakeStages:
        workers = []
        for k, own in enumerate(spec.stages):
            table_s = own.latencies[0].table_s(own.batch_max, own.cores_max)
            initial = Allocation(stages=(spec.initial.stages[k],))
            workers.append(
                SimulatedWorker(
                    lambda cores, table_s=table_s: ProfileService(table_s, cores),
                    initial,
                    cold_start_s=own.cold_start_s,
                )
            )
        return FakeStages(workers, **more)

    return LiveSystem(scenario, seed, make_worker)


def allocations(scenario: Scenario) -> Sequence[Allocation]:
    """Return what is asked for in each interval."""
    asked = []
    for interval in range(scenario.intervals):
        held = [ASKED[(interval + k) % len(ASKED)] for k in range(len(scenario.stages))]
        asked.append(Allocation(stages=tuple(StageAllocation(*own, replicas=2) for own in held)))
    return asked


@pytest.mark.parametrize("scenario", [CHAIN, FORK], ids=["chain", "fork and join"])
@pytest.mark.parametrize("seed", range(2))
def test_it_serves_stages_as_the_simulated_system_does(scenario: Scenario, seed: int) -> None:
    live, simulated = live_system(scenario, seed), SimulatedSystem(scenario, seed)
    for asked in allocations(scenario):
        check_same(live.step(asked), simulated.step(asked), "metrics", 1e-8)
        check_same(live.view(), simulated.view(), "view", 1e-8)
    for system in (live, simulated):
        system.drain()
    columns, expected = live.columns(), simulated.columns()
    for name in ("id", "outcome", "stage"):
        np.testing.assert_array_equal(columns[name], expected[name], err_msg=name)
    np.testing.assert_allclose(columns["finished_s"], expected["finished_s"], atol=1e-8)


def test_the_first_stage_s_answers_say_how_many_tasks_there_are() -> None:
    def tasks(request: int) -> int:
        return request % 4

    live = live_system(CHAIN, 0, tasks=tasks)
    model = model_of(CHAIN, SimulatedSystem(CHAIN, 0))
    model.fan_out = lambda row, at, done: tasks(row) if at == 0 else 1
    arrival_s, deadline_s = live._workload.arrival_s, live._workload.deadline_s
    for interval, asked in enumerate(allocations(CHAIN)):
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
def test_no_request_is_lost_when_replicas_of_any_stage_die(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times_s = np.sort(rng.uniform(0, CHAIN.duration_s, 12)).tolist()
    crashes = [(time_s, int(rng.integers(3))) for time_s in times_s]
    live = live_system(CHAIN, seed, crashes=crashes)
    restarts = 0
    for asked in allocations(CHAIN):
        restarts += live.step(asked).restarts
    live.drain()
    outcomes = live.columns()["outcome"]
    offered = int(live._env["sent"]) - 1
    assert restarts > 3
    assert len(outcomes) == offered
    assert set(outcomes) <= {"on_time", "late", "dropped", "failed"}
    assert not live.view().stages[0].running
