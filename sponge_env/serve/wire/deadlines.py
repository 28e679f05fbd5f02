"""The deadline of a request, from all the ways in which clients state it.

The first that is given counts: ``slo_ms`` (from ``sent_at_ms`` on), an absolute deadline, Triton's
``timeout``, gRPC's deadline, the server's default. A client's clock counts if it is plausible.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import brief

PARAMETERS = ("slo_ms", "sent_at_ms", "deadline_ms", "timeout")  # Of a request, to state it
MAX_SLO_S = 3600.0  # Longer ones are shortened to it
MAX_AGE_S = 60.0  # A clock is wrong if a request was sent, or was due, longer ago by it
DOUBTED_AGE_S = 5.0  # A clock may be behind if a request was sent, or was due, so long ago by it
CLOCK_SLACK_S = 0.05  # Accepted difference between the clocks of two machines


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came in, in seconds."""

    began_s: float  # Its first bytes, on this machine's monotonic clock
    arrived_s: float  # All of it, on the same clock
    unix_s: float  # Wall clock at ``arrived_s``
    default_slo_s: float
    grpc_remaining_s: float | None = None  # Time until the deadline of the client's gRPC library


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request was sent and is due, in seconds of the monotonic clock."""

    sent_s: float
    due_s: float
    clamped: bool = False  # Whether a clock of the client was wrong and does not count


def request_deadline(
    parameters: Mapping[str, Any], headers: Mapping[bytes, bytes], arrival: Arrival
) -> Deadline:
    """Return the deadline of a request; a value that is not a number is a WireError."""
    # Headers have lower-case names; a parameter goes before a header of the same meaning.

    def value(name: str, header: bytes) -> Any:
        parameter = parameters.get(name)
        return headers.get(header) if parameter is None else parameter

    began_s, sent_ms = arrival.began_s, value("sent_at_ms", b"x-sent-at-ms")
    stated_s, sent_clamped = _clock_s("sent_at_ms", sent_ms, arrival, began_s + CLOCK_SLACK_S)
    sent_s = began_s if stated_s is None else min(stated_s, began_s)
    if (slo_s := _span_s("slo_ms", value("slo_ms", b"x-slo-ms"), 1e-3)) is not None:
        return Deadline(sent_s, sent_s + slo_s, sent_clamped)
    due_ms, latest_s = value("deadline_ms", b"x-deadline-ms"), arrival.arrived_s + MAX_SLO_S
    due_s, due_clamped = _clock_s("x-deadline-ms", due_ms, arrival, latest_s)
    if due_s is None:
        timeout, due_s = parameters.get("timeout"), sent_s + arrival.default_slo_s
        timeout_s = None if timeout == 0 else _span_s("timeout", timeout, 1e-6)  # 0 is none
        left_s = arrival.grpc_remaining_s if timeout_s is None else timeout_s
        if left_s is not None:
            due_s = arrival.arrived_s + min(left_s, MAX_SLO_S)
    return Deadline(sent_s, due_s, sent_clamped or due_clamped)


def _number(name: str, value: Any) -> float | None:
    """Return a client's number, which may be written as text; None stays None."""
    if value is None:
        return None
    if isinstance(value, int | float | str | bytes) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    raise WireError(f"{name} must be a number, not {brief(value)}")


def _span_s(name: str, value: Any, unit_s: float) -> float | None:
    """Return a positive span of time, at most :data:`MAX_SLO_S`."""
    if (number := _number(name, value)) is None:
        return None
    if not (math.isfinite(number) and number > 0):
        raise WireError(f"{name} must be a positive number, not {brief(value)}")
    return min(number * unit_s, MAX_SLO_S)


def _clock_s(name: str, value: Any, arrival: Arrival, latest_s: float) -> tuple[float | None, bool]:
    """Return a time of the client's clock, if it is right, and whether it is wrong."""
    # A deadline that has just passed counts: the request has expired.
    if (number := _number(name, value)) is None:
        return None, False
    time_s = arrival.arrived_s + (number * 1e-3 - arrival.unix_s)
    wrong = not arrival.began_s - MAX_AGE_S <= time_s <= latest_s
    return None if wrong else time_s, wrong
