"""What a stepwise policy sees: the joint observation, and what it remembers of earlier ones.

One kernel keeps the memory of thousands of episodes while a policy is trained and of one while it
is followed, so that both see the same.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.encoding import JOINT
from sponge_env.interfaces import SystemSpec

ARRIVAL_TIMES_S = (3.0, 10.0, 60.0)
"""Time constants of the moving averages of arrivals."""
DELAY_TIMES_S = (5.0, 40.0)
"""The same of the communication delay."""
EXTREME_TIME_S = 60.0
"""Time constant with which a maximum or minimum of the past fades."""
AGES_S = (30.0, 300.0)
"""Time constants with which the beginning of an episode is forgotten."""

_QUEUE = JOINT.fields.index("queue_length")
_DUE = JOINT.fields.index("due_1_of_8")
_ARRIVALS = JOINT.fields.index("arrivals_last")
_DELAY = JOINT.fields.index("delay_mean")
_DELAY_MAX = JOINT.fields.index("delay_max")
_CORES = JOINT.fields.index("cores")
_REPLICAS = JOINT.fields.index("replicas")
_OBSERVED = JOINT.obs_dim

_MEANS = len(ARRIVAL_TIMES_S)
_DELAYS = len(DELAY_TIMES_S)
_MOST, _LEAST, _LONGEST = _MEANS + _DELAYS, _MEANS + _DELAYS + 1, _MEANS + _DELAYS + 2
_BEFORE = _LONGEST + 1
REMEMBERED = (
    *(f"arrivals_mean_{time_s:g}s" for time_s in ARRIVAL_TIMES_S),
    *(f"delay_mean_{time_s:g}s" for time_s in DELAY_TIMES_S),
    "arrivals_most",
    "arrivals_least",
    "delay_most",
    "arrivals_before",
    "delay_before",
)
"""What is kept from one interval to the next, in order."""
DERIVED = (
    *REMEMBERED,
    "arrivals_spread",
    *(f"age_{time_s:g}s" for time_s in AGES_S),
    "slo",
    "cores_held",
    "until_step",
    "resize_delay",
    "cold_start",
)
INPUTS = (*JOINT.fields, *DERIVED)
"""Names of what a policy sees, in order."""
DEPLOYMENT = ("slo", "resize_delay", "cold_start")
"""Inputs that stay the same for as long as a system runs."""

FIRST_INTERVALS = 12
"""Intervals at the beginning in each of which the number of replicas may change."""

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scales:
    """What gives the observations of a system their units."""

    requests: float
    """That 1 of the queue's length stands for."""
    slo_s: float
    interval_s: float
    replicas: int
    """That 1 of the replicas stands for."""
    every: int
    """Intervals after which the number of replicas may change again; never if 0."""
    resize_delay_s: float
    cold_start_s: float

    @classmethod
    def of(cls, spec: SystemSpec, every: int) -> Scales:
        """Return those of a system."""
        requests = spec.capacity_rps * spec.slo_s
        times_s = spec.slo_s, spec.interval_s
        return cls(
            requests, *times_s, spec.replicas_max, every, spec.resize_delay_s, spec.cold_start_s
        )

    @property
    def row(self) -> FloatArray:
        """(7,) the same for :func:`remember`."""
        return np.array(astuple(self), np.float64)


@compiled
def may_step(interval: int, every: float) -> bool:
    """Return whether the number of replicas may change in an interval, the first being 0.

    That is seldom, or never if ``every`` is 0: a new replica serves after some ten seconds, and
    only a decision that stands longer than that shows what it was worth.
    """
    if every == 0:
        return False
    return interval < FIRST_INTERVALS or interval % every == 0


@entry_point
def remember(
    observations: FloatMatrix,
    intervals: IntArray,
    scales: FloatArray,
    memory: FloatMatrix,
    seen: FloatMatrix,
) -> None:
    """Take in (n, fields) joint observations; write (n, inputs) what policies see.

    ``intervals`` (n,) counts the decisions of each episode before this one: at 0 the (n,
    remembered) memory is begun anew. ``scales`` is (n, 7), see :class:`Scales`.
    """
    for i in range(len(observations)):
        shown, kept, row = observations[i], memory[i], seen[i]
        requests, slo_s, interval_s = scales[i, 0], scales[i, 1], scales[i, 2]
        _update(shown, kept, intervals[i], interval_s)
        _copy(shown, row)
        row[_QUEUE] = math.log1p(shown[_QUEUE] * requests)
        for k in range(_DUE, _ARRIVALS):
            row[k] = math.log1p(shown[k] * requests)
        _copy(kept, row[_OBSERVED:])
        at = _OBSERVED + len(kept)
        age_s = intervals[i] * interval_s
        row[at] = kept[_MOST] - kept[_LEAST]
        row[at + 1], row[at + 2] = math.exp(-age_s / AGES_S[0]), math.exp(-age_s / AGES_S[1])
        row[at + 3] = math.log(slo_s)
        row[at + 4] = shown[_CORES] * shown[_REPLICAS] * scales[i, 3]
        row[at + 5] = _until_step(intervals[i], scales[i, 4])
        row[at + 6] = scales[i, 5] / interval_s
        row[at + 7] = math.log1p(scales[i, 6] / interval_s)


@compiled
def _until_step(interval: int, every: float) -> float:
    """Return the share of the time between two steps of the replicas that is still to wait."""
    if every == 0 or may_step(interval, every):
        return 0.0
    return (-interval % every) / every


@compiled
def _copy(values: FloatMatrix, out: FloatMatrix) -> None:
    # NumPy's own copy may allocate, which kernels do not.
    for k in range(len(values)):
        out[k] = values[k]


@compiled
def _update(shown: FloatMatrix, kept: FloatMatrix, interval: int, interval_s: float) -> None:
    arrivals, delay = shown[_ARRIVALS], shown[_DELAY]
    if interval <= 1:
        # The first observation comes before the first arrivals.
        kept[:_MEANS] = arrivals
        kept[_MEANS:_MOST] = delay
        kept[_MOST], kept[_LEAST], kept[_LONGEST] = arrivals, arrivals, shown[_DELAY_MAX]
        kept[_BEFORE], kept[_BEFORE + 1] = arrivals, delay
        return
    for k in range(_MEANS):
        kept[k] += (1 - math.exp(-interval_s / ARRIVAL_TIMES_S[k])) * (arrivals - kept[k])
    for k in range(_DELAYS):
        share = 1 - math.exp(-interval_s / DELAY_TIMES_S[k])
        kept[_MEANS + k] += share * (delay - kept[_MEANS + k])
    fading = 1 - math.exp(-interval_s / EXTREME_TIME_S)
    longest = shown[_DELAY_MAX]
    kept[_MOST] = max(kept[_MOST] + fading * (arrivals - kept[_MOST]), arrivals)
    kept[_LEAST] = min(kept[_LEAST] + fading * (arrivals - kept[_LEAST]), arrivals)
    kept[_LONGEST] = max(kept[_LONGEST] + fading * (longest - kept[_LONGEST]), longest)
    kept[_BEFORE], kept[_BEFORE + 1] = arrivals, delay
