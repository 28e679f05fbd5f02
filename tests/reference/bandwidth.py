"""The bandwidth of an episode, and when a transfer through it ends, by searching sums.

A trace is piecewise constant and wraps around at its end. Each transfer has the whole bandwidth
to itself, so it ends when the bytes that the trace delivers from its start on reach the payload.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from sponge_env.arrays import FloatArray
from sponge_env.formats import read_bandwidth
from sponge_env.scenario.config import Network
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream

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
RESERVED = ("4g", "none")
MEMORY_PER_S, SLOW_SHARE = 0.86, 0.88
TINY_BYTES = np.finfo(np.float64).tiny
"""Smallest amount that can be left of a transfer; keeps it out of samples without any."""


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Piecewise-constant bandwidth that repeats after ``duration_s``."""

    start_s: FloatArray
    """(n,) start of each sample, ascending from 0; it holds until the next one."""
    bandwidth_bytes_per_s: FloatArray
    """(n,) infinite in :data:`UNLIMITED`."""
    duration_s: float
    cumulative_bytes: FloatArray = field(init=False, repr=False)
    """(n + 1,) bytes delivered from 0 to the start of each sample and to the end."""

    def __post_init__(self) -> None:
        lengths_s = np.diff(self.start_s, append=self.duration_s)
        sums = np.append(0.0, np.cumsum(lengths_s * self.bandwidth_bytes_per_s))
        object.__setattr__(self, "cumulative_bytes", sums)

    def arrival_s(self, sent_s: ArrayLike, payload_bytes: ArrayLike) -> FloatArray:
        """Return when transfers end, never before their starts.

        The bytes delivered up to ``sent_s`` plus the payload are looked up in
        ``cumulative_bytes`` and interpolated inside one sample, with these operations in this
        order and no sum over samples.
        """
        sent, payload = np.broadcast_arrays(
            np.asarray(sent_s, np.float64), np.asarray(payload_bytes, np.float64)
        )
        cumulative, total_bytes = self.cumulative_bytes, self.cumulative_bytes[-1]
        if math.isinf(total_bytes):
            return sent.copy()
        lap = np.floor(sent / self.duration_s)
        phase_s = np.maximum(sent - lap * self.duration_s, 0.0)
        i = np.searchsorted(self.start_s, phase_s, side="right") - 1
        so_far = cumulative[i] + (phase_s - self.start_s[i]) * self.bandwidth_bytes_per_s[i]
        target = so_far + payload
        laps = np.ceil(target / total_bytes) - 1.0
        rest = np.minimum(np.maximum(target - laps * total_bytes, TINY_BYTES), total_bytes)
        # The first sample in which the sum reaches the rest delivers bytes, so its bandwidth is
        # not 0.
        j = np.searchsorted(cumulative, rest, side="left") - 1
        inside_s = self.start_s[j] + (rest - cumulative[j]) / self.bandwidth_bytes_per_s[j]
        end_s = (lap + laps) * self.duration_s + inside_s
        return np.where(payload > 0, np.maximum(end_s, sent), sent)

    def shifted(self, offset_s: float) -> BandwidthTrace:
        """Return the trace that begins ``offset_s`` later, wrapped around."""
        phase_s = offset_s % self.duration_s
        i = int(np.searchsorted(self.start_s, phase_s, side="right")) - 1
        later_s = self.start_s[i + 1 :] - phase_s
        wrapped_s = self.start_s[: i + 1] + (self.duration_s - phase_s)
        start_s = np.concatenate(([0.0], later_s, wrapped_s))
        bandwidth = np.roll(self.bandwidth_bytes_per_s, -i)
        bandwidth = np.append(bandwidth, bandwidth[0])
        inside = start_s < self.duration_s
        return BandwidthTrace(start_s[inside], bandwidth[inside], self.duration_s)

    def tiled(self, duration_s: float) -> BandwidthTrace:
        """Return as many laps of the trace as cover ``duration_s``, as one trace."""
        laps = max(1, math.ceil(duration_s / self.duration_s))
        start_s = (np.arange(laps)[:, np.newaxis] * self.duration_s + self.start_s).ravel()
        bandwidth = np.tile(self.bandwidth_bytes_per_s, laps)
        return BandwidthTrace(start_s, bandwidth, laps * self.duration_s)

    def faded(self, edges_s: FloatArray, depth: float) -> BandwidthTrace:
        """Return the trace with ``depth`` of its bandwidth left within the fades.

        ``edges_s`` is (2 * fades,), the start and the end of each, ascending from at least 0.
        """
        inside_s = edges_s[edges_s < self.duration_s]
        start_s = np.unique(np.concatenate((self.start_s, inside_s)))
        i = np.searchsorted(self.start_s, start_s, side="right") - 1
        fading = np.searchsorted(edges_s, start_s, side="right") % 2 == 1
        bandwidth = np.where(fading, depth, 1.0) * self.bandwidth_bytes_per_s[i]
        return BandwidthTrace(start_s, bandwidth, self.duration_s)


UNLIMITED = BandwidthTrace(np.zeros(1), np.full(1, np.inf), 1.0)


def synthetic_4g(rng: np.random.Generator, duration_s: float) -> BandwidthTrace:
    """Draw one-second samples: a Gaussian process mapped through ``QUANTILES_4G``.

    Each second takes two uniforms and, from them by Box and Muller's transform, two normals:
    slow part (first-order autoregression) first, then white.
    """
    kick = math.sqrt(1.0 - MEMORY_PER_S**2)
    slow, probability = 0.0, []
    for second in range(math.ceil(duration_s)):
        radius = math.sqrt(-2.0 * math.log(1.0 - rng.random()))
        angle = 2.0 * math.pi * rng.random()
        shock, white = radius * math.cos(angle), radius * math.sin(angle)
        slow = MEMORY_PER_S * slow + kick * shock if second else shock
        value = math.sqrt(SLOW_SHARE) * slow + math.sqrt(1.0 - SLOW_SHARE) * white
        probability.append(0.5 * math.erfc(-value / math.sqrt(2.0)))
    bandwidth = np.interp(probability, list(QUANTILES_4G), list(QUANTILES_4G.values()))
    seconds = len(probability)
    return BandwidthTrace(np.arange(seconds, dtype=np.float64), bandwidth, float(seconds))


def fade_edges_s(
    every_s: float, length_s: float, until_s: float, rng: np.random.Generator
) -> FloatArray:
    """Draw (2 * stretches,) start and end of one fade in each stretch of ``every_s``.

    One uniform per stretch; a fade lies within its stretch.
    """
    stretch = np.arange(math.ceil(until_s / every_s))
    start_s = stretch * every_s + rng.random(stretch.size) * (every_s - length_s)
    end_s = np.minimum(start_s + length_s, (stretch + 1) * every_s)
    return np.column_stack((start_s, end_s)).ravel()


def recorded_trace(network: Network) -> BandwidthTrace:
    """Load the trace that a network names, if it is a file."""
    read = read_bandwidth(network.trace)
    return BandwidthTrace(read.start_s, read.bandwidth_bytes_per_s, read.duration_s)


def make_network(scenario: Scenario, seed: int) -> BandwidthTrace:
    """Return the bandwidth of one episode.

    Fades fall anew on each lap of a trace that is shorter than the episode.
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
