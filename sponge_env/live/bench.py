"""Measurements on the real worker: one batch after another on one replica."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple, TypeVar

import numpy as np

from sponge_env.errors import WorkerError
from sponge_env.interfaces import Allocation, Batch, FloatArray
from sponge_env.latency import CONTENDING
from sponge_env.live.limits import process_memory_bytes
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.worker import LiveWorker
from sponge_env.utils.console import Progress

WORK_RUNS = 8  # Minimum number of pairs of batches of each size at full speed
PAUSED_RUNS = 20  # Pairs of batches at full speed and at a share of it
PAUSED_SIZE = 4  # Requests in each of these
PAUSED_SHARE = 4  # Full speed over that share: pauses of 1/2 period cost nothing, of 3/4 0.2 ms
CELL_S = 0.25  # Time spent on one cell of the grid per round, or one batch if that takes longer
MAX_RUNS = 64  # Batches of a cell per round: those of a small model take microseconds
REST_S = 0.03  # Rest before a batch that shows the idle penalty: here that is all there after 15 ms
DISTURBED = 1.3  # Relative work from which a batch is run again: a busy sibling CPU makes it 1.6
DISTURBED_S, DISTURBED_CELL_S = 20.0, 8.0
"""Time for which disturbed batches are run again: in all, and per visit to a cell of the grid, for
a small share may itself cause as much work. What is measured after that counts."""
PATIENCE_S = 300.0  # Longest wait for one batch or one cold start

Step = TypeVar("Step")


class BatchRun(NamedTuple):
    """One batch."""

    latency_s: float  # From the order to the answer, as the harness sees it
    cpu_s: float
    dispatch_s: float  # The part of the latency outside the replica


class ColdStart(NamedTuple):
    """The cold start of replicas."""

    latency_s: float  # Until all are ready
    cpu_s: float  # CPU time of each, on average
    memory_bytes: int  # What each then holds for itself, on average


Runs = dict[int, list[BatchRun]]  # Runs per batch size
Grid = dict[tuple[int, int], list[BatchRun]]  # Runs per cell: batch size and core units


class Bench(AbstractContextManager["Bench"]):
    """One model under measurement; its worker is open until the end of the block."""

    # Batches run one after another on one replica, at full speed unless said otherwise. Where two
    # are compared, they are of the same images and follow each other, against drift.

    def __init__(self, config: LiveConfig, shown: bool = False) -> None:
        """Start the worker; ``shown`` is whether each stage is shown on the terminal."""
        own_file = config.model.endswith(".onnx")
        self.config = dataclasses.replace(
            config, model=str(Path(config.model).resolve()) if own_file else config.model,
            initial=Allocation(config.cores_max, config.batch_max), batch_timeout_s=PATIENCE_S,
            replicas_max=max(1 + CONTENDING, config.replicas_max),
        )  # fmt: skip
        self.work: Runs = defaultdict(list)  # Batches of several sizes at full speed
        self.idle_penalty_s: list[float] = []  # CPU seconds that batches took longer after a rest
        self.pauses_s: list[float] = []  # CPU time that batches took longer below full speed
        self.grid: Grid = defaultdict(list)  # Saturated batches on a grid of sizes and cores
        self.worker = LiveWorker(self.config)
        self.limits = self.worker.launcher
        self._batches = self._requests = 0
        self._disturbed_s = 0.0  # Time that disturbed batches took which were run again
        self._shown = shown

    def __exit__(self, *error: object) -> None:
        self.worker.close()

    def measure_cold_starts(self) -> None:
        """Load the model in one replica on one core unit, and in several that share all cores."""
        share = max(1, self.config.cores_max // CONTENDING)
        # the first load does not count: memory not used since the machine started is slow
        steps = self._steps("cold start", ((share, CONTENDING), (1, 1), (share, CONTENDING)))
        _, self.alone, self.contending = [self._load(*load) for load in steps]

    def measure_pauses(self) -> None:
        """Run equal batches at full speed and at a share of it."""
        full = self.config.cores_max
        size = min(PAUSED_SIZE, self.config.batch_max)
        for _ in self._steps("pauses", range(PAUSED_RUNS)):
            self._resize(full)
            unpaused = self._run(size, rested=True)
            self._resize(max(1, full // PAUSED_SHARE))
            self.pauses_s.append(self._run(size, rested=True, same=True).cpu_s - unpaused.cpu_s)
        self._resize(full)

    def measure_work(self, runs: int, again: bool = False) -> None:
        """Run ``runs`` batches of each of several sizes; without progress if ``again``."""
        # Each runs after a rest, and again at once, which is its work. The idle penalty is taken
        # from small batches: it is the same for all, and large ones scatter by more than it.
        self._resize(self.config.cores_max)
        batch_max = self.config.batch_max
        sizes = [b for b in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if b < batch_max] + [batch_max]
        for _ in range(runs) if again else self._steps("work", range(runs)):
            for size in sizes:
                rested = self._run(size, rested=True)
                run = self._run(size, same=True)
                self.work[size].append(run)
                if size <= PAUSED_SIZE:
                    self.idle_penalty_s.append(rested.cpu_s - run.cpu_s)

    def measure_grid(self, end_s: float) -> None:
        """Run batches back to back in each cell of the grid, once at least, until ``end_s``."""
        # Each round visits all cells, so that drift spreads over them; repeats come on top.
        work_s, full = self.work_s(), self.config.cores_max
        batches, cores = _powers_of_two(self.config.batch_max), _powers_of_two(full)
        expected_s = {(b, c): work_s[b - 1] * full / c for c in cores for b in batches}
        round_s = sum(max(CELL_S, cell_s) for cell_s in expected_s.values())
        rounds = max(1, int((end_s - time.monotonic()) / round_s))
        for (b, c), cell_s in self._steps("latency grid", [*expected_s.items()] * rounds):
            self._resize(c)
            # not counted: it spends the tokens of the new quota and prepares for the threads
            self._run(b if cell_s < CELL_S else 1)
            until_s = min(DISTURBED_S, self._disturbed_s + DISTURBED_CELL_S)
            for _ in range(min(MAX_RUNS, max(1, round(CELL_S / cell_s)))):
                run = self._run(b)
                while run.cpu_s > DISTURBED * work_s[b - 1] and self._disturbed_s < until_s:
                    self._disturbed_s += run.latency_s
                    run = self._run(b)
                self.grid[b, c].append(run)

    def work_s(self) -> FloatArray:
        """Return (batch_max,) interpolated CPU seconds: medians, for runs may be disturbed."""
        work_s = [median(run.cpu_s for run in runs) for runs in self.work.values()]
        return np.interp(np.arange(1, self.config.batch_max + 1), list(self.work), work_s)

    def _steps(self, stage: str, steps: Sequence[Step]) -> Iterator[Step]:
        with closing(Progress("calibrating", len(steps), "step", shown=self._shown)) as bar:
            if self._shown:
                bar.say(stage)
            for done, step in enumerate(steps, start=1):
                yield step
                bar.show(done)

    def _resize(self, cores: int, replicas: int = 1) -> None:
        self.worker.resize(Allocation(cores, self.config.batch_max, replicas))

    def _run(self, size: int, rested: bool = False, same: bool = False) -> BatchRun:
        """Run a batch of the next requests or the same again, after a rest or at once."""
        if rested:
            self.worker.wait(self.worker.now() + REST_S)
        self._batches += 1
        self._requests += 0 if same else size
        requests = tuple(range(self._requests - size, self._requests))
        until_s, begin_s = self.worker.now() + PATIENCE_S, time.monotonic()
        self.worker.start(Batch(self._batches, requests))
        ended = self.worker.wait(until_s)
        latency_s = time.monotonic() - begin_s
        if len(ended) != 1 or not ended[0].ok:
            raise WorkerError("the replica died during the calibration; calibrate again")
        self.worker.forget(requests)
        inside_s = ended[0].finished_s - ended[0].started_s
        return BatchRun(latency_s, ended[0].cpu_s, latency_s - inside_s)

    def _load(self, cores: int, replicas: int) -> ColdStart:
        begin_s = time.monotonic()
        self._resize(cores, 1 + replicas)
        while self.worker.status().ready < 1 + replicas:
            self.worker.wait(self.worker.now() + 1.0)
            if time.monotonic() - begin_s > PATIENCE_S:
                raise WorkerError(f"a replica was not ready after {PATIENCE_S:g} s")
        latency_s = time.monotonic() - begin_s
        loaded = self.worker.replicas[1:]
        cpu_s = fmean(replica.cpu_s() for replica in loaded)
        # of those elsewhere it is not known
        sizes_bytes = [process_memory_bytes(replica.pid) for replica in loaded if replica.pid]
        self._resize(cores)
        return ColdStart(latency_s, cpu_s, round(fmean(sizes_bytes or [0])))


def _powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest itself."""
    return [*[2**i for i in range(largest.bit_length()) if 2**i < largest], largest]
