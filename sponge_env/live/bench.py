"""Measurements on the real worker: one batch after another on one replica."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

from sponge_env.errors import WorkerError
from sponge_env.interfaces import Allocation, Batch, FloatArray
from sponge_env.live.worker import LiveWorker

WORK_RUNS = 8
"""Batches of each size that are run at full speed."""
PAUSED_RUNS = 20
"""Batches that are run at full speed and at a share in turn."""
PAUSED_SIZE = 4
"""Requests in each of these."""
CELL_S = 0.25
"""Time spent on one cell of the grid per round, or one batch if that takes longer."""
PATIENCE_S = 300.0
"""Longest wait for one batch or one cold start."""

OnProgress = Callable[[str, int, int], None]
"""Is told a stage of the calibration, how many of its steps are done, and of how many."""


class BatchRun(NamedTuple):
    """One batch."""

    latency_s: float
    """From the order to the answer, as the harness sees it."""
    cpu_s: float
    dispatch_s: float
    """The part of the latency outside the replica."""


class ColdStart(NamedTuple):
    """The cold start of replicas."""

    latency_s: float
    """Until all are ready."""
    cpu_s: float
    """CPU time of each, on average."""


Cell = tuple[int, int]
"""Batch size and core units."""
Grid = dict[Cell, list[BatchRun]]
"""Runs per cell."""


class Bench:
    """Runs batches one after another on the one replica of a worker.

    Args:
        worker: The worker, with one replica at full speed.
        progress: Is told how far the measurements have come.
    """

    def __init__(self, worker: LiveWorker, progress: OnProgress) -> None:
        self.config = worker.config
        self.progress = progress
        self._worker = worker
        self._batches = 0

    def resize(self, cores: int, replicas: int = 1) -> None:
        """Put core units of each replica in force."""
        self._worker.resize(Allocation(cores, self.config.batch_max, replicas))

    def run(self, size: int) -> BatchRun:
        """Run one batch.

        Raises:
            WorkerError: The batch did not end well.
        """
        now_s = self._worker.now()
        self._batches += 1
        begin_s = time.monotonic()
        self._worker.start(Batch(self._batches, tuple(range(size))))
        ended = self._worker.wait(now_s + PATIENCE_S)
        latency_s = time.monotonic() - begin_s
        if len(ended) != 1 or not ended[0].ok:
            raise WorkerError("the replica died during the calibration; calibrate again")
        inside_s = ended[0].finished_s - ended[0].started_s
        return BatchRun(latency_s, ended[0].cpu_s, latency_s - inside_s)

    def load(self, cores: int, replicas: int = 1) -> ColdStart:
        """Measure how long more replicas take to be ready, all started at once.

        Args:
            cores: Core units of each.
            replicas: How many.

        Raises:
            WorkerError: They are not ready in the end.
        """
        begin_s = time.monotonic()
        self.resize(cores, 1 + replicas)
        while self._worker.status().ready < 1 + replicas:
            self._worker.wait(self._worker.now() + 1.0)
            if time.monotonic() - begin_s > PATIENCE_S:
                raise WorkerError(f"a replica was not ready after {PATIENCE_S:g} s")
        latency_s = time.monotonic() - begin_s
        cpu_s = fmean(replica.cpu_s() for replica in self._worker.replicas[1:])
        self.resize(cores)
        return ColdStart(latency_s, cpu_s)


def measure_cold_starts(bench: Bench, together: int) -> tuple[ColdStart, ColdStart]:
    """Load the model in a replica alone, and in several at once.

    Args:
        bench: The worker.
        together: How many at once; all of them get the cores of one.

    Returns:
        The cold start of the one on one core unit, and of those together.
    """
    share = max(1, bench.config.cores_max // together)
    bench.progress("cold start", 0, 3)
    # once in vain: memory that nobody has used since the machine started is slow to come by
    bench.load(share, together)
    bench.progress("cold start", 1, 3)
    alone = bench.load(cores=1)
    bench.progress("cold start", 2, 3)
    return alone, bench.load(share, together)


def measure_work(bench: Bench) -> dict[int, list[BatchRun]]:
    """Run batches of several sizes without a limit.

    Returns:
        Runs per batch size.
    """
    batch_max = bench.config.batch_max
    sizes = [b for b in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if b < batch_max] + [batch_max]
    runs: dict[int, list[BatchRun]] = defaultdict(list)
    for i in range(WORK_RUNS):
        bench.progress("work", i, WORK_RUNS)
        for size in sizes:
            runs[size].append(bench.run(size))
    return runs


def measure_pauses(bench: Bench) -> list[float]:
    """Run equal batches at full speed and at half of it in turn, against drift.

    Returns:
        CPU seconds that each pair differs by.
    """
    config, lost_s = bench.config, []
    size = min(PAUSED_SIZE, config.batch_max)
    for i in range(PAUSED_RUNS):
        bench.progress("pauses", i, PAUSED_RUNS)
        bench.resize(config.cores_max)
        full_s = bench.run(size).cpu_s
        bench.resize(config.cores_max // 2)
        lost_s.append(bench.run(size).cpu_s - full_s)
    bench.resize(config.cores_max)
    return lost_s


def measure_grid(bench: Bench, work_s: FloatArray, end_s: float) -> Grid:
    """Run batches back to back in each cell of the grid.

    It goes round the grid as often as the time allows, so that the machine's drift spreads
    over all cells.

    Args:
        bench: The worker.
        work_s: (batch_max,) CPU seconds of each batch size.
        end_s: Monotonic time to be done by.

    Returns:
        Runs per cell.
    """
    config = bench.config
    batches, cores = _powers_of_two(config.batch_max), _powers_of_two(config.cores_max)
    cells = [(b, c) for c in cores for b in batches]
    expected_s = {(b, c): work_s[b - 1] * config.cores_max / c for b, c in cells}
    round_s = sum(max(CELL_S, expected_s[cell]) for cell in cells)
    rounds = max(1, int((end_s - time.monotonic()) / round_s))
    grid: Grid = defaultdict(list)
    for i in range(rounds):
        for j, (b, c) in enumerate(cells):
            bench.progress("latency grid", i * len(cells) + j, rounds * len(cells))
            bench.resize(c)
            # spends the tokens that came with the new quota, makes ready for the threads
            bench.run(b if expected_s[b, c] < CELL_S else 1)
            for _ in range(max(1, round(CELL_S / expected_s[b, c]))):
                grid[b, c].append(bench.run(b))
    return grid


def _powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest itself."""
    powers = [2**i for i in range(largest.bit_length()) if 2**i < largest]
    return [*powers, largest]
