"""The observation, in the order in which :mod:`sponge_env.core.fields` declares its entries.

Each part is written from a place on, and returns the place after it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.core import fields
from sponge_env.core.compiled import Records, compiled, inlined
from sponge_env.core.pipeline import at
from sponge_env.core.queue import deadline_s
from sponge_env.core.records import PAST, RECENT, World
from sponge_env.core.service import planned_end_s
from sponge_env.interfaces import HISTORY

_CLIP = np.float32(fields.CLIP)
_QUANTILES = np.array(fields.BUDGET_QUANTILES)
_SCAN = 16  # Queue length from which on halving beats counting one by one


@compiled
def write_observation(w: World, observation: NDArray[np.float32]) -> None:
    """Write the observation, whose length says which: of one stage or of all.

    That is (OBS_DIM,) float32 of the first stage, the longer one of joint control, or the one of
    all stages (:func:`sponge_env.core.fields.staged_names`).
    """
    observation[:] = 0.0
    several, field = len(observation) > fields.JOINT_OBS_DIM, 0
    if several:
        field = _put_outcome(w, observation, _put_network(w, observation, field))
        if w.env.interval:
            _put(observation, field, w.metrics.effective_accuracy)
        field += 1
    for k in range(len(w.stages) if several else 1):
        stage = at(w, k)
        field = _put_queue(stage, observation, field)
        if not several:
            field = _put_network(w, observation, field)
        field = _put_allocation(stage, observation, field)
        if several:
            field = _put_stage(stage, observation, field)
        else:
            field = _put_outcome(w, observation, field)
            if w.env.interval:
                _put(observation, field, w.metrics.utilisation)
                _put(observation, field + 1, w.metrics.throttled_share)
            field += 2
        if len(observation) > fields.OBS_DIM:
            field = _put_starting(stage, observation, field)


@compiled
def _put(observation: NDArray[np.float32], field: int, value: float) -> None:
    """Write one number, clipped; 0 for NaN."""
    number = np.float32(value)
    if math.isnan(number):
        number = np.float32(0.0)
    observation[field] = min(max(number, -_CLIP), _CLIP)


@inlined
def _budget(w: World, index: int) -> float:
    return (deadline_s(w, w.stage.head + index) - w.env.now_s) / w.settings.slo_s


@inlined
def _put_queue(w: World, observation: NDArray[np.float32], first: int) -> int:
    queued, quantiles = w.stage.tail - w.stage.head, len(_QUANTILES)
    scale = w.model.rate_scale * w.settings.slo_s
    _put(observation, first, queued / scale)
    for k in range(quantiles):
        budget = 1.0
        if queued:
            position = _QUANTILES[k] * (queued - 1)
            below = int(position)
            low, high = _budget(w, below), _budget(w, min(below + 1, queued - 1))
            budget = low + (position - below) * (high - low)
        _put(observation, first + 1 + k, budget)
    # Budgets ascend, so what is due in each part of the SLO is a run of the queue.
    first, begin = first + 1 + quantiles, 0
    for due in range(fields.DUE_BINS):
        end = _first_due_after(w, due, begin, queued) if due < fields.DUE_BINS - 1 else queued
        _put(observation, first + due, (end - begin) / scale)
        begin = end
    first += fields.DUE_BINS
    spans, last = w.settings.spans, w.env.interval - 1
    for k in range(len(spans) if w.env.interval else 0):
        span = min(spans[k], min(last + 1, HISTORY))
        total = w.stage.arrived[last & (PAST - 1)] - w.stage.arrived[(last - span) & (PAST - 1)]
        rate = total / span / w.settings.interval_s
        _put(observation, first + k, rate / w.model.rate_scale)
    return first + len(spans)


@inlined
def _first_due_after(w: World, due: int, begin: int, end: int) -> int:
    """Return the first place in [begin, end) whose bin is above ``due``; ``end`` if none."""
    while end - begin > _SCAN:
        middle = (begin + end) // 2
        if math.floor(_budget(w, middle) * fields.DUE_BINS) > due:
            end = middle
        else:
            begin = middle + 1
    while begin < end and not math.floor(_budget(w, begin) * fields.DUE_BINS) > due:
        begin += 1
    return begin


@compiled
def _put_network(w: World, observation: NDArray[np.float32], first: int) -> int:
    env, slo_s = w.env, w.settings.slo_s
    if env.interval:
        last, scale = (env.interval - 1) & (RECENT - 1), fields.BANDWIDTH_SCALE_BYTES_PER_S
        _put(observation, first, env.mean_delays_s[last] / slo_s)
        _put(observation, first + 1, env.delay_max_s / slo_s)
        _put(observation, first + 2, _trend(w, env.mean_delays_s) / slo_s)
        _put(observation, first + 3, env.bandwidths[last] / scale)
        _put(observation, first + 4, _trend(w, env.bandwidths) / scale)
    return first + 5


@compiled
def _trend(w: World, history: Records[float]) -> float:
    interval = w.env.interval
    before = min(fields.TREND_INTERVALS, interval - 1)
    if before == 0:
        return 0.0
    total = 0.0
    for k in range(interval - 1 - before, interval - 1):
        total += history[k & (RECENT - 1)]
    return history[(interval - 1) & (RECENT - 1)] - total / before


@inlined
def _put_allocation(w: World, observation: NDArray[np.float32], first: int) -> int:
    env, stage, limits = w.env, w.stage, w.model.limits
    ready, left_s = 0, 0.0
    for k in range(stage.replicas):
        replica = w.replicas[k]
        ready += not replica.draining and replica.ready_s <= env.now_s
        if replica.batch_size:
            left_s = max(left_s, planned_end_s(w, replica) - env.now_s)
    _put(observation, first, stage.wanted.cores / limits.cores)
    _put(observation, first + 1, stage.wanted.batch / limits.batch)
    _put(observation, first + 2, stage.wanted.replicas / limits.replicas)
    _put(observation, first + 3, ready / limits.replicas)
    _put(observation, first + 4, stage.running / limits.batch)
    _put(observation, first + 5, left_s / w.settings.slo_s)
    return first + 6


@compiled
def _put_outcome(w: World, observation: NDArray[np.float32], first: int) -> int:
    metrics = w.metrics
    scale = w.model.rate_scale * w.settings.interval_s
    if w.env.interval:
        _put(observation, first, metrics.on_time / scale)
        _put(observation, first + 1, metrics.late / scale)
        _put(observation, first + 2, metrics.dropped / scale)
    return first + 3


@inlined
def _put_stage(w: World, observation: NDArray[np.float32], first: int) -> int:
    """Write what only the observation of all stages has of one."""
    _put(observation, first, w.stage.wanted.variant / max(1, w.model.variants - 1))
    if w.env.interval:
        measured: Any = w.stage.measured
        scale = w.model.rate_scale * w.settings.interval_s
        _put(observation, first + 1, measured.answered / scale)
        _put(observation, first + 2, measured.dropped / scale)
        _put(observation, first + 3, measured.utilisation)
        _put(observation, first + 4, measured.throttled_share)
    return first + 5


@inlined
def _put_starting(w: World, observation: NDArray[np.float32], first: int) -> int:
    env, model = w.env, w.model
    scale_s = model.cold_start_s if model.cold_start_s > 0 else 1.0
    starting, slots = 0, observation[first + 1 : first + 1 + fields.STARTING_SLOTS]
    for k in range(w.stage.replicas):
        left_s = w.replicas[k].ready_s - env.now_s
        if left_s > 0 and not w.replicas[k].draining:
            _put_in_order(slots, starting, left_s / scale_s)
            starting += 1
    _put(observation, first, starting / model.limits.replicas)
    return first + 1 + fields.STARTING_SLOTS


@inlined
def _put_in_order(slots: NDArray[np.float32], taken: int, value: float) -> None:
    """Put a value among the smallest so far, which ascend; the largest may fall out."""
    slot = min(taken, fields.STARTING_SLOTS)
    while slot > 0 and value < slots[slot - 1]:
        if slot < fields.STARTING_SLOTS:
            slots[slot] = slots[slot - 1]
        slot -= 1
    if slot < fields.STARTING_SLOTS:
        _put(slots, slot, value)
