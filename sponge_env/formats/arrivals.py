"""Parsers of arrival traces: when requests came, or how many in each second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.formats.table import Format, Table

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNT = "requests per second"
_LONGEST_S = 1e8
"""Three years: no trace is as long, and 1973 as a Unix time."""


class Events(NamedTuple):
    """Requests at exact times."""

    time_s: FloatArray
    """(n,) ascending seconds since the start of the trace."""


class Counts(NamedTuple):
    """Requests counted by second."""

    per_second: FloatArray
    """(seconds,) whole numbers."""


def parse_csv(table: Table) -> Events:
    """CSV with the column ``arrival_s``, in seconds since the start of the trace.

    Where these are Unix times, the trace starts with the first request.
    """
    time_s = table.seconds("arrival_s")
    table.ascending("arrival_s", time_s)
    return Events(time_s - time_s[0] if time_s[0] > _LONGEST_S else time_s)


def parse_counts(table: Table) -> Counts:
    """Requests per second, as the Twitter trace and Autothrottle's traces have them."""
    per_second = table.column(_COUNT)
    table.require(per_second == np.floor(per_second), f"{_COUNT} is not a whole number")
    return Counts(per_second)


def parse_azure_functions(table: Table) -> Events:
    """Azure Functions 2021: an invocation came at its end minus its duration.

    The file is sorted by the end. The trace starts with the first invocation.
    """
    arrival_s = np.sort(table.seconds("end_timestamp") - table.column("duration"))
    return Events(arrival_s - arrival_s[0])


def parse_azure_llm(table: Table) -> Events:
    """Azure LLM inference: wall-clock times. The trace starts with the first request."""
    time_us = table.column("TIMESTAMP", _unix_us)
    table.ascending("TIMESTAMP", time_us)
    return Events((time_us - time_us[0]) / 1e6)


def parse_burstgpt(table: Table) -> Events | Counts:
    """BurstGPT: seconds. The trace starts with the first request.

    Whole seconds say in which second a request came and not when in it.
    """
    time_s = table.seconds("Timestamp")
    table.ascending("Timestamp", time_s)
    time_s -= time_s[0]
    if np.any(time_s != np.floor(time_s)):
        return Events(time_s)
    table.require(time_s < _LONGEST_S, "Timestamp is years after the first")
    return Counts(np.bincount(time_s.astype(np.int64)).astype(np.float64))


def _unix_us(text: str) -> float:
    """Convert a time of UTC or of the zone it names to whole microseconds.

    float64 holds them exactly, unlike seconds with a fraction. The trace's seventh digit
    is cut off.
    """
    time = datetime.fromisoformat(text)
    since_epoch = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return since_epoch / timedelta(microseconds=1)


FORMATS = (
    Format("CSV arrival_s", "header", ("arrival_s",), parse_csv),
    Format(
        "an Azure Functions 2021 trace (CSV app,func,end_timestamp,duration)",
        "header",
        ("app", "func", "end_timestamp", "duration"),
        parse_azure_functions,
    ),
    Format(
        "an Azure LLM inference trace (CSV TIMESTAMP,ContextTokens,GeneratedTokens)",
        "header",
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        parse_azure_llm,
    ),
    Format(
        "a BurstGPT trace (CSV Timestamp,Model,Request tokens,Response tokens)",
        "header",
        ("Timestamp", "Model", "Request tokens", "Response tokens"),
        parse_burstgpt,
    ),
    Format("requests per second, one per line", "columns", (_COUNT,), parse_counts),
    Format("requests per second on one line", "one line", (_COUNT,), parse_counts),
)
"""Every format of arrivals."""
