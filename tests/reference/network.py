"""The bandwidth of an episode: generated or recorded, with deep fades or without."""

from __future__ import annotations

import math

import numpy as np
from reference.bandwidth import UNLIMITED, BandwidthTrace, load_bandwidth_trace
from reference.seeding import stream

from sponge_env.arrays import FloatArray
from sponge_env.config import Network
from sponge_env.formats import find_trace
from sponge_env.scenario import Scenario

QUANTILES_4G = {
    0.0: 0.43e6,
    0.01: 0.89e6,
    0.05: 1.33e6,
    0.25: 2.60e6,
    0.50: 3.36e6,
    0.75: 4.29e6,
    0.95: 5.80e6,
    1.0: 7.00e6,
}
"""Bytes per second by probability in the Ghent 4G bus log that the Sponge paper used."""

AUTOCORRELATION_4G = {1: 0.75, 2: 0.63, 5: 0.44, 10: 0.16, 30: 0.07}
"""Autocorrelation of the same log by lag in seconds."""

RESERVED = ("4g", "none")
"""Names that are no files: a trace generated for each seed, and no transfer time."""

_MEMORY_PER_S = 0.86
"""Correlation of the slow part of a synthetic trace from one second to the next."""
_SLOW_SHARE = 0.88
"""Share of the variance in the slow part; the rest is white. Both fit
``AUTOCORRELATION_4G`` by least squares."""


def synthetic_4g(rng: np.random.Generator, duration_s: float) -> BandwidthTrace:
    """Draw a trace with the marginals and the autocorrelation of the Ghent 4G bus log.

    A Gaussian process (first-order autoregression plus white noise) is mapped through
    the normal distribution and the piecewise-linear quantile function of
    ``QUANTILES_4G``. ``traces/generate.py --check`` prints how close it comes.

    Each second takes two uniforms and, from them by Box and Muller's transform, two
    normals: slow part first, then white. Only the C library's functions are used, so that
    compiled code can continue the stream bit for bit.

    Args:
        rng: Source of two uniforms per second.
        duration_s: Least length; rounded up to whole seconds.
    """
    seconds = math.ceil(duration_s)
    kick = math.sqrt(1.0 - _MEMORY_PER_S**2)
    slow, probability = 0.0, []
    for second in range(seconds):
        radius = math.sqrt(-2.0 * math.log(1.0 - rng.random()))
        angle = 2.0 * math.pi * rng.random()
        shock, white = radius * math.cos(angle), radius * math.sin(angle)
        slow = _MEMORY_PER_S * slow + kick * shock if second else shock
        value = math.sqrt(_SLOW_SHARE) * slow + math.sqrt(1.0 - _SLOW_SHARE) * white
        probability.append(0.5 * math.erfc(-value / math.sqrt(2.0)))
    bandwidth = np.interp(probability, list(QUANTILES_4G), list(QUANTILES_4G.values()))
    return BandwidthTrace(np.arange(seconds, dtype=np.float64), bandwidth, float(seconds))


def fade_edges_s(
    every_s: float, length_s: float, until_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw when fades begin and end: one at a random moment of each stretch of time.

    Args:
        every_s: Length of a stretch.
        length_s: Length of a fade; it lies within its stretch.
        until_s: The stretches cover the time from 0 until this.
        rng: Source of one uniform per stretch.

    Returns:
        (2 * stretches,) start and end of each fade, ascending.
    """
    stretch = np.arange(math.ceil(until_s / every_s))
    start_s = stretch * every_s + rng.random(stretch.size) * (every_s - length_s)
    end_s = np.minimum(start_s + length_s, (stretch + 1) * every_s)
    return np.column_stack((start_s, end_s)).ravel()


def recorded_trace(network: Network) -> BandwidthTrace:
    """Load the trace that a network names, if it is a file.

    Raises:
        TraceError: There is no such trace, or its file cannot be used.
    """
    return load_bandwidth_trace(find_trace(network.trace, "bandwidth", RESERVED))


def make_network(scenario: Scenario, seed: int) -> BandwidthTrace:
    """Return the bandwidth of one episode.

    Fades fall anew on each lap of a trace that is shorter than the episode.

    Raises:
        TraceError: The scenario names no known trace, or its file cannot be used.
    """
    network = scenario.network
    trace = _without_fades(network, scenario.duration_s, stream(seed, "network"))
    if network.fade_every_s is None:
        return trace
    trace = trace.tiled(scenario.duration_s)
    rng = stream(seed, "fades")
    edges_s = fade_edges_s(network.fade_every_s, network.fade_s, trace.duration_s, rng)
    return trace.faded(edges_s, network.fade_depth)


def _without_fades(network: Network, duration_s: float, rng: np.random.Generator) -> BandwidthTrace:
    if network.trace == "none":
        return UNLIMITED
    if network.trace == "4g":
        return synthetic_4g(rng, duration_s)
    trace = recorded_trace(network)
    if network.start == "beginning":
        return trace
    return trace.shifted(rng.random() * trace.duration_s)
