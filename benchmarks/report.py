"""What a server must do beside what was measured."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.hammer import Tally
from benchmarks.tolerance import wrong
from benchmarks.vitals import Watch, grown


@dataclass
class Report:
    """Lines of requirement and measurement."""

    rows: list[list[str]] = field(default_factory=list)
    failed: bool = False

    def add(self, part: str, what: str, required: str, measured: object, met: bool) -> None:
        """Add a line."""
        self.rows.append([f"{part}: {what}", required, str(measured), "" if met else "FAILED"])
        self.failed |= not met
        print(f"{part}: {what} {measured} (required: {required})", file=sys.stderr)

    def tally(self, part: str, tally: Tally) -> None:
        """Add the outcomes of requests."""
        text = ", ".join(f"{n} x {status}" for status, n in sorted(tally.statuses.items()))
        self.add(part, "statuses", "200, 503, 504", text, not tally.errors)
        self.add(part, "unanswered", f"0 of {tally.sent}", tally.unanswered, not tally.unanswered)
        self.add(part, "answered twice", "0", tally.twice, not tally.twice)

    def outcomes(self, part: str, outcomes: Counter[str]) -> None:
        """Add the outcomes of requests, many of them broken."""
        text = ", ".join(f"{n} x {kind}" for kind, n in sorted(outcomes.items()))
        required = "answers, no 5xx but 503, 504"
        self.add(part, "outcomes", required, text, bool(outcomes) and not wrong(outcomes))

    def growth(self, part: str, watch: Watch, tally: Tally) -> None:
        """Add what a server used more and more of while it served requests."""
        growth = watch.growth()
        more = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
        # from the middle of the second quarter to that of the last
        self.add(part, "growth", "none", more, not grown(growth, tally.sent // 2))
