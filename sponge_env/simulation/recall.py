"""A view of a system, written back into the core's memory, from which observations are computed."""

from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import rows
from sponge_env.core.records import ENV, LISTED_REQUEST, METRICS, RECENT, REPLICA, STAGE, Arrays
from sponge_env.core.settings import LISTED, write_spec
from sponge_env.interfaces import StageView, SystemSpec, SystemView
from sponge_env.metrics import StageMetrics
from sponge_env.simulation.memory import MemoryPlan, blank_metrics

_NOTHING = blank_metrics(1)
_UNMEASURED = StageMetrics()
_OBSERVED = ("answered", "dropped", "utilisation", "throttled_share")

_measured = attrgetter(*(METRICS.names or ())[:-1])
"""Returns an interval's metrics in the order of the core's record, the last of which is unknown."""


class _Memory(NamedTuple):
    """Memory of one environment, and its fields: looking one up takes longer than writing it."""

    arrays: Arrays
    metrics: NDArray[np.void]
    env: dict[str, NDArray[Any]]
    stages: dict[str, NDArray[Any]]  # (stages,) each
    replicas: dict[str, NDArray[Any]]  # (stages, slots) each
    deadlines_s: FloatArray  # (stages, capacity)


def recalled(view: SystemView, spec: SystemSpec) -> tuple[Arrays, NDArray[np.void]]:
    """Write a view into memory, as of time 0; return it and the last interval's metrics."""
    # The next call overwrites it. Lists, not generators: each decision of a policy does this.
    queue = max([len(stage.queued_deadlines_s) for stage in view.stages])
    replicas = max([_held(stage) for stage in view.stages])
    memory = _memory(spec, _power_of_two(queue), _power_of_two(replicas))
    env, past = memory.env, len(view.first.arrivals)
    ring = _ring(past)
    env["interval"][0] = past
    env["mean_delays_s"][0, ring] = view.mean_delays_s[-RECENT:]
    env["bandwidths"][0, ring] = view.bandwidths_bytes_per_s[-RECENT:]
    env["delay_max_s"][0] = view.delays_s.max() if len(view.delays_s) else 0.0
    for k, stage in enumerate(view.stages):
        _write_stage(memory, k, stage, view.now_s)
    if view.last is None:
        return memory.arrays, _NOTHING
    memory.metrics[0] = (*_measured(view.last), 0)
    return memory.arrays, memory.metrics


def _held(stage: StageView) -> int:
    """Return how many replicas a view needs rows for."""
    return len(stage.running) + stage.replicas_ready + len(stage.starting_s)


@lru_cache
def _ring(past: int) -> IntArray:
    """Return where the latest of so many intervals are remembered."""
    return np.arange(max(0, past - RECENT), past) & (RECENT - 1)


def _write_stage(memory: _Memory, k: int, stage: StageView, now_s: float) -> None:
    """Write a stage's queue, and a row for each running batch and ready or starting replica."""
    row, replicas, running = memory.stages, memory.replicas, stage.running
    held, queued = _held(stage), len(stage.queued_deadlines_s)
    np.subtract(stage.queued_deadlines_s, now_s, out=memory.deadlines_s[k, :queued])
    row["tail"][k], row["wanted"][k] = queued, stage.allocation
    row["arrived"][k, : len(stage.arrivals)] = stage.arrivals.cumsum()
    row["replicas"][k], row["running"][k] = held, sum([batch.size for batch in running])
    replicas["batch_size"][k, :held] = 0
    replicas["draining"][k, :held] = False
    replicas["ready_s"][k, :held] = 0.0
    if stage.starting_s:
        replicas["ready_s"][k, held - len(stage.starting_s) : held] = stage.starting_s
    for place, batch in enumerate(running):
        replicas["batch_size"][k, place] = batch.size
        replicas["draining"][k, place] = True  # so that none counts twice
        replicas["planned_end_s"][k, place] = batch.expected_end_s - now_s
    last = stage.last or _UNMEASURED
    for name in _OBSERVED:
        row[name][k] = getattr(last, name)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@lru_cache(maxsize=32)
def _memory(spec: SystemSpec, queue: int, replicas: int) -> _Memory:
    """Return memory with room for a view. The queue of each stage has requests in a row."""
    stages = spec.stages
    plan = MemoryPlan(1, len(stages))
    write_spec(plan.settings[0], plan.models[0], spec)
    for model, stage in zip(plan.models[0], stages, strict=True):
        model["variants"] = len(stage.latencies)
        for name in ("cores", "batch", "replicas"):
            model["limits"][name] = getattr(stage, f"{name}_max")
    plan.settings["arrival_kind"] = LISTED
    plan.room.at_least(queue=queue, replicas=replicas)
    requests = rows(np.zeros((1, len(stages) * queue), LISTED_REQUEST))
    arrays = plan.allocate(1)._replace(requests=requests)
    arrays.queue["row"][0] = np.arange(requests.size).reshape(len(stages), queue)
    measured = arrays.stages["measured"][0]
    return _Memory(
        arrays, blank_metrics(1), {name: arrays.envs[name] for name in ENV.names or ()},
        {name: arrays.stages[name][0] for name in STAGE.names or ()}
        | {name: measured[name] for name in _OBSERVED},
        {name: arrays.replicas[name][0] for name in REPLICA.names or ()},
        requests["deadline_s"].reshape(len(stages), queue),
    )  # fmt: skip
