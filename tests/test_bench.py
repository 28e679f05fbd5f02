"""The bench that measures a worker: batches that the machine disturbed do not count."""

from __future__ import annotations

from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from sponge_env.live import bench
from sponge_env.live.bench import DISTURBED_CELL_S, DISTURBED_S, BatchRun, Bench
from sponge_env.live.replica import LiveConfig

WORK_S, IDLE_S = (0.01, 0.02), 0.001
END_S = 0.0
"""Long ago: the grid is measured once."""


class Machine(Bench):
    """Batches take their work on the cores that were asked for, times how slow the machine is."""

    def __init__(self, slow_s: float) -> None:
        """Be twice as slow for the first so many seconds of the time that batches take."""
        super().__init__(LiveConfig(cores_max=2, batch_max=2))
        self._slow_s, self.runs, self.took_s, self._share = slow_s, 0, 0.0, 1.0
        self.images: list[range] = []

    def work_s(self) -> Any:
        return WORK_S

    def _resize(self, cores: int, replicas: int = 1) -> None:
        self._share = cores / 2

    def _run(self, size: int, rested: bool = False, same: bool = False) -> BatchRun:
        self.runs += 1
        self._requests += 0 if same else size
        self.images.append(range(self._requests - size, self._requests))
        slow = self._slow_s > 0
        cpu_s = WORK_S[size - 1] * (2.0 if slow else 1.0)
        self._slow_s -= slow * cpu_s / self._share
        self.took_s += cpu_s / self._share
        return BatchRun(cpu_s / self._share, cpu_s + rested * IDLE_S / self._share, 0.0)

    def slow_cells(self) -> dict[tuple[int, int], int]:
        """Measure the grid; return how many runs of each cell were slow."""
        self.grid.clear()
        self.measure_grid(END_S)
        return {
            (b, c): sum(run.cpu_s > 1.5 * WORK_S[b - 1] for run in runs)
            for (b, c), runs in self.grid.items()
        }


@pytest.fixture(autouse=True)
def _without_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LiveWorker", lambda config: SimpleNamespace(launcher=None))


@pytest.mark.parametrize("slow_s", [0.0, 0.1, DISTURBED_CELL_S - 0.1])
def test_batches_run_again_until_the_machine_is_calm(slow_s: float) -> None:
    measured, calm = Machine(slow_s), Machine(0.0)
    assert not any(measured.slow_cells().values())
    assert not any(calm.slow_cells().values())
    assert {k: len(runs) for k, runs in measured.grid.items()} == {
        k: len(runs) for k, runs in calm.grid.items()
    }
    assert (measured.runs > calm.runs) == (slow_s > 0)


def test_a_machine_that_stays_slow_is_measured_as_it_is() -> None:
    slow, calm = Machine(float("inf")), Machine(0.0)
    cells = slow.slow_cells()
    assert cells == {cell: len(runs) for cell, runs in slow.grid.items()}
    assert not any(calm.slow_cells().values())
    assert DISTURBED_S <= slow.took_s - 2 * calm.took_s < DISTURBED_S + 0.2
    slow.slow_cells()
    assert slow.took_s - 4 * calm.took_s == pytest.approx(DISTURBED_S, abs=0.2)


def test_one_cell_does_not_use_up_the_time_of_all() -> None:
    first, *others = Machine(DISTURBED_CELL_S + 0.5).slow_cells().values()
    assert first > 0
    assert not any(others)


def test_what_is_compared_is_measured_on_the_same_images() -> None:
    calm = Machine(0.0)
    calm.measure_work(3, again=True)
    assert {size: {run.cpu_s for run in runs} for size, runs in calm.work.items()} == {
        1: {WORK_S[0]},
        2: {WORK_S[1]},
    }
    assert calm.idle_penalty_s == pytest.approx([IDLE_S] * 6)
    calm.measure_pauses()
    assert median(calm.pauses_s) == pytest.approx(IDLE_S), "at half the speed"
    assert calm.images[::2] == calm.images[1::2]
    assert len({*calm.images}) == len(calm.images) // 2
