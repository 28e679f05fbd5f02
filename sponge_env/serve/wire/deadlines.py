"""By when a request has to be answered, from all the ways in which clients say it.

In this order: ``slo_ms`` (from ``sent_at_ms`` on), an absolute deadline, Triton's ``timeout``,
the deadline of gRPC, the server's default. A client's clock is believed as far as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import shown

PARAMETERS = ("slo_ms", "sent_at_ms", "deadline_ms", "timeout")
"""Parameters of a request that say it."""
LONGEST_SLO_S = 3600.0
"""Longer ones are shortened to it."""
OLDEST_S = 60.0
"""What was sent, or was due, longer ago than this was not: that clock is wrong."""
CLOCK_SLACK_S = 0.05
"""Clocks of two machines differ by this much without being called wrong."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came in, in seconds."""

    began_s: float
    """Its first bytes, on this machine's monotonic clock."""
    arrived_s: float
    """All of it, on the same clock."""
    unix_s: float
    """What the wall clock showed at ``arrived_s``."""
    default_slo_s: float
    grpc_remaining_s: float | None = None
    """What is left of the deadline that the client's gRPC library sets."""

    def monotonic_s(self, unix_s: float) -> float:
        """Return the stamp of the monotonic clock for one of the wall clock."""
        return self.arrived_s + (unix_s - self.unix_s)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request was sent and has to be answered, in seconds of the monotonic clock."""

    sent_s: float
    deadline_s: float
    clamped: bool = False
    """Whether a clock of the client was not believed."""


def about_time(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that count here, without what else a client sends."""
    return {name: parameters[name] for name in PARAMETERS if name in parameters}


def timing(
    parameters: Mapping[str, Any], headers: Mapping[bytes, bytes], arrival: Arrival
) -> Timing:
    """Return when a request was sent and has to be answered; what is no number is a WireError.

    Headers have lower-case names; a parameter goes before a header of the same meaning.
    """
    sent_s, wrong_sent = _sent_s(_said(parameters, "sent_at_ms", headers, b"x-sent-at-ms"), arrival)
    slo_s = _span_s("slo_ms", _said(parameters, "slo_ms", headers, b"x-slo-ms"), 1e-3)
    if slo_s is not None:
        return Timing(sent_s, sent_s + slo_s, wrong_sent)
    due_ms = _said(parameters, "deadline_ms", headers, b"x-deadline-ms")
    deadline_s, wrong_due = _due_s(due_ms, arrival)
    if deadline_s is None:
        deadline_s = _relative_s(parameters, sent_s, arrival)
    return Timing(sent_s, deadline_s, wrong_sent or wrong_due)


def _relative_s(parameters: Mapping[str, Any], sent_s: float, arrival: Arrival) -> float:
    """Return the deadline of a request that says neither an SLO nor an absolute one."""
    said = parameters.get("timeout")
    timeout_s = None if said == 0 else _span_s("timeout", said, 1e-6)  # Triton: 0 is none
    if timeout_s is not None:
        return arrival.arrived_s + timeout_s
    if arrival.grpc_remaining_s is not None:
        return arrival.arrived_s + min(arrival.grpc_remaining_s, LONGEST_SLO_S)
    return sent_s + arrival.default_slo_s


def _said(
    parameters: Mapping[str, Any], name: str, headers: Mapping[bytes, bytes], header: bytes
) -> Any:
    value = parameters.get(name)
    return headers.get(header) if value is None else value


def _number(name: str, value: Any) -> float | None:
    """Return the number that a client said, maybe in a text, or None if it said nothing."""
    if value is None:
        return None
    if isinstance(value, int | float | str | bytes) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise WireError(f"{name} must be a number, not {shown(value)}")


def _span_s(name: str, value: Any, unit_s: float) -> float | None:
    """Return a span of time that is positive, and shortened where it is beyond all reason."""
    number = _number(name, value)
    if number is None:
        return None
    if not (math.isfinite(number) and number > 0):
        raise WireError(f"{name} must be a positive number, not {shown(value)}")
    return min(number * unit_s, LONGEST_SLO_S)


def _sent_s(value: Any, arrival: Arrival) -> tuple[float, bool]:
    """Return when a request was sent, and whether its clock is wrong and the arrival stands in."""
    number = _number("sent_at_ms", value)
    if number is None:
        return arrival.began_s, False
    sent_s = arrival.monotonic_s(number * 1e-3)
    wrong = not arrival.began_s - OLDEST_S <= sent_s <= arrival.began_s + CLOCK_SLACK_S
    return (arrival.began_s, True) if wrong else (min(sent_s, arrival.began_s), False)


def _due_s(value: Any, arrival: Arrival) -> tuple[float | None, bool]:
    """Return an absolute deadline, if there is one, and whether its clock is wrong.

    One of a wrong clock counts as none. One that has just passed stands: that one is expired.
    """
    number = _number("x-deadline-ms", value)
    if number is None:
        return None, False
    deadline_s = arrival.monotonic_s(number * 1e-3)
    if not arrival.began_s - OLDEST_S <= deadline_s <= arrival.arrived_s + LONGEST_SLO_S:
        return None, True
    return deadline_s, False
