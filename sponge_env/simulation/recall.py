"""A view of a system, written back into the core's memory, from which observations are computed."""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sponge_env.core.compiled import rows
from sponge_env.core.records import METRICS, RECENT, Arrays
from sponge_env.core.settings import LISTED, write_spec
from sponge_env.interfaces import StageView, SystemSpec, SystemView
from sponge_env.metrics import StageMetrics
from sponge_env.simulation.memory import MemoryPlan, blank_metrics

_NOTHING = blank_metrics(1)
_UNMEASURED = StageMetrics()

_measured = attrgetter(*(METRICS.names or ())[:-1])
"""Returns an interval's metrics in the order of the core's record, the last of which is unknown."""


def recalled(view: SystemView, spec: SystemSpec) -> tuple[Arrays, NDArray[np.void]]:
    """Write a view into memory, as of time 0; return it and the last interval's metrics.

    The next call overwrites it.
    """
    # Lists, not generators: this is done at every decision of a policy.
    queue = max([len(stage.queued_deadlines_s) for stage in view.stages])
    replicas = max([_held(stage) for stage in view.stages])
    arrays, metrics = _memory(spec, _power_of_two(queue), _power_of_two(replicas))
    env, past = arrays.envs[0], len(view.first.arrivals)
    ring = _ring(past)
    env["interval"] = past
    env["mean_delays_s"][ring] = view.mean_delays_s[-RECENT:]
    env["bandwidths"][ring] = view.bandwidths_bytes_per_s[-RECENT:]
    env["delay_max_s"] = view.delays_s.max() if len(view.delays_s) else 0.0
    for k, stage in enumerate(view.stages):
        _write_stage(arrays, k, stage, view.now_s)
    if view.last is None:
        return arrays, _NOTHING
    metrics[0] = (*_measured(view.last), 0)
    return arrays, metrics


def _held(stage: StageView) -> int:
    """Return how many replicas a view needs rows for."""
    return len(stage.running) + stage.replicas_ready + len(stage.starting_s)


@lru_cache
def _ring(past: int) -> NDArray[np.int64]:
    """Return where the latest of so many intervals are remembered."""
    return np.arange(max(0, past - RECENT), past) & (RECENT - 1)


def _write_stage(arrays: Arrays, k: int, stage: StageView, now_s: float) -> None:
    """Write a stage's queue, and a row for each running batch and ready or starting replica."""
    row, replicas, running = arrays.stages[0, k], arrays.replicas[0, k], stage.running
    queued, first = len(stage.queued_deadlines_s), k * arrays.queue.shape[2]
    deadlines_s = arrays.requests["deadline_s"][0, first : first + queued]
    np.subtract(stage.queued_deadlines_s, now_s, out=deadlines_s)
    row["tail"], row["wanted"] = queued, stage.allocation
    row["arrivals"][: len(stage.arrivals)] = stage.arrivals
    busy, held = len(running), _held(stage)
    row["replicas"], row["running"] = held, sum([batch.size for batch in running])
    replicas["batch_size"][:held] = [batch.size for batch in running] + [0] * (held - busy)
    replicas["draining"][:held] = False
    replicas["draining"][:busy] = True  # so that none counts twice
    replicas["ready_s"][:held] = [0.0] * (held - len(stage.starting_s)) + [*stage.starting_s]
    replicas["planned_end_s"][:busy] = [batch.expected_end_s - now_s for batch in running]
    last, measured = stage.last or _UNMEASURED, row["measured"]
    for name in ("answered", "dropped", "utilisation", "throttled_share"):
        measured[name] = getattr(last, name)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@lru_cache(maxsize=32)
def _memory(spec: SystemSpec, queue: int, replicas: int) -> tuple[Arrays, NDArray[np.void]]:
    """Return memory in which a view finds room. The queue of each stage has requests in a row."""
    stages = spec.stages
    plan = MemoryPlan(1, len(stages))
    write_spec(plan.settings[0], plan.models[0], spec)
    for model, stage in zip(plan.models[0], stages, strict=True):
        model["variants"] = len(stage.latencies)
        for name in ("cores", "batch", "replicas"):
            model["limits"][name] = getattr(stage, f"{name}_max")
    plan.settings["arrival_kind"] = LISTED
    plan.room.at_least(queue=queue, replicas=replicas)
    arrays = plan.allocate(1)
    places = np.arange(len(stages) * queue)
    arrays.queue["row"][0] = places.reshape(len(stages), queue)
    requests = rows(np.zeros((1, places.size), arrays.requests.dtype))
    return arrays._replace(requests=requests), blank_metrics(1)
