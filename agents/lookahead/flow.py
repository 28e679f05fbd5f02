"""What is sent, and what is on the way: the flow of requests through the network.

Arrivals alone mislead: a network that slows down holds requests back, and one that recovers
hands them over in a clump, while the clients send as ever. If the newest arrival took
``delay_s`` and the newest of the interval before took ``before_s``, then the arrivals between
were sent within ``interval_s - (delay_s - before_s)``, their *span*. Arrivals over spans give
the rate at which requests are sent, and rate times delay what is on the way.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import SystemSpec, SystemView

from ..rates import ForecastError

_INTERVALS = 30  # Intervals that are remembered
_SCATTER_INTERVALS = 60  # Intervals over which the scatter is averaged
_STALL_ARRIVALS = 4.0  # Expected arrivals from which on an interval with none is a stalled network
_STALL_SLOS = 5.0  # After a longer stall, nothing is taken to have been sent
_SIGMAS = 3.0  # Poisson deviations by which a rate must differ to count as another one
_LEAST_SPREAD = 0.05  # Relative uncertainty of a rate, however long it was watched
_FIRST_SWING = 0.4
_LEAST_SWING = 0.2  # Standard deviation of the log of the bandwidth, until known and at least
_SAME_SIZE = 1e-6  # Relative deviation of a delay that is taken for rounding
_LEAST_DELAY_S = 1e-3
_LEAST_RATE_RPS = 0.01


class FlowForecast(NamedTuple):
    """What is expected of the near future."""

    rate_rps: float  # Requests sent per second
    spread: float  # Standard deviation of the log of that rate
    scatter: float  # Variance over mean of what an interval sends: 0 at equal gaps, 1 for Poisson
    transfer_s: float  # Time on the way at the bandwidth of now
    typical_s: float  # Time on the way at the bandwidth to which it returns
    swing: float  # Standard deviation of the log of the bandwidth
    surge: float  # Factor by which the rate may rise before a decision is in force


class Flow:
    """Follows the requests of one episode, interval by interval."""

    def __init__(self, spec: SystemSpec) -> None:
        self._interval_s = spec.interval_s
        self._longest_stall_s = _STALL_SLOS * spec.slo_s
        self._counts: deque[float] = deque(maxlen=_INTERVALS)
        self._spans_s: deque[float] = deque(maxlen=_INTERVALS)
        self._log_delays: deque[float] = deque(maxlen=_INTERVALS)
        self._rate_rps, self._watched_s = 0.0, spec.interval_s
        self._scatter, self._scatter_intervals = 1.0, 3
        self._error = ForecastError(spec.interval_s, spec.resize_delay_s)
        self._sizes_differ = False
        self._points: list[tuple[float, float]] = []
        self.kinds = np.array([[1.0, spec.slo_s]])  # (arrivals, 2) newest relative sizes and SLOs

    def observe(self, view: SystemView) -> FlowForecast:
        """Take in the last interval, of which there must be one; return what to expect now."""
        arrivals = view.first.arrivals
        if not self._counts:
            for count, delay_s in zip(arrivals[:-1], view.mean_delays_s[:-1], strict=True):
                self._add(float(count), _known_s(float(delay_s)))
        if view.delays_s.size:
            mean_s = float(np.add.reduce(view.delays_s)) / view.delays_s.size
            self._compare_sizes(float(view.bandwidths_bytes_per_s[-1]), mean_s)
            self.kinds = _kinds(view, self._sizes_differ, mean_s)
        self._add(float(arrivals[-1]), self._newest_delay_s(view))
        logs, swing = np.array(self._log_delays), _FIRST_SWING
        if logs.size >= 5:  # as np.std does, which takes thrice as long
            logs -= np.add.reduce(logs) / logs.size
            swing = max(math.sqrt(np.add.reduce(logs * logs) / logs.size), _LEAST_SWING)
        scatter = min(1.0, max(self._scatter, 0.01))
        noise = scatter / max(1.0, self._rate_rps * self._watched_s)
        return FlowForecast(
            self._rate_rps, math.sqrt(_LEAST_SPREAD**2 + noise + self._error.variance), scatter,
            math.exp(self._log_delays[-1]), self._typical_s(), swing, self._error.surge,
        )  # fmt: skip

    def _add(self, count: float, delay_s: float) -> None:
        before_s = math.exp(self._log_delays[-1]) if self._log_delays else delay_s
        self._counts.append(count)
        # What arrived within an interval was sent within its span; see the top of this file.
        self._spans_s.append(self._interval_s - (delay_s - before_s))
        self._log_delays.append(math.log(delay_s))
        past = np.array(self._counts), np.array(self._spans_s)
        rate_rps, self._watched_s = fit_rate(*past, self._interval_s)
        self._rate_rps = max(rate_rps, _LEAST_RATE_RPS)
        self._error.add(count, self._rate_rps)
        if len(self._counts) > 1:
            # Neighbouring intervals are compared: a rate that changes slowly does not scatter.
            counts, spans_s = self._counts, self._spans_s
            after, before = (counts[at] - self._rate_rps * spans_s[at] for at in (-1, -2))
            expected = self._rate_rps * (spans_s[-1] + spans_s[-2])
            ratio = min((after - before) ** 2 / max(expected, 0.2), 4.0)
            self._scatter_intervals = min(self._scatter_intervals + 1, _SCATTER_INTERVALS)
            self._scatter += (ratio - self._scatter) / self._scatter_intervals

    def _newest_delay_s(self, view: SystemView) -> float:
        """Return the delay of the newest arrival, or how long nothing has come through."""
        if view.delays_s.size:
            # Where sizes differ, the newest one's delay says little of the next one's.
            alike = len(self.kinds) == 1
            return _known_s(float(view.delays_s[-1] if alike else view.delays_s.mean()))
        last_s = math.exp(self._log_delays[-1]) if self._log_delays else _LEAST_DELAY_S
        if self._rate_rps * self._interval_s < _STALL_ARRIVALS:
            return last_s
        # Nothing came although some should have: what is on the way is older by an interval.
        stalled_s = last_s + self._interval_s
        return stalled_s if stalled_s < self._longest_stall_s else self._typical_s()

    def _compare_sizes(self, bandwidth_bytes_per_s: float, mean_s: float) -> None:
        """Find out whether all requests are of one size, which a view does not say."""
        # Bandwidth is bytes over transfer time, so the mean delay is ``size / bandwidth + base``.
        # With one size, intervals lie on one line over ``1 / bandwidth``, exactly; its base is not
        # negative, so that the delay rises by no larger share than ``1 / bandwidth``. Where an
        # interval lies elsewhere, sizes differ, and that is never forgotten.
        # The bandwidth is NaN where no transfer took time.
        if self._sizes_differ or not bandwidth_bytes_per_s > 0:
            return
        point = 1 / bandwidth_bytes_per_s, mean_s
        # An interval that shows the same bandwidth again may not have measured any.
        if not self._points or point[0] != self._points[-1][0]:
            self._points = [*self._points[-2:], point]
            self._sizes_differ = not _on_one_line(self._points)

    def _typical_s(self) -> float:
        return math.exp(math.fsum(self._log_delays) / max(1, len(self._log_delays)))


def _known_s(delay_s: float) -> float:
    """Return a delay that has a logarithm; before the first arrival there is none at all."""
    return _LEAST_DELAY_S if math.isnan(delay_s) else max(delay_s, _LEAST_DELAY_S)


def _kinds(view: SystemView, sizes_differ: bool, mean_s: float) -> FloatArray:
    """Return (arrivals, 2) delay relative to the mean and SLO; one row if all are alike."""
    slos_s = view.delays_s + view.budgets_s
    if not sizes_differ and np.maximum.reduce(slos_s) - np.minimum.reduce(slos_s) < 1e-6:
        return np.array([[1.0, slos_s[0]]])
    sizes = np.maximum(view.delays_s, _LEAST_DELAY_S) / _known_s(mean_s)
    return np.stack([sizes, slos_s], axis=1)


def fit_rate(counts: FloatArray, spans_s: FloatArray, interval_s: float) -> tuple[float, float]:
    """Average the rate over as many past intervals as agree on it.

    They are (intervals,) arrivals, newest last, and the time within which they were sent, which
    may be negative. Returns requests per second, and the seconds over which they were averaged.
    """
    return _fit_rate(counts, spans_s, interval_s, np.empty((2, counts.size + 1, 2)))


@entry_point
def _fit_rate(
    counts: FloatArray, spans_s: FloatArray, interval_s: float, memory: FloatArray
) -> tuple[float, float]:
    """Do so, with ``memory`` for groups of intervals and for sums over the newest ones."""
    groups, totals = memory
    joined = _group(counts, spans_s, interval_s, groups)
    if joined == 0:
        count, span_s = 0.0, 0.0
        for interval in range(counts.size):
            count, span_s = count + counts[interval], span_s + spans_s[interval]
        return count / max(span_s, interval_s), interval_s
    totals[0, 0], totals[0, 1] = 0.0, 0.0
    for row in range(joined):
        totals[row + 1, 0] = totals[row, 0] + groups[row, 0]
        totals[row + 1, 1] = totals[row, 1] + groups[row, 1]
    agreed = 1
    while agreed < joined:
        count, span_s = totals[agreed, 0], totals[agreed, 1]
        if _differ(count, span_s, groups[agreed, 0], groups[agreed, 1]):
            break
        # The halves catch a slow drift, in which each interval agrees with all the newer ones.
        half, half_s = totals[(agreed + 1) // 2, 0], totals[(agreed + 1) // 2, 1]
        older, older_s = totals[agreed + 1, 0] - half, totals[agreed + 1, 1] - half_s
        if _differ(half, half_s, older, older_s):
            break
        agreed += 1
    return totals[agreed, 0] / totals[agreed, 1], totals[agreed, 1]


@compiled
def _group(counts: FloatArray, spans_s: FloatArray, interval_s: float, groups: FloatArray) -> int:
    """Join intervals, newest first, until each group spans most of an interval.

    A network that stalls in the middle of an interval shows only in the next one, whose span
    then is negative; joined, the two are right. Returns the number of (count, span) groups.
    """
    joined, count, span_s = 0, 0.0, 0.0
    for interval in range(counts.size - 1, -1, -1):
        count += counts[interval]
        span_s += spans_s[interval]
        if span_s >= 0.75 * interval_s:
            groups[joined, 0], groups[joined, 1] = count, span_s
            joined, count, span_s = joined + 1, 0.0, 0.0
    return joined


@compiled
def _differ(one: float, one_s: float, other: float, other_s: float) -> bool:
    """Return whether two Poisson counts over their spans have different rates."""
    pooled = max((one + other) / (one_s + other_s), 0.5)
    gap = abs(one / one_s - other / other_s)
    return bool(gap > _SIGMAS * math.sqrt(pooled * (1.0 / one_s + 1.0 / other_s)))


def _on_one_line(points: list[tuple[float, float]]) -> bool:
    """Return whether up to three points lie on a line whose offset is not negative."""
    x, y = points[0]
    steps = [(after_x / x - 1, after_y / y - 1) for after_x, after_y in points[1:]]
    steeper = any(abs(rise) > abs(run) + _SAME_SIZE for run, rise in steps)
    if steeper or len(steps) < 2:
        return not steeper
    (run, rise), (other_run, other_rise) = steps
    return abs(run * other_rise - other_run * rise) <= _SAME_SIZE * max(abs(run), abs(other_run))
