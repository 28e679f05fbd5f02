"""How long a batch takes: the latency model l(b, c) and its fit, and service under a CPU quota.

Sponge (Razavi et al., EuroMLSys 2024) models the time of a batch of ``b`` requests on
``c`` cores by Amdahl's law per batch::

    l(b, c) = gamma * b / c + epsilon / c + delta * b + eta

Controllers plan with it; the simulator falls back on it where nothing was measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from sponge_env.arrays import FloatArray
from sponge_env.errors import ProfileError

MOST_LOST = 0.5  # Largest part of the quota of one core unit that may be lost when work goes on
SHORTEST_S = 1e-5  # Shortest enforcement period and tick: a kernel's are a hundred times as long
LONGEST_S = 3600.0  # Longest work of a batch, and whatever else a worker takes time for

CONTENDING = 8  # Replicas that load at once where ``loading_contention`` is measured


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Fitted coefficients of l(b, c), in seconds, and how far off they are."""

    gamma_s: float  # Parallel work per request: core-seconds
    delta_s: float  # Serial work per request
    epsilon_s: float  # Parallel work per batch: core-seconds; a fit may make it negative
    eta_s: float  # Serial work per batch
    residual_quantiles: tuple[float, ...] = (0.0,)
    """Relative errors (measured / predicted - 1) at evenly spaced probabilities from 0 to 1."""

    def predict_s(self, batch: ArrayLike, cores: ArrayLike) -> FloatArray:
        """Predict the latency of batches on core units: seconds, in the broadcast shape."""
        b, c = np.asarray(batch, dtype=np.float64), np.asarray(cores, dtype=np.float64)
        return self.gamma_s * b / c + self.epsilon_s / c + self.delta_s * b + self.eta_s

    def scaled(self, scale: float) -> Self:
        """Return the model of latencies that are ``scale`` times as long."""
        names = ("gamma_s", "delta_s", "epsilon_s", "eta_s")
        return replace(self, **{name: getattr(self, name) * scale for name in names})

    def table_s(self, batch_max: int, cores_max: int) -> FloatArray:
        """Predict (batch_max, cores_max) positive seconds, read-only; else a ``ProfileError``."""
        return _table_s(self, batch_max, cores_max)


@dataclass(frozen=True, slots=True)
class MeasuredLatency(LatencyModel):
    """A measured grid where no fit of l(b, c) is any good, and a fit for ratios of latencies."""

    batches: tuple[int, ...] = ()
    cores: tuple[float, ...] = ()
    latency_s: tuple[tuple[float, ...], ...] = ()  # Rows are batch sizes, columns core units

    def scaled(self, scale: float) -> Self:
        """Return the model of latencies that are ``scale`` times as long."""
        scaled_s = tuple(tuple(cell * scale for cell in row) for row in self.latency_s)
        return replace(LatencyModel.scaled(self, scale), latency_s=scaled_s)

    def predict_s(self, batch: ArrayLike, cores: ArrayLike) -> FloatArray:
        """Interpolate in b and 1 / c; beyond the grid go on in b, and share work on fewer cores."""
        # Where one batch size was measured, all batches take as long as that.
        b, c = np.broadcast_arrays(np.asarray(batch, float), np.asarray(cores, float))
        sizes, units = np.array(self.batches, float), np.array(self.cores)
        rows_s = np.stack([np.interp(-1 / c, -1 / units, row) for row in self.latency_s])
        after = np.clip(np.searchsorted(sizes, b), min(1, len(sizes) - 1), len(sizes) - 1)
        before = np.maximum(after - 1, 0)
        low_s, high_s = (np.take_along_axis(rows_s, at[None], 0)[0] for at in (before, after))
        part = (b - sizes[before]) / np.maximum(sizes[after] - sizes[before], 1)
        beyond_s = np.maximum(part - 1, 0) * np.maximum(high_s - low_s, 0)
        within_s = low_s + np.clip(part, 0, 1) * (high_s - low_s)
        predicted_s: FloatArray = (within_s + beyond_s) * np.maximum(1, units[0] / c)
        return predicted_s


@lru_cache(maxsize=64)
def _table_s(model: LatencyModel, batch_max: int, cores_max: int) -> FloatArray:
    batches = np.arange(1, batch_max + 1)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        table = model.predict_s(batches, np.arange(1, cores_max + 1)[None, :])
    good = (table > 0) & (table <= LONGEST_S)
    if not good.all():
        row, column = np.unravel_index(int(np.argmin(good)), table.shape)
        raise ProfileError(
            f"the latency fit predicts {float(table[row, column]) * 1000:.3g} ms for batch "
            f"{row + 1} on {column + 1} cores, but a latency must be positive "
            "and no longer than an hour; calibrate again or lower the scenario's limits"
        )
    table.setflags(write=False)
    return table


@dataclass(frozen=True, slots=True)
class FitError:
    """How well a fit describes what was measured."""

    r2: float  # Coefficient of determination
    mape: float  # Mean absolute error relative to the measured value
    worst_batch: int
    worst_cores: int
    worst_error: float  # Relative error (predicted / measured - 1) of the worst cell


def fit_latency(
    batches: Sequence[int] | FloatArray, cores: Sequence[int] | FloatArray, latency_s: FloatArray,
    *, relative: bool = False,
) -> tuple[LatencyModel, FitError]:  # fmt: skip
    """Fit l(b, c) to a measured grid, (rows, columns) seconds, by linear least squares."""
    # It minimises ``relative`` errors, for grids over two decades of latency, or absolute ones, as
    # published. The cells' own relative errors are the model's residual quantiles.
    grid = np.meshgrid(np.asarray(batches, float), np.asarray(cores, float), indexing="ij")
    b, c, measured = grid[0].ravel(), grid[1].ravel(), np.ravel(latency_s).astype(np.float64)
    if measured.size < 4 or measured.shape != b.shape:
        raise ProfileError(
            f"a latency fit needs a full grid of at least 4 cells, not {measured.size} values "
            f"for {b.size} cells"
        )
    if not np.all(np.isfinite(measured) & (measured > 0)):
        raise ProfileError("every measured latency must be a positive number of seconds")
    features = np.stack([b / c, b, 1 / c, np.ones_like(b)], axis=1)
    weights = 1 / measured if relative else np.ones_like(measured)
    solution, *_ = np.linalg.lstsq(features * weights[:, None], measured * weights, rcond=None)
    predicted = features @ solution
    residuals = to_quantiles(measured / predicted - 1, points=21)
    gamma_s, delta_s, epsilon_s, eta_s = solution.tolist()
    model = LatencyModel(gamma_s, delta_s, epsilon_s, eta_s, residuals)
    off = predicted / measured - 1
    worst = int(np.argmax(np.abs(off)))
    spread = float(np.sum((measured - measured.mean()) ** 2))
    unexplained = float(np.sum((measured - predicted) ** 2))
    return model, FitError(
        r2=1 - unexplained / spread if spread > 0 else float(unexplained == 0),
        mape=float(np.mean(np.abs(off))), worst_batch=int(b[worst]), worst_cores=int(c[worst]),
        worst_error=float(off[worst]),
    )  # fmt: skip


def to_quantiles(values: ArrayLike, points: int) -> tuple[float, ...]:
    """Summarise values by their quantiles at ``points`` evenly spaced probabilities."""
    return tuple(float(q) for q in np.quantile(np.asarray(values), np.linspace(0, 1, points)))


def quantile(quantiles: Sequence[float], probability: float) -> float:
    """Invert :func:`to_quantiles`: interpolate linearly at a probability between 0 and 1."""
    position = probability * (len(quantiles) - 1)
    below = min(int(position), len(quantiles) - 1)
    above = min(below + 1, len(quantiles) - 1)
    return quantiles[below] + (position - below) * (quantiles[above] - quantiles[below])


def latency_quantile_s(answered_s: Sequence[float], unanswered: int, probability: float) -> float:
    """Return a quantile of latencies, those in order and those never answered; NaN of none."""
    # The latter are infinite: without them, who gives up requests would look fast.
    last = len(answered_s) + unanswered - 1
    if last < 0:
        return math.nan
    if math.ceil(probability * last) >= len(answered_s):
        return math.inf
    filled = [*answered_s, *[answered_s[-1]] * unanswered] if unanswered else answered_s
    return quantile(filled, probability)


IDLE_S = 0.008
"""Time without work, dispatch included, after which a batch pays for the rest in full. Measured, it
comes gradually: half of it after 4 to 8 ms, all after 15."""


@dataclass(frozen=True, slots=True)
class QuotaService:
    """CPU bandwidth control as the kernel does it: tokens per period, lost if not used then."""

    # Each ``period_s`` a replica gets ``cores * core_unit * period_s`` seconds at full speed.

    period_s: float  # Enforcement period
    work_s: tuple[float, ...]  # CPU time of batches of 1, 2, ... at full speed, one after another
    dispatch_s: float  # Wall time per batch outside the limited group (messages, wake-ups)
    dispatch_request_s: float = 0.0  # The same per request (tensors that are copied)
    tick_s: float = 0.004  # Time between two looks of the limiter at what was used, as at 250 Hz
    wake_s: float | None = None  # CPU time that a rest costs a batch; None: :attr:`resume_s`
    resume_s: float = 0.0  # CPU time lost whenever work goes on after the quota was used up
    loading_contention: float = 1.0  # CPU time of loading beside :data:`CONTENDING`, over one alone

    def __post_init__(self) -> None:
        values = (self.period_s, self.tick_s, self.loading_contention, *self.work_s)
        if not self.work_s or not all(0 < value < math.inf for value in values):
            raise ProfileError("a quota service needs a period, a tick and work above 0")
        overheads = (self.dispatch_s, self.dispatch_request_s, self.wake_cost_s, self.resume_s)
        if min(self.period_s, self.tick_s) < SHORTEST_S or max(*values, *overheads) > LONGEST_S:
            raise ProfileError(
                f"a quota service needs a period and a tick of at least {SHORTEST_S:g} s, and no "
                f"time above {LONGEST_S:g} s"
            )
        if not all(0 <= value < math.inf for value in overheads):
            raise ProfileError("a quota service needs overheads of at least 0")

    @property
    def wake_cost_s(self) -> float:
        """What a rest costs, measured or not."""
        return self.resume_s if self.wake_s is None else self.wake_s

    @property
    def idle_s(self) -> float:
        """How long a replica has been idle when that has to be paid."""
        return self.tick_s if self.wake_s is None else IDLE_S

    def slowest_s(self, work_s: float, core_unit: float) -> float:
        """Return an upper bound of how long that much CPU time takes on one core unit."""
        # a pause for each quota, a tick of debt to begin with, and the periods at both ends
        lost = self.resume_s / (core_unit * self.period_s)
        cpu_s = (work_s + self.wake_cost_s + self.resume_s) / (1 - lost) + self.tick_s
        dispatch_s = self.dispatch_s + len(self.work_s) * self.dispatch_request_s
        return dispatch_s + 2 * self.period_s + cpu_s / core_unit
