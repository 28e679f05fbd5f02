"""Recorded bandwidth over time; :mod:`sponge_env.core.network` says when a transfer ends.

Times are taken relative to the first sample. Where a format has one bandwidth for each
time, it holds until the next time, except in Pensieve's, where it holds from the one
before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError
from sponge_env.formats.table import Format, Table

MAHIMAHI_PACKET_BYTES = 1500.0
MAHIMAHI_BIN_S = 0.5
"""Deliveries are counted in bins of this width: long against the milliseconds between
packets, short against the seconds over which bandwidth changes."""
_MAHIMAHI_LONGEST_MS = 1e9
"""Eleven days; more is a wall clock, and would take as many bins."""
_PENSIEVE_MOST_MBIT_PER_S = 1e5
"""No client has a link of 100 Gbit/s; more is in other units."""


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
    edges_s, infinite = np.append(start_s, duration_s), np.isinf(bandwidth)
    rules = (
        (start_s.size > 0, "needs at least one sample"),
        (start_s.shape == bandwidth.shape, "needs one bandwidth for each start"),
        (np.all(np.isfinite(edges_s)), "must have finite times"),
        (edges_s[0] == 0.0, "must start at 0"),
        (np.all(np.diff(edges_s) > 0), "must have ascending times"),
        (np.all(bandwidth >= 0), "must not have a negative or undefined bandwidth"),
        (infinite.all() or not infinite.any(), "must not be infinite at times"),
        (np.any(bandwidth > 0), "must not have a bandwidth of 0 all the time"),
    )
    for holds, rule in rules:
        if not holds:
            raise TraceError(f"a bandwidth trace {rule}")


def _cellular_log(table: Table) -> BandwidthTrace:
    """Bytes received in intervals of so many milliseconds, which are laid end to end.

    Times and positions are not read: the clock may have been set on the way, and some
    positions are no numbers.
    """
    received_bytes, interval_s = table.column("bytes"), table.column("interval") / 1000.0
    table.require(interval_s > 0, "interval is 0")
    end_s = np.cumsum(interval_s)
    return BandwidthTrace(np.append(0.0, end_s[:-1]), received_bytes / interval_s, float(end_s[-1]))


def _mahimahi(table: Table) -> BandwidthTrace:
    """Each line is the millisecond at which 1500 bytes can be delivered.

    The last line is also the period after which the trace repeats. A delivery counts
    towards the bin that ends with it or spans it. What is left of the period beyond whole
    bins joins the last one: alone it could be 1 ms, in which one packet is 1.5 MB/s.
    """
    delivery_ms = table.column("milliseconds")
    table.require(delivery_ms == np.floor(delivery_ms), "milliseconds are not whole")
    table.require(
        delivery_ms < _MAHIMAHI_LONGEST_MS, "milliseconds do not count from the trace's start"
    )
    table.require(
        np.diff(delivery_ms, prepend=0.0) >= 0,
        "milliseconds go back (requests per second belong in arrivals.file)",
    )
    duration_s = float(delivery_ms[-1]) / 1000.0
    if duration_s == 0.0:
        raise table.error(-1, "the trace ends at 0 ms")
    count = max(1, int(duration_s / MAHIMAHI_BIN_S))
    edges_s = np.append(np.arange(count) * MAHIMAHI_BIN_S, duration_s)
    bins = np.maximum(np.searchsorted(edges_s, delivery_ms / 1000.0, side="left") - 1, 0)
    packets = np.bincount(bins, minlength=count)
    bandwidth = packets * MAHIMAHI_PACKET_BYTES / np.diff(edges_s)
    return BandwidthTrace(edges_s[:-1], bandwidth, duration_s)


def _pensieve(table: Table) -> BandwidthTrace:
    """Seconds, and Mbit/s since the line before.

    This is how Pensieve's own simulator (``sim/fixed_env.py``) plays them: the first
    line's bandwidth is never used, and the trace repeats after the last line.
    """
    time_s, mbit_per_s = table.seconds("seconds"), table.column("Mbit/s")
    table.ascending("seconds", time_s)
    table.require(mbit_per_s <= _PENSIEVE_MOST_MBIT_PER_S, "the bandwidth cannot be in Mbit/s")
    if time_s[-1] == time_s[0]:
        raise table.error(-1, "the trace needs two lines at different seconds")
    lasts = np.diff(time_s) > 0
    edges_s = time_s - time_s[0]
    bandwidth = mbit_per_s[1:][lasts] * 1e6 / 8
    return BandwidthTrace(edges_s[:-1][lasts], bandwidth, float(edges_s[-1]))


def _csv(table: Table) -> BandwidthTrace:
    return _held(table, "time_s", table.seconds("time_s"), table.column("bandwidth_bytes_per_s"))


def _ucc(table: Table) -> BandwidthTrace:
    """``Timestamp`` to the second, ``DL_bitrate`` in kbit/s.

    Where the logger had no reading, the last one goes on.
    """
    table = table.measured("DL_bitrate")
    time_s = table.column("Timestamp", _ucc_seconds)
    return _held(table, "Timestamp", time_s, table.column("DL_bitrate") * 1e3 / 8)


def _ucc_seconds(text: str) -> float:
    return datetime.strptime(text, "%Y.%m.%d_%H.%M.%S").replace(tzinfo=UTC).timestamp()


def _held(table: Table, name: str, time_s: FloatArray, bandwidth: FloatArray) -> BandwidthTrace:
    """Hold each sample until the next, and the last for the median time between them.

    Of samples with the same time the last counts.
    """
    table.ascending(name, time_s)
    last_of_its_time = np.append(np.diff(time_s) > 0, True)
    start_s = time_s[last_of_its_time] - time_s[0]
    apart_s = float(np.median(np.diff(start_s))) if start_s.size > 1 else 1.0
    return BandwidthTrace(start_s, bandwidth[last_of_its_time], float(start_s[-1]) + apart_s)


_CSV = ("time_s", "bandwidth_bytes_per_s")
_UCC = ("Timestamp", "DL_bitrate")
_CELLULAR = ("unix time", "milliseconds", "latitude", "longitude", "bytes", "interval")

FORMATS: tuple[Format[BandwidthTrace], ...] = (
    Format("CSV time_s,bandwidth_bytes_per_s", "header", _CSV, _csv),
    Format("a UCC 4G/5G log (CSV with Timestamp and DL_bitrate)", "header", _UCC, _ucc),
    Format("a Ghent 4G or Norway HSDPA log (6 columns)", "columns", _CELLULAR, _cellular_log),
    Format("a Pensieve cooked trace (2 columns)", "columns", ("seconds", "Mbit/s"), _pensieve),
    Format("a mahimahi trace (1 column)", "columns", ("milliseconds",), _mahimahi),
)
"""Every format of bandwidth."""
