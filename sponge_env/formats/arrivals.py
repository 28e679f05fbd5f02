"""Recorded arrivals: when requests came, or how many in each second.

:mod:`sponge_env.core.arrivals` plays them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.errors import TraceError
from sponge_env.formats.table import Format, Table

Parser = Callable[[Table], "EventTrace | CountTrace"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNT = "requests per second"
_LONGEST_S = 1e8
"""Three years: no trace is as long, and 1973 as a Unix time."""


@dataclass(frozen=True, eq=False)
class EventTrace:
    """Requests at exact times; time 0 is the start of the trace.

    After the last request and the mean time between two it starts again.
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

    def recorded_s(self, duration_s: float) -> FloatArray:
        """Return the (n,) times before ``duration_s``, ascending."""
        laps = np.arange(math.ceil(duration_s / self.period_s))
        time_s = (laps[:, np.newaxis] * self.period_s + self.time_s).ravel()
        return time_s[time_s < duration_s]


@dataclass(frozen=True, eq=False)
class CountTrace:
    """Requests counted by second; within its second each lies anywhere."""

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
        return float(np.mean(self.recorded(duration_s)))

    def recorded(self, duration_s: float) -> FloatArray:
        """Return the (seconds,) counts that cover ``duration_s``."""
        return np.resize(self.per_second, math.ceil(duration_s))


def _csv(table: Table) -> EventTrace:
    """Seconds since the start of the trace; where they are Unix times, since the first request."""
    time_s = table.seconds("arrival_s")
    table.ascending("arrival_s", time_s)
    return EventTrace(time_s - time_s[0] if time_s[0] > _LONGEST_S else time_s)


def _counts(table: Table) -> CountTrace:
    """Requests per second, as the Twitter trace and Autothrottle's traces have them."""
    per_second = table.column(_COUNT)
    table.require(per_second == np.floor(per_second), f"{_COUNT} is not a whole number")
    return CountTrace(per_second)


def _azure_functions(table: Table) -> EventTrace:
    """An invocation came at its end, by which the file is sorted, minus its duration."""
    arrival_s = np.sort(table.seconds("end_timestamp") - table.column("duration"))
    return EventTrace(arrival_s - arrival_s[0])


def _azure_llm(table: Table) -> EventTrace:
    """Wall-clock times. The trace starts with the first request."""
    time_us = table.column("TIMESTAMP", _unix_us)
    table.ascending("TIMESTAMP", time_us)
    return EventTrace((time_us - time_us[0]) / 1e6)


def _burstgpt(table: Table) -> EventTrace | CountTrace:
    """Seconds. The trace starts with the first request.

    Whole seconds say in which second a request came and not when in it.
    """
    time_s = table.seconds("Timestamp")
    table.ascending("Timestamp", time_s)
    time_s -= time_s[0]
    if np.any(time_s != np.floor(time_s)):
        return EventTrace(time_s)
    table.require(time_s < _LONGEST_S, "Timestamp is years after the first")
    return CountTrace(np.bincount(time_s.astype(np.int64)).astype(np.float64))


def _unix_us(text: str) -> float:
    """Convert a time of UTC or of the zone it names to whole microseconds.

    float64 holds them exactly, unlike seconds with a fraction. The trace's seventh digit
    is cut off.
    """
    time = datetime.fromisoformat(text)
    since_epoch = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return since_epoch / timedelta(microseconds=1)


def _with_header(source: str, columns: str, parse: Parser) -> Format[EventTrace | CountTrace]:
    return Format(f"{source} (CSV {columns})", "header", tuple(columns.split(",")), parse)


FORMATS: tuple[Format[EventTrace | CountTrace], ...] = (
    Format("CSV arrival_s", "header", ("arrival_s",), _csv),
    _with_header(
        "an Azure Functions 2021 trace", "app,func,end_timestamp,duration", _azure_functions
    ),
    _with_header(
        "an Azure LLM inference trace", "TIMESTAMP,ContextTokens,GeneratedTokens", _azure_llm
    ),
    _with_header("a BurstGPT trace", "Timestamp,Model,Request tokens,Response tokens", _burstgpt),
    Format("requests per second, one per line", "columns", (_COUNT,), _counts),
    Format("requests per second on one line", "one line", (_COUNT,), _counts),
)
"""Every format of arrivals."""
