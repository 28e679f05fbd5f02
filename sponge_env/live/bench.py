"""Measurements on the real worker: one batch after another on one replica."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

from sponge_env.errors import WorkerError
from sponge_env.interfaces import Allocation, Batch, FloatArray
from sponge_env.live.limits import process_memory_bytes
from sponge_env.live.worker import LiveWorker
from sponge_env.utils.console import Progress

WORK_RUNS = 8
"""Pairs of batches of each size that are run at full speed, at the least."""
PAUSED_RUNS = 20
"""Batches that are run at full speed and at a share in turn."""
PAUSED_SIZE = 4
"""Requests in each of these."""
PAUSED_SHARE = 4
"""So many times slower they are than at full speed: pauses of half a period cost next to nothing
here, those of three quarters 0.2 ms."""
CELL_S = 0.25
"""Time spent on one cell of the grid per round, or one batch if that takes longer."""
MOST_RUNS = 64
"""Batches of one cell per round: of a model that takes microseconds there would be thousands."""
REST_S = 0.03
"""Rest before a batch that is to tell what a rest costs: here that is all there after 15 ms."""
DISTURBED = 1.3
"""Work of a batch, relative to that at full speed, from which on it is run again: a busy sibling of
its CPU makes it 1.6 times as much, for seconds."""
DISTURBED_S, DISTURBED_CELL_S = 20.0, 8.0
"""Time for which disturbed batches are run again: in all, and for one cell of the grid each time,
whose own work may be so much more under a small share. What is measured after that counts."""
PATIENCE_S = 300.0
"""Longest wait for one batch or one cold start."""

Step = TypeVar("Step")


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
    memory_bytes: int
    """What each then holds for itself, on average."""


Runs = dict[int, list[BatchRun]]
"""Runs per batch size."""
Grid = dict[tuple[int, int], list[BatchRun]]
"""Runs per cell: batch size and core units."""


class Bench:
    """Runs batches one after another on the one replica, at full speed, of a worker."""

    def __init__(self, worker: LiveWorker, shown: bool = False) -> None:
        """Take a worker; ``shown`` is whether each stage is shown on the terminal."""
        self.config = worker.config
        self._worker = worker
        self._batches = self._requests = 0
        self._disturbed_s = 0.0
        """Time that disturbed batches took which were run again."""
        self._shown = shown
        self._bar = Progress("calibrating", 0, "step", shown=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def cold_starts(self, together: int) -> tuple[ColdStart, ColdStart]:
        """Load the model in one replica on one core unit, and in several that share all cores."""
        share = max(1, self.config.cores_max // together)
        # once in vain: memory that nobody has used since the machine started is slow to come by
        loads = ((share, together), (1, 1), (share, together))
        _, alone, crowded = (self._load(*load) for load in self._steps("cold start", loads))
        return alone, crowded

    def pauses(self) -> list[float]:
        """Return the CPU seconds that equal batches at full speed and at a share of it differ by.

        They run in turn, against drift.
        """
        most, lost_s = self.config.cores_max, []
        size = min(PAUSED_SIZE, self.config.batch_max)
        for _ in self._steps("pauses", range(PAUSED_RUNS)):
            first = self._requests  # the same images in both
            self._resize(most)
            full_s = self._rested(size).cpu_s
            self._requests = first
            self._resize(max(1, most // PAUSED_SHARE))
            lost_s.append(self._rested(size).cpu_s - full_s)
        self._resize(most)
        return lost_s

    def work(self, each: int = WORK_RUNS, again: bool = False) -> tuple[Runs, list[float]]:
        """Run batches of several sizes without a limit, so many of each; ``again`` is not shown.

        Each runs after a rest, and once more right after that. Returned are the latter runs, and
        the CPU seconds by which the former took longer, of small batches, for it is the same for
        all and large ones differ by more from one to the next.
        """
        self._resize(self.config.cores_max)
        batch_max = self.config.batch_max
        sizes = [b for b in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if b < batch_max] + [batch_max]
        runs: Runs = defaultdict(list)
        woken_s = []
        for _ in range(each) if again else self._steps("work", range(each)):
            for size in sizes:
                first = self._requests  # the same images in both
                rested = self._rested(size)
                self._requests = first
                runs[size].append(self._run(size))
                if size <= PAUSED_SIZE:
                    woken_s.append(rested.cpu_s - runs[size][-1].cpu_s)
        return runs, woken_s

    def grid(self, work_s: FloatArray, end_s: float) -> Grid:
        """Run batches back to back in each cell of the grid.

        It goes round the grid as often as there is time until ``end_s`` (monotonic), once at
        least, so that the machine's drift spreads over all cells; batches that are run again come
        on top. ``work_s`` is (batch_max,) CPU seconds of each batch size.
        """
        most = self.config.cores_max
        batches, cores = _powers_of_two(self.config.batch_max), _powers_of_two(most)
        expected_s = {(b, c): work_s[b - 1] * most / c for c in cores for b in batches}
        round_s = sum(max(CELL_S, cell_s) for cell_s in expected_s.values())
        rounds = max(1, int((end_s - time.monotonic()) / round_s))
        grid: Grid = defaultdict(list)
        for (b, c), cell_s in self._steps("latency grid", [*expected_s.items()] * rounds):
            self._resize(c)
            # spends the tokens that came with the new quota, makes ready for the threads
            self._run(b if cell_s < CELL_S else 1)
            runs = range(min(MOST_RUNS, max(1, round(CELL_S / cell_s))))
            until_s = min(DISTURBED_S, self._disturbed_s + DISTURBED_CELL_S)
            grid[b, c] += [self._run_when_calm(b, work_s[b - 1], until_s) for _ in runs]
        return grid

    def _run_when_calm(self, size: int, work_s: float, until_s: float) -> BatchRun:
        """Run a batch, again while what else the machine does makes it much more work.

        Once that has taken until ``until_s`` in all, the last run counts as it is.
        """
        run = self._run(size)
        while run.cpu_s > DISTURBED * work_s and self._disturbed_s < until_s:
            self._disturbed_s += run.latency_s
            run = self._run(size)
        return run

    def _steps(self, stage: str, steps: Sequence[Step]) -> Iterator[Step]:
        """Go through the steps of a stage, and show how far it is."""
        self.close()
        self._bar = Progress("calibrating", len(steps), "step", shown=self._shown)
        if self._shown:
            self._bar.say(stage)
        for done, step in enumerate(steps, start=1):
            yield step
            self._bar.show(done)

    def _resize(self, cores: int, replicas: int = 1) -> None:
        self._worker.resize(Allocation(cores, self.config.batch_max, replicas))

    def _rested(self, size: int) -> BatchRun:
        """Run a batch after a rest."""
        self._worker.wait(self._worker.now() + REST_S)
        return self._run(size)

    def _run(self, size: int) -> BatchRun:
        now_s = self._worker.now()
        requests = tuple(range(self._requests, self._requests + size))
        self._batches += 1
        self._requests += size
        begin_s = time.monotonic()
        self._worker.start(Batch(self._batches, requests))
        ended = self._worker.wait(now_s + PATIENCE_S)
        latency_s = time.monotonic() - begin_s
        if len(ended) != 1 or not ended[0].ok:
            raise WorkerError("the replica died during the calibration; calibrate again")
        self._worker.forget(requests)
        inside_s = ended[0].finished_s - ended[0].started_s
        return BatchRun(latency_s, ended[0].cpu_s, latency_s - inside_s)

    def _load(self, cores: int, replicas: int) -> ColdStart:
        """Measure how long more replicas take to be ready, all started at once."""
        begin_s = time.monotonic()
        self._resize(cores, 1 + replicas)
        while self._worker.status().ready < 1 + replicas:
            self._worker.wait(self._worker.now() + 1.0)
            if time.monotonic() - begin_s > PATIENCE_S:
                raise WorkerError(f"a replica was not ready after {PATIENCE_S:g} s")
        latency_s = time.monotonic() - begin_s
        loaded = self._worker.replicas[1:]
        cpu_s = fmean(replica.cpu_s() for replica in loaded)
        memory_bytes = fmean(process_memory_bytes(replica.pid) for replica in loaded if replica.pid)
        self._resize(cores)
        return ColdStart(latency_s, cpu_s, round(memory_bytes))


def _powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest itself."""
    powers = [2**i for i in range(largest.bit_length()) if 2**i < largest]
    return [*powers, largest]
