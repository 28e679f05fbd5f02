"""Random arrivals: when the requests of an episode are sent.

They use only the uniforms of ``rng.random()`` and the C library's functions (:mod:`math`),
in the order each function documents, so that compiled code can continue the stream bit for
bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.config import Arrivals

Piece = tuple[float, float]
"""A stretch of time with one rate: the rate in requests per second, and when it ends."""


def poisson_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> FloatArray:
    """Draw a Poisson process; one uniform per gap, the gap past the end included.

    Returns:
        (n,) ascending, from 0 until just before ``duration_s``.
    """
    times_s = []
    time_s = _exponential(rng) / rate_rps
    while time_s < duration_s:
        times_s.append(time_s)
        time_s += _exponential(rng) / rate_rps
    return np.array(times_s, dtype=np.float64)


def bursty_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Markov-modulated Poisson process whose states last equally long on average.

    Uniforms: first state, its dwell, and one for each gap; where a state ends within a
    gap, next state and its dwell.
    """
    return _in_pieces_s(_bursts(arrivals, rate_rps, rng), duration_s, rng)


def flash_crowd_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Poisson process with one flash crowd in each stretch of time.

    Uniforms: the moment of the first flash crowd, and one for each gap; where a stretch
    ends within a gap, the moment of the next flash crowd.
    """
    return _in_pieces_s(_flashes(arrivals, rate_rps, rng), duration_s, rng)


def diurnal_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw a Poisson process whose rate swings like a sine, by thinning.

    Candidates come at the largest rate, and each stays with the probability of the rate at
    its moment (P. A. W. Lewis and G. S. Shedler, 1979).

    Uniforms: the hour at which the episode begins; then for each candidate its gap, and,
    unless it lies past the end, whether it stays.
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


def burst_rates_rps(arrivals: Arrivals, rate_rps: float) -> list[float]:
    """Return the rate of each state of the ``bursty`` process."""
    factors = arrivals.burst_factors
    return [rate_rps * factor * len(factors) / sum(factors) for factor in factors]


def flash_rates_rps(arrivals: Arrivals, rate_rps: float) -> tuple[float, float]:
    """Return the rates outside and within a flash crowd, whose mean is ``rate_rps``."""
    share = arrivals.flash_s / arrivals.flash_every_s
    outside_rps = rate_rps / (1.0 + (arrivals.flash_factor - 1.0) * share)
    return outside_rps, outside_rps * arrivals.flash_factor


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
    rates_rps = burst_rates_rps(arrivals, rate_rps)
    state, ends_s = int(rng.random() * len(rates_rps)), 0.0
    while True:
        ends_s += arrivals.burst_dwell_s * _exponential(rng)
        yield rates_rps[state], ends_s
        state = (state + 1 + int(rng.random() * (len(rates_rps) - 1))) % len(rates_rps)


def _flashes(arrivals: Arrivals, rate_rps: float, rng: np.random.Generator) -> Iterator[Piece]:
    outside_rps, within_rps = flash_rates_rps(arrivals, rate_rps)
    length_s, every_s = arrivals.flash_s, arrivals.flash_every_s
    for stretch in itertools.count():
        starts_s = stretch * every_s + rng.random() * (every_s - length_s)
        ends_s = (stretch + 1) * every_s
        yield outside_rps, starts_s
        yield within_rps, min(starts_s + length_s, ends_s)
        yield outside_rps, ends_s
