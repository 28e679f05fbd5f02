"""The bench that measures a worker: batches that the machine disturbed do not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sponge_env.live.bench import DISTURBED_CELL_S, DISTURBED_S, BatchRun, Bench
from sponge_env.live.replica import LiveConfig
from sponge_env.live.worker import LiveWorker

WORK_S, WAKE_S = np.array([0.01, 0.02]), 0.001
END_S = 0.0
"""Long ago: the grid is measured once."""


class Machine(Bench):
    """Batches take their work on the cores that were asked for, times how slow the machine is."""

    def __init__(self, slow_s: float) -> None:
        """Be twice as slow for the first so many seconds of the time that batches take."""
        worker = SimpleNamespace(config=LiveConfig(cores_max=2, batch_max=2))
        super().__init__(cast(LiveWorker, worker))
        self._slow_s, self.runs, self.took_s = slow_s, 0, 0.0
        self.images: list[range] = []

    def _resize(self, cores: int, replicas: int = 1) -> None:
        self._share = cores / 2

    def _rested(self, size: int) -> BatchRun:
        run = self._run(size)
        return run._replace(cpu_s=run.cpu_s + WAKE_S)

    def _run(self, size: int) -> BatchRun:
        self.runs += 1
        self.images.append(range(self._requests, self._requests + size))
        self._requests += size
        slow = self._slow_s > 0
        cpu_s = WORK_S[size - 1] * (2.0 if slow else 1.0)
        self._slow_s -= slow * cpu_s / self._share
        self.took_s += cpu_s / self._share
        return BatchRun(cpu_s / self._share, cpu_s, 0.0)


def slow_runs(grid: Any) -> int:
    return sum(run.cpu_s > 1.5 * WORK_S[b - 1] for (b, _), runs in grid.items() for run in runs)


@pytest.mark.parametrize("slow_s", [0.0, 0.1, DISTURBED_CELL_S - 0.1])
def test_batches_run_again_until_the_machine_is_calm(slow_s: float) -> None:
    machine = Machine(slow_s)
    grid = machine.grid(WORK_S, END_S)
    assert slow_runs(grid) == 0
    calm = Machine(0.0)
    assert {cell: len(runs) for cell, runs in grid.items()} == {
        cell: len(runs) for cell, runs in calm.grid(WORK_S, END_S).items()
    }
    assert (machine.runs > calm.runs) == (slow_s > 0)


def test_a_machine_that_stays_slow_is_measured_as_it_is() -> None:
    machine, calm = Machine(float("inf")), Machine(0.0)
    grid, calm_grid = (each.grid(WORK_S, END_S) for each in (machine, calm))
    assert slow_runs(grid) == sum(map(len, grid.values())) == sum(map(len, calm_grid.values()))
    lost_s = machine.took_s - 2 * calm.took_s
    assert DISTURBED_S <= lost_s < DISTURBED_S + 0.2
    machine.grid(WORK_S, END_S)
    assert machine.took_s - 4 * calm.took_s == pytest.approx(DISTURBED_S, abs=0.2)


def test_one_cell_does_not_use_up_the_time_of_all() -> None:
    machine = Machine(DISTURBED_CELL_S + 0.5)
    grid = machine.grid(WORK_S, END_S)
    first, *others = grid
    assert slow_runs({first: grid[first]}) > 0
    assert slow_runs({cell: grid[cell] for cell in others}) == 0


def test_what_a_rest_costs_is_told_apart_from_the_work() -> None:
    machine = Machine(0.0)
    runs, woken_s = machine.work(each=3, again=True)
    assert {size: {run.cpu_s for run in found} for size, found in runs.items()} == {
        1: {WORK_S[0]},
        2: {WORK_S[1]},
    }
    assert woken_s == pytest.approx([WAKE_S] * 6)
    assert machine.images[::2] == machine.images[1::2], "the same images after a rest and right on"
    assert len({*machine.images}) == 6
