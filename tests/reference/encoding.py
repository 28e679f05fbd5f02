"""Between the physical view and the vectors of a learner, in both directions.

The environment and the learned controllers use the same functions, so training and
evaluation cannot differ.

Everything is scaled to about [0, 1] and clipped to [-CLIP, CLIP]. Times are divided by
the SLO. Request counts are divided by what the system can serve within one SLO on all
cores of one replica, rates by what it can serve per second, so that the same policy
input means the same pressure on any profile.

Two kinds of control share this: *vertical*, which chooses cores and batch size of one
replica, and *joint*, which chooses the number of replicas, too. The vertical observation is
the first part of the joint one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sponge_env.config import ControlName, Limits
from sponge_env.errors import ConfigError, unknown
from sponge_env.interfaces import Allocation, FloatArray, SystemSpec, SystemView

LAYOUT_VERSION = 1
"""Changes whenever a field of the observation changes its place or meaning."""

CLIP = 5.0
"""Largest absolute value of an observation."""

BANDWIDTH_SCALE_BYTES_PER_S = 5e6
BUDGET_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
DUE_BINS = 8
TREND_INTERVALS = 5
STARTING_SLOTS = 8
"""Cold-starting replicas that a joint observation tells apart: those that serve first."""

FIELDS: tuple[str, ...] = (
    "queue_length",
    *(f"budget_q{int(100 * q)}" for q in BUDGET_QUANTILES),
    *(f"due_{i + 1}_of_{DUE_BINS}" for i in range(DUE_BINS)),
    "arrivals_last",
    "arrivals_1s",
    "arrivals_5s",
    "arrivals_30s",
    "delay_mean",
    "delay_max",
    "delay_trend",
    "bandwidth",
    "bandwidth_trend",
    "cores",
    "batch",
    "replicas",
    "replicas_ready",
    "running_size",
    "running_left",
    "on_time",
    "late",
    "dropped",
    "utilisation",
    "throttled_share",
)
"""Names of the observation's entries, in order; explained in ``docs/environment.md``."""

OBS_DIM = len(FIELDS)

JOINT_FIELDS: tuple[str, ...] = (
    *FIELDS,
    "replicas_starting",
    *(f"ready_in_{slot + 1}" for slot in range(STARTING_SLOTS)),
)
"""Likewise of the joint observation."""


@dataclass(frozen=True, slots=True)
class Control:
    """What an environment lets its agent see and choose."""

    fields: tuple[str, ...]
    """Names of the observation's entries, in order."""
    choices: tuple[str, ...]
    """Fields of :class:`~sponge_env.interfaces.Allocation` that an action chooses, in order;
    the others are 1."""

    @property
    def obs_dim(self) -> int:
        """Length of the observation."""
        return len(self.fields)

    def most(self, limits: Limits) -> list[int]:
        """Return the largest value of each choice."""
        return [getattr(limits, name) for name in self.choices]


VERTICAL = Control(FIELDS, ("cores", "batch"))
JOINT = Control(JOINT_FIELDS, ("cores", "batch", "replicas"))
_CONTROLS: dict[str, Control] = {"vertical": VERTICAL, "joint": JOINT}


def control_named(name: ControlName) -> Control:
    """Return a kind of control by its name.

    Raises:
        ConfigError: There is no such kind.
    """
    if name not in _CONTROLS:
        raise ConfigError(unknown("control", name, _CONTROLS))
    return _CONTROLS[name]


def capacity_rps(spec: SystemSpec) -> float:
    """Return the largest planned throughput of one replica, max over b of b / l(b, c_max)."""
    latency_s = spec.latency.table_s(spec.batch_max, spec.cores_max)[:, -1]
    return float(np.max(np.arange(1, spec.batch_max + 1) / latency_s))


def encode(view: SystemView, spec: SystemSpec, control: Control = VERTICAL) -> NDArray[np.float32]:
    """Turn a view into an observation.

    Args:
        view: The system's state.
        spec: The system's limits and latency model.
        control: Whose observation it is.

    Returns:
        (control.obs_dim,) float32 in [-CLIP, CLIP], in the order of ``control.fields``.
    """
    rate_scale = capacity_rps(spec)
    count_scale = rate_scale * spec.slo_s
    budgets = (view.queued_deadlines_s - view.now_s) / spec.slo_s
    values = [
        len(budgets) / count_scale,
        *_budget_quantiles(budgets),
        *_due_counts(budgets) / count_scale,
        *_arrival_rates(view.arrivals, spec.interval_s) / rate_scale,
        *_network(view, spec.slo_s),
        *_allocation(view, spec),
        *_last_interval(view, rate_scale * spec.interval_s),
        *_starting(view, spec),
    ]
    observation = np.array(values[: control.obs_dim], dtype=np.float32)
    observation[np.isnan(observation)] = 0.0
    return np.minimum(np.maximum(observation, np.float32(-CLIP)), np.float32(CLIP))


def decode(action: NDArray[np.int64]) -> Allocation:
    """Turn an action into an allocation.

    Args:
        action: Of ``MultiDiscrete([cores_max, batch_max])``: (2,) cores - 1 and batch - 1; or
            of ``MultiDiscrete([cores_max, batch_max, replicas_max])``: (3,) replicas - 1, too.
    """
    cores, batch, replicas = (*(int(choice) + 1 for choice in action), 1)[:3]
    return Allocation(cores, batch, replicas)


def _budget_quantiles(budgets: FloatArray) -> FloatArray:
    """Quantiles of ascending budgets; a full SLO when nothing waits."""
    if not len(budgets):
        return np.ones(len(BUDGET_QUANTILES))
    position = np.array(BUDGET_QUANTILES) * (len(budgets) - 1)
    below = position.astype(np.int64)
    above = np.minimum(below + 1, len(budgets) - 1)
    return budgets[below] + (position - below) * (budgets[above] - budgets[below])


def _due_counts(budgets: FloatArray) -> FloatArray:
    """Count the requests due in each eighth of the SLO; overdue ones in the first."""
    bins = np.minimum(np.maximum(budgets * DUE_BINS, 0.0), DUE_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=DUE_BINS).astype(np.float64)


def _arrival_rates(arrivals: FloatArray, interval_s: float) -> FloatArray:
    """Mean rates over the last interval and the last 1, 5 and 30 s, in requests per second."""
    if not len(arrivals):
        return np.zeros(4)
    spans = [1, *(max(1, round(span_s / interval_s)) for span_s in (1, 5, 30))]
    means = [float(np.add.reduce(part)) / len(part) for part in (arrivals[-s:] for s in spans)]
    return np.array(means) / interval_s


def _network(view: SystemView, slo_s: float) -> list[float]:
    if not len(view.mean_delays_s):
        return [0.0] * 5
    delays, bandwidths = view.mean_delays_s, view.bandwidths_bytes_per_s
    return [
        delays[-1] / slo_s,
        view.delays_s.max() / slo_s if len(view.delays_s) else 0.0,
        _trend(delays) / slo_s,
        bandwidths[-1] / BANDWIDTH_SCALE_BYTES_PER_S,
        _trend(bandwidths) / BANDWIDTH_SCALE_BYTES_PER_S,
    ]


def _trend(history: FloatArray) -> float:
    """Last value against the mean of the few before it; NaN where there are none."""
    before = history[-1 - TREND_INTERVALS : -1]
    return float(history[-1] - np.add.reduce(before) / len(before)) if len(before) else 0.0


def _allocation(view: SystemView, spec: SystemSpec) -> list[float]:
    left_s = max((r.expected_end_s - view.now_s for r in view.running), default=0.0)
    return [
        view.allocation.cores / spec.cores_max,
        view.allocation.batch / spec.batch_max,
        view.allocation.replicas / spec.replicas_max,
        view.replicas_ready / spec.replicas_max,
        sum(r.size for r in view.running) / spec.batch_max,
        max(0.0, left_s) / spec.slo_s,
    ]


def _last_interval(view: SystemView, count_scale: float) -> list[float]:
    last = view.last
    if last is None:
        return [0.0] * 5
    return [
        last.on_time / count_scale,
        last.late / count_scale,
        last.dropped / count_scale,
        last.utilisation,
        last.throttled_share,
    ]


def _starting(view: SystemView, spec: SystemSpec) -> list[float]:
    """How many replicas start, and when each will serve; 0 where there is none.

    In cold starts and not in SLOs, which are far shorter. A replica counts down to 0 and
    then counts as ready, so nothing jumps in its slot.
    """
    slots = np.zeros(STARTING_SLOTS)
    first_s = view.starting_s[:STARTING_SLOTS]
    slots[: len(first_s)] = first_s
    scale_s = spec.cold_start_s or 1.0
    return [len(view.starting_s) / spec.replicas_max, *(slots / scale_s)]
