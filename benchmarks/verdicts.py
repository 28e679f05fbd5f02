"""What was wanted, what was measured, and whether that is met."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["met", "missed", "not decidable"]
"""The last: there is nothing to divide, a number is missing, or chance could explain it."""


class Target(NamedTuple):
    """What was to be reached, beside what a run shows."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict


def at_most(value: float, limit: float) -> Verdict:
    """Say whether a number is within its limit, which is no comparison."""
    return "met" if value <= limit else "missed"


def all_of(*verdicts: Verdict) -> Verdict:
    """Say whether a target of several parts is met: the worst of them decides."""
    return min(verdicts, key=("missed", "not decidable", "met").index)
