"""Recorded arrivals; :mod:`sponge_env.core.arrivals` plays them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError


@dataclass(frozen=True, eq=False)
class EventTrace:
    """Requests at exact times; time 0 is the start of the trace.

    After the last request and the mean time between two it starts again.

    Raises:
        TraceError: The trace has no mean time between two requests.
    """

    time_s: FloatArray
    """(n,) ascending from at least 0."""

    def __post_init__(self) -> None:
        if self.time_s.size < 2 or self.time_s[0] == self.time_s[-1]:
            raise TraceError("an arrival trace needs at least two requests at different times")

    @property
    def period_s(self) -> float:
        """Time after which the trace repeats."""
        span_s = self.time_s[-1] - self.time_s[0]
        return float(self.time_s[-1] + span_s / (self.time_s.size - 1))

    def mean_rps(self, duration_s: float) -> float:
        """Mean rate over the first ``duration_s``."""
        full_laps = math.ceil(duration_s / self.period_s) - 1
        in_last = np.count_nonzero(full_laps * self.period_s + self.time_s < duration_s)
        return (full_laps * self.time_s.size + int(in_last)) / duration_s

    def recorded_s(self, duration_s: float) -> FloatArray:
        """Return the (n,) times before ``duration_s``, ascending."""
        laps = np.arange(math.ceil(duration_s / self.period_s))
        time_s = (laps[:, np.newaxis] * self.period_s + self.time_s).ravel()
        return time_s[time_s < duration_s]


@dataclass(frozen=True, eq=False)
class CountTrace:
    """Requests counted by second; within its second each lies anywhere.

    Raises:
        TraceError: The trace has no request.
    """

    per_second: FloatArray
    """(seconds,) whole numbers; the trace starts again after the last."""

    def __post_init__(self) -> None:
        if not self.per_second.any():
            raise TraceError("an arrival trace needs at least one request")

    @property
    def period_s(self) -> float:
        """Length of the trace, after which it repeats."""
        return float(self.per_second.size)

    def mean_rps(self, duration_s: float) -> float:
        """Mean rate over the first ``duration_s``, rounded up to whole seconds."""
        return float(np.mean(self.recorded(duration_s)))

    def recorded(self, duration_s: float) -> FloatArray:
        """Return the (seconds,) counts that cover ``duration_s``."""
        return np.resize(self.per_second, math.ceil(duration_s))
