"""Recorded arrivals and bandwidth: the traces, and a parser for each format of them.

:mod:`sponge_env.core.arrivals` and :mod:`sponge_env.core.network` play them. Times of bandwidth
are taken relative to the first sample. Where a format has one bandwidth for each time, it holds
until the next time, except in Pensieve's, where it holds from the one before.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError
from sponge_env.formats.rows import Format, Rows

Content = Literal["bandwidth", "arrivals"]  # What a trace is of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNT = "requests per second"
_MAX_S = 1e8  # Three years: no trace is as long, and 1973 as a Unix time
_MAX_COUNTED_S = 366 * 86_400  # Each second takes memory where requests are counted over more
_EQUAL = 0.3  # Share of requests at the time of the one before from which times are whole seconds
_MAX_MISSING = 0.1  # Readings that may be missing in a trace of counts, as a share of the others
MAHIMAHI_PACKET_BYTES = 1500.0
MAHIMAHI_BIN_MS = 50
"""Deliveries are counted in bins of this width, by which the end of a transfer can be off.
Outages of a tenth of a second remain, and narrower bins come no nearer to the packets."""
_MAHIMAHI_MAX_MS = 1e9  # Eleven days; more is a wall clock
MAHIMAHI_LINES = 500  # So many numbers that never fall are mahimahi's times, and no counts
_MAHIMAHI_FEW = 10  # Of more, the first comes before half of the time has passed
_MAHIMAHI_MIN_BYTES_PER_S = 100.0  # Any link carries more; less are rates that only rise
_PENSIEVE_MAX_MBIT_PER_S = 1e5  # No client has a link of 100 Gbit/s; more is in other units


@dataclass(frozen=True, eq=False)
class EventTrace:
    """Requests at exact times from its start; after the last and the mean gap it starts again."""

    time_s: FloatArray  # (n,) ascending from at least 0

    def __post_init__(self) -> None:
        if self.time_s.size < 2 or self.time_s[-1] - self.time_s[0] < 1e-9:
            raise TraceError("an arrival trace needs at least two requests at different times")

    @property
    def period_s(self) -> float:
        """Time after which the trace repeats."""
        return float(self.time_s[-1] + (self.time_s[-1] - self.time_s[0]) / (self.time_s.size - 1))

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
    """Requests counted by second; within its second each lies anywhere."""

    per_second: FloatArray  # (seconds,) whole numbers; the trace starts again after the last
    expected: FloatArray | None = None
    """(seconds,) the same before they were made whole, where they were counted over longer times:
    scaled up, whole numbers that are mostly 0 would be bursts which nobody recorded."""

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

    def exact(self, duration_s: float) -> FloatArray:
        """Return the same before they were made whole."""
        counts = self.per_second if self.expected is None else self.expected
        return np.resize(counts, math.ceil(duration_s))

    def scaled(self, duration_s: float, rate_rps: float) -> FloatArray:
        """Return the same with a mean rate, no whole numbers; all 0 where none was recorded."""
        counts = self.exact(duration_s)
        return counts * (rate_rps / np.mean(counts)) if counts.any() else counts


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Piecewise-constant bandwidth that repeats after ``duration_s``."""

    start_s: FloatArray  # (n,) start of each sample, ascending from 0; it holds until the next one
    bandwidth_bytes_per_s: FloatArray  # (n,) of each sample
    duration_s: float  # End of the last sample
    cumulative_bytes: FloatArray = field(init=False, repr=False)
    """(n + 1,) bytes delivered from 0 to the start of each sample and to the end."""

    def __post_init__(self) -> None:
        start_s = np.asarray(self.start_s, dtype=np.float64)
        bandwidth = np.asarray(self.bandwidth_bytes_per_s, dtype=np.float64)
        edges_s = np.append(start_s, self.duration_s)
        for holds, rule in (
            (start_s.size > 0, "needs at least one sample"),
            (start_s.shape == bandwidth.shape, "needs one bandwidth for each start"),
            (np.all(np.isfinite(edges_s)), "must have finite times"),
            (edges_s[0] == 0.0, "must start at 0"),
            (np.all(np.diff(edges_s) > 0), "must have ascending times"),
            (np.all(bandwidth >= 0), "must not have a negative or undefined bandwidth"),
            (bandwidth.max(initial=0.0) < 1e18, "must not be infinite"),
            (np.any(bandwidth > 0), "must not have a bandwidth of 0 all the time"),
        ):
            if not holds:
                raise TraceError(f"a bandwidth trace {rule}")
        sample_bytes = np.diff(start_s, append=self.duration_s) * bandwidth
        object.__setattr__(self, "start_s", start_s)
        object.__setattr__(self, "bandwidth_bytes_per_s", bandwidth)
        object.__setattr__(self, "cumulative_bytes", np.append(0.0, np.cumsum(sample_bytes)))

    @property
    def mean_bytes_per_s(self) -> float:
        """Mean bandwidth over the whole trace."""
        return float(self.cumulative_bytes[-1]) / self.duration_s


def _cellular_log(rows: Rows) -> BandwidthTrace:
    """Bytes received in intervals of so many milliseconds, which are laid end to end."""
    # Times and positions are not read: clocks may have been set, some positions are no numbers.
    received_bytes, interval_s = rows.column("bytes"), rows.column("interval") / 1000.0
    rows.require(interval_s > 0, "interval is 0")
    end_s = np.cumsum(interval_s)
    return BandwidthTrace(np.append(0.0, end_s[:-1]), received_bytes / interval_s, float(end_s[-1]))


def _mahimahi(rows: Rows) -> BandwidthTrace:
    """Each line is the millisecond at which 1500 bytes can be delivered."""
    # The last line is also the period after which the trace repeats. A delivery counts towards the
    # bin that ends with it or spans it. Bins without any are one sample until the next delivery.
    # The rest beyond whole bins joins the last: in 1 ms alone, one packet would be 1.5 MB/s.
    delivery_ms = rows.column("milliseconds")
    rows.require(delivery_ms == np.floor(delivery_ms), "milliseconds are not whole")
    rows.require(delivery_ms < _MAHIMAHI_MAX_MS, "milliseconds do not count from the trace's start")
    belong = "requests per second belong in arrivals.file; rates of a link need a CSV " + _LINK
    rows.require(np.diff(delivery_ms, prepend=0.0) >= 0, f"milliseconds go back ({belong})")
    end_ms = int(delivery_ms[-1])
    if end_ms == 0:
        raise rows.error(-1, "the trace ends at 0 ms")
    too_few = delivery_ms.size * MAHIMAHI_PACKET_BYTES * 1000.0 < _MAHIMAHI_MIN_BYTES_PER_S * end_ms
    alike = delivery_ms[0] >= end_ms / (2 if delivery_ms.size >= _MAHIMAHI_FEW else 1)
    if delivery_ms.size > 1 and (too_few or alike):
        need = f"rates, one per line, need their times as a CSV {_LINK}"
        raise rows.error(-1, f"{delivery_ms.size} packets until {end_ms} ms are no link: {need}")
    last = max(end_ms // MAHIMAHI_BIN_MS - 1, 0)
    bins = np.clip((delivery_ms.astype(np.int64) - 1) // MAHIMAHI_BIN_MS, 0, last)
    edges_ms = MAHIMAHI_BIN_MS * np.unique(np.concatenate(([0], bins, bins + 1)))
    samples = np.searchsorted(edges_ms, bins * MAHIMAHI_BIN_MS)
    packets = np.bincount(samples, minlength=edges_ms.size - 1)
    edges_s = np.append(edges_ms[:-1], end_ms) / 1000.0
    bandwidth = packets * MAHIMAHI_PACKET_BYTES / np.diff(edges_s)
    return BandwidthTrace(edges_s[:-1], bandwidth, float(edges_s[-1]))


def _pensieve(rows: Rows) -> BandwidthTrace:
    """Seconds, and Mbit/s since the line before."""
    # This is how Pensieve's own simulator (``sim/fixed_env.py``) plays them: the first line's
    # bandwidth is never used, and the trace repeats after the last line.
    time_s, mbit_per_s = rows.seconds("seconds"), rows.column("Mbit/s")
    rows.ascending("seconds", time_s)
    rows.require(mbit_per_s <= _PENSIEVE_MAX_MBIT_PER_S, "the bandwidth cannot be in Mbit/s")
    if time_s[-1] == time_s[0]:
        raise rows.error(-1, "the trace needs two lines at different seconds")
    lasts, edges_s = np.diff(time_s) > 0, time_s - time_s[0]
    return BandwidthTrace(edges_s[:-1][lasts], mbit_per_s[1:][lasts] * 1e6 / 8, float(edges_s[-1]))


def _bandwidth_csv(rows: Rows) -> BandwidthTrace:
    return _held(rows, "time_s", rows.seconds("time_s"), rows.column("bandwidth_bytes_per_s"))


def _ucc(rows: Rows) -> BandwidthTrace:
    """``Timestamp`` to the second, ``DL_bitrate`` in kbit/s; without a reading the last goes on."""
    rows = rows.measured("DL_bitrate")
    time_s = rows.column("Timestamp", lambda text: _unix_us(text, "%Y.%m.%d_%H.%M.%S") / 1e6)
    return _held(rows, "Timestamp", time_s, rows.column("DL_bitrate") * 1e3 / 8)


def _held(rows: Rows, name: str, time_s: FloatArray, bandwidth: FloatArray) -> BandwidthTrace:
    """Hold each sample until the next, and the last for the median time between them."""
    # Of samples with the same time the last counts.
    rows.ascending(name, time_s)
    last_of_its_time = np.append(np.diff(time_s) > 0, True)
    start_s = time_s[last_of_its_time] - time_s[0]
    apart_s = float(np.median(np.diff(start_s))) if start_s.size > 1 else 1.0
    return BandwidthTrace(start_s, bandwidth[last_of_its_time], float(start_s[-1]) + apart_s)


def _arrivals_csv(rows: Rows) -> EventTrace | CountTrace:
    """Seconds since the start of the trace; of dates and Unix times, since the first request."""
    time_s = rows.seconds("arrival_s", _seconds)
    rows.ascending("arrival_s", time_s)
    time_s -= time_s[0] * (time_s[0] > _MAX_S)
    # If many are equal, they were recorded by the second.
    by_second = np.mean(np.diff(time_s, prepend=-1.0) == 0) > _EQUAL
    return _events(rows, "arrival_s", time_s) if by_second else EventTrace(time_s)


def _events(rows: Rows, name: str, time_s: FloatArray) -> EventTrace | CountTrace:
    # Whole seconds say in which second a request came and not when in it.
    if np.any(time_s != np.floor(time_s)):
        return EventTrace(time_s)
    rows.require(time_s < _MAX_S, f"{name} is years after the first")
    return CountTrace(np.bincount(time_s.astype(np.int64)).astype(np.float64))


def _counts(rows: Rows) -> CountTrace:
    """Requests per second, as the Twitter trace and Autothrottle's traces have them."""
    per_second = rows.column(_COUNT)
    whole, times = per_second == np.floor(per_second), "(times need the header arrival_s)"
    rows.require(whole, f"{_COUNT} is not a whole number {times}")
    rows.require(per_second < _MAX_S, f"{_COUNT} is too large {times}")
    return CountTrace(per_second)


def _counts_in_lines(rows: Rows) -> CountTrace:
    """Read the same, unless it rises line by line and never falls, as mahimahi's times do."""
    trace = _counts(rows)
    if only_rises(trace) and trace.per_second.size >= MAHIMAHI_LINES:
        raise TraceError(
            f"its {trace.per_second.size} numbers rise and never fall: use a mahimahi trace as "
            "network.trace (--trace), put requests per second that only rise on one line, or give "
            "times of requests the header arrival_s"
        )
    return trace


def only_rises(trace: CountTrace) -> bool:
    """Return whether the counts rise and never fall, as mahimahi's times do."""
    first, last = trace.per_second[[0, -1]]
    return bool(first < last and np.all(np.diff(trace.per_second) >= 0))


def _azure_functions(rows: Rows) -> EventTrace:
    """An invocation came at its end, by which the file is sorted, minus its duration."""
    arrival_s = np.sort(rows.seconds("end_timestamp") - rows.column("duration"))
    return EventTrace(arrival_s - arrival_s[0])


def _azure_llm(rows: Rows) -> EventTrace:
    """Wall-clock times. The trace starts with the first request."""
    time_us = rows.column("TIMESTAMP", _unix_us)
    rows.ascending("TIMESTAMP", time_us)
    return EventTrace((time_us - time_us[0]) / 1e6)


def _burstgpt(rows: Rows) -> EventTrace | CountTrace:
    """Seconds. The trace starts with the first request."""
    time_s = rows.seconds("Timestamp")
    rows.ascending("Timestamp", time_s)
    return _events(rows, "Timestamp", time_s - time_s[0])


def _counts_by_time(rows: Rows) -> CountTrace:
    """Requests from each time on until the next, as monitoring systems export them."""
    # The times are dates or seconds, equally far apart; where a reading is missing the one before
    # goes on. Requests of more than a second are spread as evenly as whole numbers allow.
    time_s = rows.seconds("timestamp", _seconds)
    name, *others = [name for name in COUNTED if name in rows.header]
    if others:
        raise rows.error(0, f"{name} and {others[0]} could both be the number of requests")
    counts = rows.column(name)
    rows.require(counts == np.floor(counts), "the number of requests is not whole")
    rows.ascending("timestamp", time_s)
    if time_s.size < 2:
        raise rows.error(-1, "the trace needs two lines")
    apart_s = np.diff(time_s)
    step_s = np.sort(apart_s)[(apart_s.size - 1) // 2]
    if step_s < 1 or step_s != math.floor(step_s):
        raise rows.error(1, "the time between two is no whole number of seconds")
    some_missing = (time_s[-1] - time_s[0]) / step_s + 1 - time_s.size <= _MAX_MISSING * time_s.size
    fits = (apart_s >= step_s) & (apart_s % step_s == 0) if some_missing else apart_s == step_s
    rows.require(np.append(True, fits), "the time between two differs")
    counts = np.repeat(counts, np.append(apart_s / step_s, 1.0).astype(np.int64))
    if counts.size * step_s > _MAX_COUNTED_S:
        raise rows.error(-1, "timestamp is more than a year after the first")
    edges_s = step_s * np.arange(counts.size + 1)
    so_far = np.interp(np.arange(edges_s[-1] + 1), edges_s, np.append(0.0, np.cumsum(counts)))
    return CountTrace(np.diff(np.floor(so_far + 1e-9)), np.diff(so_far) if step_s > 1 else None)


def _unix_us(text: str, form: str = "") -> float:
    """Convert a time of UTC or of the zone it names, ISO or of a form, to whole microseconds."""
    # float64 holds them exactly, unlike fractions of seconds. A seventh digit is cut off.
    time = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
    since_epoch = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return since_epoch / timedelta(microseconds=1)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return _unix_us(text) / 1e6


COUNTED = ("value", "requests", "count")  # Headers of the column that counts requests after a time
_LINK = "time_s,bandwidth_bytes_per_s"
_CELLULAR = ("unix time", "milliseconds", "latitude", "longitude", "bytes", "interval")


def _csv(source: str, columns: str, parse: Callable[[Rows], Any]) -> Format:
    name = f"{source} (CSV {columns})" if source else f"CSV {columns}"
    return Format(name, "header", tuple(columns.split(",")), parse)


FORMATS: Mapping[Content, tuple[Format, ...]] = {
    "bandwidth": (
        _csv("", _LINK, _bandwidth_csv),
        _csv("a UCC 4G/5G log", "Timestamp,DL_bitrate", _ucc),
        Format("a Ghent 4G or Norway HSDPA log (6 columns)", "columns", _CELLULAR, _cellular_log),
        Format("a Pensieve cooked trace (2 columns)", "columns", ("seconds", "Mbit/s"), _pensieve),
        Format("a mahimahi trace (1 column)", "columns", ("milliseconds",), _mahimahi),
    ),
    "arrivals": (
        _csv("times of requests, in seconds", "arrival_s", _arrivals_csv),
        _csv("an Azure Functions 2021 trace", "app,func,end_timestamp,duration", _azure_functions),
        _csv("an Azure LLM inference trace", "TIMESTAMP,ContextTokens,GeneratedTokens", _azure_llm),
        _csv("a BurstGPT trace", "Timestamp,Model,Request tokens,Response tokens", _burstgpt),
        *(_csv("requests from each time on", f"timestamp,{n}", _counts_by_time) for n in COUNTED),
        Format("requests per second, one per line", "columns", (_COUNT,), _counts_in_lines),
        Format("requests per second on one line", "one line", (_COUNT,), _counts),
    ),
}  # Every format that traces can be loaded from; a format more is a line here and its parser
