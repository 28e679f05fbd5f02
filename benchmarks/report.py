"""Checks of a server: what was expected and what was measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from benchmarks.hammer import Tally
from benchmarks.vitals import VitalsWatch, grown


@dataclass
class Report:
    """Checks, one row each, and whether one of them failed."""

    rows: list[list[str]] = field(default_factory=list)
    failed: bool = False

    def add(self, part: str, what: str, expected: str, measured: object, passed: bool) -> None:
        """Add a check."""
        self.rows.append([f"{part}: {what}", expected, str(measured), "" if passed else "FAILED"])
        self.failed |= not passed
        print(f"{part}: {what} {measured} (expected: {expected})", file=sys.stderr)

    def tally(self, part: str, tally: Tally) -> None:
        """Add how requests ended."""
        counts = ", ".join(f"{n} x {status}" for status, n in sorted(tally.statuses.items()))
        self.add(part, "statuses", "200, 503, 504", counts, not tally.errors)
        self.add(part, "unanswered", f"0 of {tally.sent}", tally.unanswered, not tally.unanswered)
        self.add(part, "wrong answers", "0", tally.wrong, not tally.wrong)

    def growth(self, part: str, watch: VitalsWatch, tally: Tally) -> None:
        """Add by how much the server grew while it served requests."""
        growth = watch.growth()
        more = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
        # from the middle of the second quarter to that of the last
        self.add(part, "growth", "none", more, not grown(growth, tally.sent // 2))
