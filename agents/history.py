"""What a stepwise policy sees: the joint observation, and what it remembers of earlier ones.

One kernel keeps the memory in training and in following, so that both see the same.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec
from sponge_env.simulation.encoding import CLIP, JOINT, control_named

from .lookahead.service_times import RATIO_RANGE
from .needs import DELAYS, NEEDS, RATES
from .needs import FloatMatrix as FloatMatrix

ARRIVAL_TIMES_S = (3.0, 10.0, 60.0)  # Time constants of the moving averages of arrivals
DELAY_TIMES_S = (5.0, 40.0)  # The same of the communication delay
EXTREME_TIME_S = 60.0  # Time constant with which a maximum or minimum of the past fades
PEAK_TIME_S = 600.0  # The same of the highest mean over the first time constant: a peak comes again
AGES_S = (30.0, 300.0)  # Time constants with which the beginning of an episode is forgotten
SERVICE_TIME_S = 20.0  # Time constant of the moving average of how long batches take
BATCH_TIMES = ("service_mean_s", "batch_mean", "effective_cores", "offered")
"""Metrics that tell how long batches took, and how many requests came, beyond an observation."""

_QUEUE = "queue_length"
_OF_STAGE = _QUEUE, "due_1_of_8", "cores", "replicas"
_DUE_BINS = sum(name.startswith("due_") for name in JOINT.fields)
_STAGES = 5  # Where the units of the stages begin

_MEANS = len(ARRIVAL_TIMES_S)
_TIMES_S = ARRIVAL_TIMES_S + DELAY_TIMES_S
_MOST = len(_TIMES_S)
_LEAST, _LONGEST, _PEAK, _BEFORE = _MOST + 1, _MOST + 2, _MOST + 3, _MOST + 4
_SERVICE = _BEFORE + 2
SERVICE, PEAK = "service_ratio", "arrivals_peak"
REMEMBERED = (
    *(f"arrivals_mean_{time_s:g}s" for time_s in ARRIVAL_TIMES_S),
    *(f"delay_mean_{time_s:g}s" for time_s in DELAY_TIMES_S),
    *("arrivals_most", "arrivals_least", "delay_most", PEAK, "arrivals_before", "delay_before"),
    SERVICE,
)
"""What is kept from one interval to the next, in order. The last is the mean time of batches over
the fit's, with the cores at the end of their interval; 1 if there are several stages or variants,
whose batches an interval's metrics do not tell apart. It is not only the machine's speed: with a
resize delay some batches ran on other cores; under a quota lone ones are faster than the fit."""
DEPLOYMENT = ("slo", "resize_delay", "cold_start", SERVICE)
"""Inputs that say which system this is, and change little or not at all while it runs."""

FIRST_INTERVALS = 12  # Intervals at the beginning after each of which the replicas may change


@dataclass(frozen=True, slots=True)
class InputLayout:
    """Which entries of an observation are remembered, and what policies then see."""

    fields: tuple[str, ...]  # Names of what is observed, in order
    inputs: tuple[str, ...]  # Names of what a policy sees
    requests: IntArray  # (3,) places of the arrivals and of the mean and longest delay
    stages: IntArray  # (stages, 4) places of each stage's queue, first due bin, cores and replicas
    needs: IntArray  # (13,) places for :func:`.needs.add_needs`; none of several stages


def layout_of(spec: SystemSpec) -> InputLayout:
    """Return that of a system: the joint observation of one model, or that of all stages."""
    if spec.is_one_model:
        return JOINT_LAYOUT
    return _laid_out(control_named("pipeline", spec).fields)


@cache
def _laid_out(fields: tuple[str, ...]) -> InputLayout:
    queues = [name for name in fields if name.endswith(_QUEUE)]
    stages = [name.removesuffix(_QUEUE) for name in queues]  # with their point
    inputs = (
        *fields, *REMEMBERED, "arrivals_spread", *(f"age_{time_s:g}s" for time_s in AGES_S), "slo",
        *(f"{stage}cores_held" for stage in stages), "until_step", "resize_delay", "cold_start",
    )  # fmt: skip
    requests = [f"{stages[0]}arrivals_last", "delay_mean", "delay_max"]
    places = [[f"{stage}{name}" for name in _OF_STAGE] for stage in stages]
    needed: tuple[str, ...] = ()
    if fields == JOINT.fields:
        inputs = (*inputs, *NEEDS)
        needed = (*RATES, *DELAYS, "due_1_of_8", "replicas_ready", SERVICE, NEEDS[0], PEAK)
    return InputLayout(
        fields,
        inputs,
        np.array([fields.index(name) for name in requests]),
        np.array([[fields.index(name) for name in row] for row in places]),
        np.array([inputs.index(name) for name in needed], np.int64),
    )


JOINT_LAYOUT = _laid_out(JOINT.fields)
INPUTS = JOINT_LAYOUT.inputs  # Names of what a policy of one model sees, in order


def units_of(spec: SystemSpec, every: int) -> FloatArray:
    """Return the (5 + 2 stages,) units of what is observed of a system, for :func:`remember`.

    In order: SLO, interval, intervals after which the replicas may step (never if 0), resize delay,
    longest cold start; of each stage, the requests and the replicas that a value of 1 stands for.
    """
    cold_start_s = max(stage.cold_start_s for stage in spec.stages)
    stages = [(each.capacity_rps * spec.slo_s, each.replicas_max) for each in spec.stages]
    system = spec.slo_s, spec.interval_s, every, spec.resize_delay_s, cold_start_s
    return np.array([*system, *chain(*stages)], np.float64)


def batch_times_of(metrics: Any) -> FloatArray | None:
    """Return (n, 4) :data:`BATCH_TIMES` of (n,) metrics, for :func:`remember`; None of none."""
    return None if metrics is None else np.stack([metrics[name] for name in BATCH_TIMES], axis=1)


@entry_point
def remember(
    observations: FloatMatrix, batch_times: FloatArray, fits_s: FloatArray,
    chosen: NDArray[np.bool_], intervals: IntArray, scales: FloatArray, requests_at: IntArray,
    stages_at: IntArray, memory: FloatMatrix, inputs: FloatMatrix,
) -> None:  # fmt: skip
    """Take in (n, fields) observations; write (n, inputs) what policies see, of chosen ones.

    ``batch_times`` (n, 4) are :data:`BATCH_TIMES` of the last interval, zero or NaN if no batch
    ended in it; ``fits_s`` (n or 1, cores, batches) is how long batches should take. ``intervals``
    (n,) counts the earlier decisions of each episode: at 0 the (n, remembered) memory starts over.
    For ``scales`` (n, 5 + 2 stages) see :func:`units_of`, for places :class:`InputLayout`.
    """
    for i in range(len(observations)):
        if not chosen[i]:
            continue
        observed, kept, row, units = observations[i], memory[i], inputs[i], scales[i]
        slo_s, interval_s, every = units[0], units[1], units[2]
        arrivals = float(observed[requests_at[0]])
        if arrivals >= CLIP:
            arrivals = batch_times[i, 3] * slo_s / (units[_STAGES] * interval_s)
        _update(observed, kept, arrivals, requests_at, intervals[i], interval_s)
        fit_s = fits_s[min(i, len(fits_s) - 1)]
        _update_service(kept, batch_times[i], fit_s, intervals[i], interval_s)
        _copy(observed, row)
        at = len(observed)
        _copy(kept, row[at:])
        at += len(kept)
        age_s = intervals[i] * interval_s
        row[at] = kept[_MOST] - kept[_LEAST]
        row[at + 1], row[at + 2] = math.exp(-age_s / AGES_S[0]), math.exp(-age_s / AGES_S[1])
        row[at + 3] = math.log(slo_s)
        at += 4
        for k in range(len(stages_at)):
            queue, due = stages_at[k, 0], stages_at[k, 1]
            cores, replicas = observed[stages_at[k, 2]], observed[stages_at[k, 3]]
            requests, replicas_max = units[_STAGES + 2 * k], units[_STAGES + 2 * k + 1]
            row[queue] = math.log1p(observed[queue] * requests)
            for place in range(due, due + _DUE_BINS):
                row[place] = math.log1p(observed[place] * requests)
            row[at + k] = cores * replicas * replicas_max
        at += len(stages_at)
        row[at] = _until_step(intervals[i], every)
        row[at + 1] = units[3] / interval_s
        row[at + 2] = math.log1p(units[4] / interval_s)


@compiled
def _until_step(interval: int, every: float) -> float:
    """Return the share of the time between two steps of the replicas that is still to wait."""
    # After the first seconds steps are rare: a new replica serves after some ten seconds, and only
    # a decision that stands for longer shows its worth.
    if every == 0 or interval < FIRST_INTERVALS:
        return 0.0
    return (-interval % every) / every


@compiled
def _copy(values: FloatMatrix, out: FloatMatrix) -> None:
    # NumPy's own copy may allocate, which kernels do not.
    for k in range(len(values)):
        out[k] = values[k]


@compiled
def _update(
    observed: FloatMatrix, kept: FloatMatrix, arrivals: float, requests_at: IntArray,
    interval: int, interval_s: float,
) -> None:  # fmt: skip
    delay, longest = observed[requests_at[1]], observed[requests_at[2]]
    if interval <= 1:
        # The first observation comes before the first arrivals.
        kept[:_MEANS] = arrivals
        kept[_MEANS:_MOST] = delay
        kept[_MOST], kept[_LEAST], kept[_LONGEST] = arrivals, arrivals, longest
        kept[_PEAK] = arrivals
    else:
        for k in range(_MOST):
            value = arrivals if k < _MEANS else delay
            kept[k] += (1 - math.exp(-interval_s / _TIMES_S[k])) * (value - kept[k])
        fading = 1 - math.exp(-interval_s / EXTREME_TIME_S)
        kept[_MOST] = max(kept[_MOST] + fading * (arrivals - kept[_MOST]), arrivals)
        kept[_LEAST] = min(kept[_LEAST] + fading * (arrivals - kept[_LEAST]), arrivals)
        kept[_LONGEST] = max(kept[_LONGEST] + fading * (longest - kept[_LONGEST]), longest)
        fading = 1 - math.exp(-interval_s / PEAK_TIME_S)
        kept[_PEAK] = max(kept[_PEAK] + fading * (kept[0] - kept[_PEAK]), kept[0])
    kept[_BEFORE], kept[_BEFORE + 1] = arrivals, delay


@compiled
def _update_service(
    kept: FloatMatrix, batch_times: FloatArray, fit_s: FloatArray, interval: int, interval_s: float
) -> None:
    """Take in how long the batches of an interval took, relative to the fit, if any ended."""
    # The fit is linear in the batch size, so that of the mean size is the mean of all.
    mean_s, batch = batch_times[0], batch_times[1]
    cores = int(batch_times[2] + 0.5)  # a quota in whole microseconds is rarely a whole number
    if interval <= 1:
        kept[_SERVICE] = 1.0
    elif mean_s > 0 and batch >= 1 and min(cores, len(fit_s)) >= 1:
        row = fit_s[min(cores, len(fit_s)) - 1]
        below = min(int(batch), len(row))
        above = min(below + 1, len(row))
        expected_s = row[below - 1] + (batch - below) * (row[above - 1] - row[below - 1])
        believed = min(max(mean_s / expected_s, RATIO_RANGE[0]), RATIO_RANGE[1])
        share = 1 - math.exp(-interval_s / SERVICE_TIME_S)
        kept[_SERVICE] += share * (believed - kept[_SERVICE])
