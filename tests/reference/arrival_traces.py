"""Recorded arrivals, and the send times of an episode that plays them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def send_times_s(
        self, duration_s: float, rate_rps: float | None, rng: np.random.Generator
    ) -> FloatArray:
        """Return the send times before ``duration_s``.

        With a rate, each request is left out or repeated so that this is the mean rate.
        The first copy keeps its time; further ones lie anywhere before the next request.

        Args:
            duration_s: Length of the episode.
            rate_rps: Mean rate wanted; None for the recorded one.
            rng: With a rate, one uniform per request (is it rounded up?) and then one
                per copy (where does it lie?).

        Returns:
            (n,) ascending.
        """
        time_s = self._recorded_s(duration_s)
        if rate_rps is None or time_s.size == 0:
            return time_s
        copies = _rounded(np.full(time_s.size, rate_rps * duration_s / time_s.size), rng)
        original = np.repeat(np.arange(time_s.size), copies)
        further = np.diff(original, prepend=-1) == 0
        gap_s = np.diff(time_s, append=duration_s)[original]
        return np.sort(time_s[original] + further * rng.random(original.size) * gap_s)

    def _recorded_s(self, duration_s: float) -> FloatArray:
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
        return float(np.mean(self._recorded(duration_s)))

    def send_times_s(
        self, duration_s: float, rate_rps: float | None, rng: np.random.Generator
    ) -> FloatArray:
        """Return the send times before ``duration_s``.

        Args:
            duration_s: Length of the episode.
            rate_rps: Mean rate to scale the counts to; None for the recorded one.
            rng: With a rate, one uniform per second (is its count rounded up?); then
                one per request (where in its second does it lie?), by second.

        Returns:
            (n,) ascending.
        """
        recorded = self._recorded(duration_s)
        if rate_rps is None or not recorded.any():
            counts = recorded.astype(np.int64)
        else:
            counts = _rounded(recorded * (rate_rps / np.mean(recorded)), rng)
        second = np.repeat(np.arange(counts.size), counts)
        time_s = np.sort(second + rng.random(second.size))
        return time_s[time_s < duration_s]

    def _recorded(self, duration_s: float) -> FloatArray:
        return np.resize(self.per_second, math.ceil(duration_s))


def _rounded(expected: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Round each number up or down at random, so that its mean stays what it is."""
    return np.floor(expected + rng.random(expected.size)).astype(np.int64)
