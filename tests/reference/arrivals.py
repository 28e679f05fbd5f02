"""When the requests of an episode are sent, drawn by NumPy's generators.

Random arrivals use only the uniforms of ``rng.random()`` and the C library's functions
(:mod:`math`), in the order that each function documents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sponge_env import formats
from sponge_env.arrays import FloatArray
from sponge_env.scenario.config import Arrivals

Piece = tuple[float, float]
"""A stretch of time with one rate: the rate in requests per second, and when it ends."""


def send_times_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Return when requests are sent: (n,) ascending, from 0 until just before ``duration_s``.

    Kind ``trace`` keeps its own rate unless ``arrivals`` sets one or a load.
    """
    if arrivals.kind == "trace":
        own = arrivals.rate_rps is None and arrivals.load is None
        return recorded_trace(arrivals).send_times_s(duration_s, None if own else rate_rps, rng)
    if arrivals.kind == "poisson":
        return poisson_s(rate_rps, duration_s, rng)
    if arrivals.kind == "constant":
        time_s = np.arange(math.ceil(duration_s * rate_rps)) / rate_rps
        return time_s[time_s < duration_s]
    if arrivals.kind == "diurnal":
        return diurnal_s(arrivals, rate_rps, duration_s, rng)
    pieces = _bursts if arrivals.kind == "bursty" else _flashes
    return _in_pieces_s(pieces(arrivals, rate_rps, rng), duration_s, rng)


def poisson_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> FloatArray:
    """Draw a Poisson process; one uniform per gap, the gap past the end included."""
    times_s = []
    time_s = _exponential(rng) / rate_rps
    while time_s < duration_s:
        times_s.append(time_s)
        time_s += _exponential(rng) / rate_rps
    return np.array(times_s, dtype=np.float64)


def diurnal_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Poisson process whose rate swings like a sine, by thinning.

    Candidates come at the largest rate, and each stays with the probability of the rate at
    its moment (P. A. W. Lewis and G. S. Shedler, 1979). Uniforms: the hour at which the episode
    begins; then for each candidate its gap, and, unless it lies past the end, whether it stays.
    """
    amplitude, period_s = arrivals.diurnal_amplitude, arrivals.diurnal_period_s
    most_rps = rate_rps * (1.0 + amplitude)
    begins = rng.random()
    times_s = []
    time_s = _exponential(rng) / most_rps
    while time_s < duration_s:
        swing = amplitude * math.sin(2.0 * math.pi * (begins + time_s / period_s))
        if rng.random() * (1.0 + amplitude) < 1.0 + swing:
            times_s.append(time_s)
        time_s += _exponential(rng) / most_rps
    return np.array(times_s, dtype=np.float64)


def _exponential(rng: np.random.Generator) -> float:
    """Draw from the exponential distribution of mean 1, from one uniform in [0, 1)."""
    return -math.log(1.0 - rng.random())


def _in_pieces_s(
    pieces: Iterator[Piece], duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Poisson process whose rate is constant within each of endless pieces.

    A gap is drawn as the number of requests expected in it, so what a piece's end leaves
    of it carries over into the next piece, which is looked up then.
    """
    rate_rps, ends_s = next(pieces)
    time_s, times_s = 0.0, []
    while time_s < duration_s:
        expected = _exponential(rng)
        while expected >= rate_rps * (ends_s - time_s):
            expected -= rate_rps * (ends_s - time_s)
            time_s = ends_s
            rate_rps, ends_s = next(pieces)
        time_s += expected / rate_rps
        times_s.append(time_s)
    return np.array(times_s[:-1], dtype=np.float64)


def _bursts(arrivals: Arrivals, rate_rps: float, rng: np.random.Generator) -> Iterator[Piece]:
    """Yield the states of a Markov-modulated process, equally long on average.

    Uniforms: first state and its dwell; where a state ends, next state and its dwell.
    """
    factors = arrivals.burst_factors
    rates_rps = [rate_rps * factor * len(factors) / sum(factors) for factor in factors]
    state, ends_s = int(rng.random() * len(rates_rps)), 0.0
    while True:
        ends_s += arrivals.burst_dwell_s * _exponential(rng)
        yield rates_rps[state], ends_s
        state = (state + 1 + int(rng.random() * (len(rates_rps) - 1))) % len(rates_rps)


def _flashes(arrivals: Arrivals, rate_rps: float, rng: np.random.Generator) -> Iterator[Piece]:
    """Yield what lies before, within and after the flash crowd of each stretch of time.

    One uniform when a stretch begins: the moment of its flash crowd. The mean is ``rate_rps``.
    """
    length_s, every_s = arrivals.flash_s, arrivals.flash_every_s
    outside_rps = rate_rps / (1.0 + (arrivals.flash_factor - 1.0) * (length_s / every_s))
    within_rps = outside_rps * arrivals.flash_factor
    for stretch in itertools.count():
        starts_s = stretch * every_s + rng.random() * (every_s - length_s)
        ends_s = (stretch + 1) * every_s
        yield outside_rps, starts_s
        yield within_rps, min(starts_s + length_s, ends_s)
        yield outside_rps, ends_s


def recorded_trace(arrivals: Arrivals) -> EventTrace | CountTrace:
    """Load the trace that arrivals of the kind ``trace`` play."""
    content = formats.read_arrivals(str(arrivals.file))
    if isinstance(content, formats.CountTrace):
        return CountTrace(content.per_second)
    return EventTrace(content.time_s)


class EventTrace:
    """Requests at exact times; after the last and the mean time between two it starts again."""

    def __init__(self, time_s: FloatArray) -> None:
        self.time_s = time_s
        gaps = time_s.size - 1
        self.period_s = float(time_s[-1] + (time_s[-1] - time_s[0]) / gaps)

    def mean_rps(self, duration_s: float) -> float:
        """Mean rate over the first ``duration_s``."""
        return self._recorded_s(duration_s).size / duration_s

    def send_times_s(
        self, duration_s: float, rate_rps: float | None, rng: np.random.Generator
    ) -> FloatArray:
        """Return the send times before ``duration_s``.

        With a rate, each request is left out or repeated so that this is the mean rate. The
        first copy keeps its time; further ones lie anywhere before the next request. Uniforms,
        with a rate: one per request (is it rounded up?) and then one per copy (where does it
        lie?).
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


class CountTrace:
    """Requests counted by second, over and over; within its second each lies anywhere."""

    def __init__(self, per_second: FloatArray) -> None:
        self.per_second = per_second
        self.period_s = float(per_second.size)

    def mean_rps(self, duration_s: float) -> float:
        """Mean rate over the first ``duration_s``, rounded up to whole seconds."""
        return float(np.mean(self._recorded(duration_s)))

    def send_times_s(
        self, duration_s: float, rate_rps: float | None, rng: np.random.Generator
    ) -> FloatArray:
        """Return the send times before ``duration_s``.

        Uniforms: with a rate, one per second (is its count rounded up?); then one per request
        (where in its second does it lie?), by second.
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
