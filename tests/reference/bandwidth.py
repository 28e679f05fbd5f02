"""Bandwidth over time, and when a transfer through it ends.

A trace is piecewise constant and wraps around at its end. Each transfer has the whole
bandwidth to itself, so it ends when the bytes the trace delivers from its start on reach
the payload.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError
from sponge_env.formats import read_bandwidth

_TINY_BYTES = np.finfo(np.float64).tiny
"""Smallest amount that can be left of a transfer; keeps it out of samples without any."""


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Piecewise-constant bandwidth that repeats after ``duration_s``.

    Raises:
        TraceError: The samples are no such function of time.
    """

    start_s: FloatArray
    """(n,) start of each sample, ascending from 0; it holds until the next one."""
    bandwidth_bytes_per_s: FloatArray
    """(n,) bandwidth of each sample; infinite in :data:`UNLIMITED`."""
    duration_s: float
    """End of the last sample."""
    cumulative_bytes: FloatArray = field(init=False, repr=False)
    """(n + 1,) bytes delivered from 0 to the start of each sample and to the end."""

    def __post_init__(self) -> None:
        start_s = np.asarray(self.start_s, dtype=np.float64)
        bandwidth = np.asarray(self.bandwidth_bytes_per_s, dtype=np.float64)
        _check(start_s, bandwidth, self.duration_s)
        sample_bytes = np.diff(start_s, append=self.duration_s) * bandwidth
        object.__setattr__(self, "start_s", start_s)
        object.__setattr__(self, "bandwidth_bytes_per_s", bandwidth)
        object.__setattr__(self, "cumulative_bytes", np.append(0.0, np.cumsum(sample_bytes)))

    @property
    def mean_bytes_per_s(self) -> float:
        """Mean bandwidth over the whole trace."""
        return float(self.cumulative_bytes[-1]) / self.duration_s

    def arrival_s(self, sent_s: ArrayLike, payload_bytes: ArrayLike) -> FloatArray:
        """Return when transfers end.

        The bytes delivered up to ``sent_s`` plus the payload are looked up in
        ``cumulative_bytes`` and interpolated inside one sample. Every element takes the
        operations below in this order and no sum over samples, so that compiled code can
        repeat it bit for bit.

        Args:
            sent_s: When each transfer starts.
            payload_bytes: Size of each transfer, at least 0; broadcast against ``sent_s``.

        Returns:
            The end of each transfer, never before its start.
        """
        sent, payload = np.broadcast_arrays(
            np.asarray(sent_s, np.float64), np.asarray(payload_bytes, np.float64)
        )
        if math.isinf(self.mean_bytes_per_s):
            return sent.copy()
        cumulative, total_bytes = self.cumulative_bytes, self.cumulative_bytes[-1]
        lap = np.floor(sent / self.duration_s)
        phase_s = np.maximum(sent - lap * self.duration_s, 0.0)
        i = np.searchsorted(self.start_s, phase_s, side="right") - 1
        so_far = cumulative[i] + (phase_s - self.start_s[i]) * self.bandwidth_bytes_per_s[i]
        target = so_far + payload
        laps = np.ceil(target / total_bytes) - 1.0
        rest = np.minimum(np.maximum(target - laps * total_bytes, _TINY_BYTES), total_bytes)
        # The first sample in which the sum reaches the rest delivers bytes, so its
        # bandwidth is not 0.
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
        return BandwidthTrace(
            start_s, np.tile(self.bandwidth_bytes_per_s, laps), laps * self.duration_s
        )

    def faded(self, edges_s: FloatArray, depth: float) -> BandwidthTrace:
        """Return the trace with less bandwidth at times.

        Args:
            edges_s: (2 * fades,) start and end of each fade, ascending from at least 0.
            depth: Share of the bandwidth that is left during a fade.
        """
        inside_s = edges_s[edges_s < self.duration_s]
        start_s = np.unique(np.concatenate((self.start_s, inside_s)))
        i = np.searchsorted(self.start_s, start_s, side="right") - 1
        fading = np.searchsorted(edges_s, start_s, side="right") % 2 == 1
        bandwidth = np.where(fading, depth, 1.0) * self.bandwidth_bytes_per_s[i]
        return BandwidthTrace(start_s, bandwidth, self.duration_s)


def _check(start_s: FloatArray, bandwidth: FloatArray, duration_s: float) -> None:
    edges_s = np.append(start_s, duration_s)
    _require(start_s.size > 0, "needs at least one sample")
    _require(start_s.shape == bandwidth.shape, "needs one bandwidth for each start")
    _require(bool(np.all(np.isfinite(edges_s))), "must have finite times")
    _require(start_s[0] == 0.0, "must start at 0")
    _require(bool(np.all(np.diff(edges_s) > 0)), "must have ascending times")
    _require(bool(np.all(bandwidth >= 0)), "must not have a negative or undefined bandwidth")
    infinite = np.isinf(bandwidth)
    _require(bool(infinite.all() or not infinite.any()), "must not be infinite at times")
    _require(bool(np.any(bandwidth > 0)), "must not have a bandwidth of 0 all the time")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise TraceError(f"a bandwidth trace {rule}")


UNLIMITED = BandwidthTrace(np.zeros(1), np.full(1, np.inf), 1.0)
"""No transfer time at all."""


def load_bandwidth_trace(path: str | Path) -> BandwidthTrace:
    """Load a bandwidth trace in any known format, told by its content.

    Raises:
        TraceError: The file cannot be read, is in no known format, or a line is bad.
    """
    samples = read_bandwidth(path)
    try:
        return BandwidthTrace(*samples)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
