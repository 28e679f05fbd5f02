"""A view of a system, written back into the core's memory, from which observations are computed."""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import rows
from sponge_env.core.records import METRICS, RECENT, Arrays
from sponge_env.core.settings import LISTED, write_spec
from sponge_env.interfaces import StageView, SystemSpec, SystemView
from sponge_env.metrics import StageMetrics
from sponge_env.simulation.memory import MemoryPlan, blank_metrics

_NOTHING = blank_metrics(1)
_UNMEASURED = StageMetrics()


def recalled(view: SystemView, spec: SystemSpec, several: bool) -> tuple[Arrays, NDArray[np.void]]:
    """Write a view into memory, as of time 0; return it and the last interval's metrics.

    It has all stages if ``several``, or else the one that the view shows by itself. The next call
    overwrites it.
    """
    stages = view.stages if several else view.stages[:1]
    # Lists, not generators: this is done at every decision of a policy.
    queue = max([len(stage.queued_deadlines_s) for stage in stages])
    replicas = max([_held(stage) for stage in stages])
    memory = _memory(spec, several, _power_of_two(queue), _power_of_two(replicas))
    memory.write(view)
    for own, stage in zip(memory.stages, stages, strict=True):
        own.write(stage, view.now_s)
    if view.last is None:
        return memory.arrays, _NOTHING
    memory.metrics[0] = (*_measured(view.last), 0)
    if several:
        for own, each in zip(memory.stages, view.stages, strict=True):
            own.write_measures(each.last or _UNMEASURED)
    return memory.arrays, memory.metrics


_measured = attrgetter(*(METRICS.names or ())[:-1])
"""Returns an interval's metrics in the order of the core's record, the last of which is unknown."""


def _held(stage: StageView) -> int:
    """Return how many replicas a view needs rows for."""
    return len(stage.running) + stage.replicas_ready + len(stage.starting_s)


class _Recalled:
    """Memory of one environment, and the parts of it that views are written to.

    A field of a record costs more to look up than to write, so it is looked up once.
    """

    def __init__(self, arrays: Arrays, stages: int) -> None:
        self.arrays, self.metrics = arrays, blank_metrics(1)
        self.stages = [_RecalledStage(arrays, k) for k in range(stages)]
        env = arrays.envs[:1]
        self._interval, self._delay_max_s = env["interval"], env["delay_max_s"]
        self._mean_delays_s, self._bandwidths = env["mean_delays_s"][0], env["bandwidths"][0]

    def write(self, view: SystemView) -> None:
        """Write what belongs to no stage."""
        past = len(view.first.arrivals)
        ring = _ring(past)
        self._interval[0] = past
        self._mean_delays_s[ring] = view.mean_delays_s[-RECENT:]
        self._bandwidths[ring] = view.bandwidths_bytes_per_s[-RECENT:]
        self._delay_max_s[0] = view.delays_s.max() if len(view.delays_s) else 0.0


@lru_cache
def _ring(past: int) -> IntArray:
    """Return where the latest of so many intervals are remembered."""
    return np.arange(max(0, past - RECENT), past) & (RECENT - 1)


class _RecalledStage:
    """The same of one stage."""

    def __init__(self, arrays: Arrays, k: int) -> None:
        capacity = arrays.queue.shape[2]
        row, replicas = arrays.stages[:1, k], arrays.replicas[0, k]
        self._deadlines_s: FloatArray = arrays.requests["deadline_s"][0, k * capacity :]
        self._tail, self._replicas, self._running = row["tail"], row["replicas"], row["running"]
        self._wanted, self._arrivals = row["wanted"], row["arrivals"][0]
        self._measured = arrays.stages[0, k]["measured"]
        self._batch_size, self._draining = replicas["batch_size"], replicas["draining"]
        self._ready_s, self._planned_end_s = replicas["ready_s"], replicas["planned_end_s"]

    def write(self, stage: StageView, now_s: float) -> None:
        """Write its queue, and a row for each running batch and ready or starting replica."""
        queued, running, wanted = len(stage.queued_deadlines_s), stage.running, stage.allocation
        self._tail[0] = queued
        np.subtract(stage.queued_deadlines_s, now_s, out=self._deadlines_s[:queued])
        self._wanted[0] = wanted.cores, wanted.batch, wanted.replicas, wanted.variant
        self._arrivals[: len(stage.arrivals)] = stage.arrivals
        busy, held = len(running), _held(stage)
        ready = busy + stage.replicas_ready
        self._replicas[0], self._running[0] = held, sum([batch.size for batch in running])
        self._batch_size[:held] = 0
        self._draining[:busy] = True  # so that none counts twice
        self._draining[busy:held] = False
        self._ready_s[:ready] = 0.0
        if ready < held:
            self._ready_s[ready:held] = stage.starting_s
        for place, batch in enumerate(running):
            self._batch_size[place] = batch.size
            self._planned_end_s[place] = batch.expected_end_s - now_s

    def write_measures(self, last: StageMetrics) -> None:
        """Write what it did in the last interval."""
        for name in ("answered", "dropped", "utilisation", "throttled_share"):
            self._measured[name] = getattr(last, name)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@lru_cache(maxsize=32)
def _memory(spec: SystemSpec, several: bool, queue: int, replicas: int) -> _Recalled:
    """Return memory in which a view finds room. The queue of each stage has requests in a row."""
    stages = spec.stages if several else spec.stages[:1]
    plan = MemoryPlan(1, len(stages))
    row = plan.settings[0]
    write_spec(row, plan.models[0, 0], spec)
    for model, stage in zip(plan.models[0], stages, strict=True):
        model["cold_start_s"], model["rate_scale"] = stage.cold_start_s, stage.capacity_rps
        model["variants"] = len(stage.latencies) if several else 1
        for name in ("cores", "batch", "replicas"):
            model["limits"][name] = getattr(stage, f"{name}_max")
    row["arrival_kind"] = LISTED
    plan.room.at_least(queue=queue, replicas=replicas)
    arrays = plan.allocate(1)
    places = np.arange(len(stages) * queue)
    arrays.queue["row"][0] = places.reshape(len(stages), queue)
    requests = rows(np.zeros((1, places.size), arrays.requests.dtype))
    return _Recalled(arrays._replace(requests=requests), len(stages))
