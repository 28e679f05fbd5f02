"""What was wanted of a server, and what was found."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.hammer import Tally
from benchmarks.tolerance import wrong
from benchmarks.vitals import Watch, grown


@dataclass
class Report:
    """What was wanted, what was found."""

    rows: list[list[str]] = field(default_factory=list)
    failed: bool = False

    def add(self, part: str, what: str, wanted: str, found: object, fine: bool) -> None:
        """Take a line."""
        self.rows.append([f"{part}: {what}", wanted, str(found), "" if fine else "FAILED"])
        self.failed |= not fine
        print(f"{part}: {what} {found} (wanted: {wanted})", file=sys.stderr)

    def tally(self, part: str, tally: Tally) -> None:
        """Take what became of requests."""
        said = ", ".join(f"{n} x {status}" for status, n in sorted(tally.statuses.items()))
        self.add(part, "statuses", "200, 503, 504", said, not tally.errors)
        self.add(part, "unanswered", f"0 of {tally.sent}", tally.unanswered, not tally.unanswered)
        self.add(part, "answered twice", "0", tally.twice, not tally.twice)

    def outcomes(self, part: str, outcomes: Counter[str]) -> None:
        """Take what became of requests, many of them broken."""
        said = ", ".join(f"{n} x {kind}" for kind, n in sorted(outcomes.items()))
        wanted = "answers, no 5xx but 503, 504"
        self.add(part, "outcomes", wanted, said, bool(outcomes) and not wrong(outcomes))

    def growth(self, part: str, watch: Watch, tally: Tally) -> None:
        """Take what a server came to hold while it served requests."""
        growth = watch.growth()
        more = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
        # from the middle of the second quarter to that of the last
        self.add(part, "growth", "none", more, not grown(growth, tally.sent // 2))
