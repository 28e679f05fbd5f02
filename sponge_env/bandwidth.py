"""Recorded bandwidth over time; :mod:`sponge_env.core.network` says when a transfer ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.config import Network
from sponge_env.errors import TraceError
from sponge_env.formats import find_trace, read_bandwidth

RESERVED = ("4g", "none")
"""Names that are no files: a trace generated for each seed, and no transfer time."""


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Piecewise-constant bandwidth that repeats after ``duration_s``.

    Raises:
        TraceError: The samples are no such function of time.
    """

    start_s: FloatArray
    """(n,) start of each sample, ascending from 0; it holds until the next one."""
    bandwidth_bytes_per_s: FloatArray
    """(n,) bandwidth of each sample; infinite in all where there is no transfer time."""
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


def recorded_trace(network: Network) -> BandwidthTrace:
    """Load the trace that a network names, if it is a file.

    Raises:
        TraceError: There is no such trace, or its file cannot be used.
    """
    return load_bandwidth_trace(find_trace(network.trace, "bandwidth", RESERVED))
