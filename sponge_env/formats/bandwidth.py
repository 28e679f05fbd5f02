"""Parsers of bandwidth traces: what each format says, in seconds and bytes.

Times are taken relative to the first sample. Where a format has one bandwidth for each
time, it holds until the next time, except in Pensieve's, where it holds from the one
before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.formats.table import Format, Table

MAHIMAHI_PACKET_BYTES = 1500.0
MAHIMAHI_BIN_S = 0.5
"""Deliveries are counted in bins of this width: long against the milliseconds between
packets, short against the seconds over which bandwidth changes."""
_MAHIMAHI_LONGEST_MS = 1e9
"""Eleven days; more is a wall clock, and would take as many bins."""
_PENSIEVE_MOST_MBIT_PER_S = 1e5
"""No client has a link of 100 Gbit/s; more is in other units."""


class Samples(NamedTuple):
    """Piecewise-constant bandwidth."""

    start_s: FloatArray
    """(n,) start of each sample, ascending from 0."""
    bandwidth_bytes_per_s: FloatArray
    """(n,) bandwidth of each sample."""
    duration_s: float
    """End of the last sample."""


def parse_cellular_log(table: Table) -> Samples:
    """Ghent 4G and Norway HSDPA logs: bytes received in intervals of so many milliseconds.

    The intervals are laid end to end. Times and positions are not read: the clock may have
    been set on the way, and some positions are no numbers.
    """
    received_bytes, interval_s = table.column("bytes"), table.column("interval") / 1000.0
    table.require(interval_s > 0, "interval is 0")
    end_s = np.cumsum(interval_s)
    return Samples(np.append(0.0, end_s[:-1]), received_bytes / interval_s, float(end_s[-1]))


def parse_mahimahi(table: Table) -> Samples:
    """Mahimahi: each line is the millisecond at which 1500 bytes can be delivered.

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
        raise table.error(len(table.rows) - 1, "the trace ends at 0 ms")
    count = max(1, int(duration_s / MAHIMAHI_BIN_S))
    edges_s = np.append(np.arange(count) * MAHIMAHI_BIN_S, duration_s)
    bins = np.maximum(np.searchsorted(edges_s, delivery_ms / 1000.0, side="left") - 1, 0)
    packets = np.bincount(bins, minlength=count)
    bandwidth = packets * MAHIMAHI_PACKET_BYTES / np.diff(edges_s)
    return Samples(edges_s[:-1], bandwidth, duration_s)


def parse_pensieve(table: Table) -> Samples:
    """Pensieve's cooked traces: seconds, and Mbit/s since the line before.

    This is how Pensieve's own simulator (``sim/fixed_env.py``) plays them: the first
    line's bandwidth is never used, and the trace repeats after the last line.
    """
    time_s, mbit_per_s = table.seconds("seconds"), table.column("Mbit/s")
    table.ascending("seconds", time_s)
    table.require(mbit_per_s <= _PENSIEVE_MOST_MBIT_PER_S, "the bandwidth cannot be in Mbit/s")
    if time_s[-1] == time_s[0]:
        raise table.error(len(table.rows) - 1, "the trace needs two lines at different seconds")
    lasts = np.diff(time_s) > 0
    edges_s = time_s - time_s[0]
    bandwidth = mbit_per_s[1:][lasts] * 1e6 / 8
    return Samples(edges_s[:-1][lasts], bandwidth, float(edges_s[-1]))


def parse_csv(table: Table) -> Samples:
    """CSV with the columns ``time_s`` and ``bandwidth_bytes_per_s``."""
    return _held(table, "time_s", table.seconds("time_s"), table.column("bandwidth_bytes_per_s"))


def parse_ucc(table: Table) -> Samples:
    """UCC 4G and 5G logs: ``Timestamp`` to the second, ``DL_bitrate`` in kbit/s.

    Where the logger had no reading, the last one goes on.
    """
    table = table.measured("DL_bitrate")
    time_s = table.column("Timestamp", _ucc_seconds)
    return _held(table, "Timestamp", time_s, table.column("DL_bitrate") * 1e3 / 8)


def _ucc_seconds(text: str) -> float:
    return datetime.strptime(text, "%Y.%m.%d_%H.%M.%S").replace(tzinfo=UTC).timestamp()


def _held(table: Table, name: str, time_s: FloatArray, bandwidth: FloatArray) -> Samples:
    """Hold each sample until the next, and the last for the median time between them.

    Of samples with the same time the last counts.
    """
    table.ascending(name, time_s)
    last_of_its_time = np.append(np.diff(time_s) > 0, True)
    start_s = time_s[last_of_its_time] - time_s[0]
    step_s = float(np.median(np.diff(start_s))) if start_s.size > 1 else 1.0
    return Samples(start_s, bandwidth[last_of_its_time], float(start_s[-1]) + step_s)


FORMATS = (
    Format(
        "CSV time_s,bandwidth_bytes_per_s",
        "header",
        ("time_s", "bandwidth_bytes_per_s"),
        parse_csv,
    ),
    Format(
        "a UCC 4G/5G log (CSV with Timestamp and DL_bitrate)",
        "header",
        ("Timestamp", "DL_bitrate"),
        parse_ucc,
    ),
    Format(
        "a Ghent 4G or Norway HSDPA log (6 columns)",
        "columns",
        ("unix time", "milliseconds", "latitude", "longitude", "bytes", "interval"),
        parse_cellular_log,
    ),
    Format("a Pensieve cooked trace (2 columns)", "columns", ("seconds", "Mbit/s"), parse_pensieve),
    Format("a mahimahi trace (1 column)", "columns", ("milliseconds",), parse_mahimahi),
)
"""Every format of bandwidth."""
