"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics


class Progress:
    """Shows how far something has come."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at 0 of so many units.

        Without a terminal as its stream (standard error if left out) there is a line every so
        many seconds of the clock; nothing at all unless it is shown.
        """
        self._stream = stream or sys.stderr
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=unit,
            file=self._stream,
            leave=False,
            disable=not (shown and self._stream.isatty()),
        )
        self._label, self._total, self._unit = label, total, unit
        self._every_s, self._clock = every_s if shown else math.inf, clock
        self._due_s = clock() + self._every_s

    def show(self, done: int, status: str = "") -> None:
        """Say how far it is."""
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._bar.disable and self._clock() >= self._due_s:
            self._due_s = self._clock() + self._every_s
            self.say(f"{done}/{self._total} {self._unit}s" + f", {status}" * bool(status))

    def say(self, text: str) -> None:
        """Write one line."""
        self._stream.write(f"{self._label}: {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


class ConsoleSink:
    """Shows the progress of an episode, and in one line how it ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._violations = 0

    def interval(self, metrics: IntervalMetrics) -> None:
        """Advance by one interval."""
        self._done += 1
        self._violations += metrics.violations
        self._progress.show(
            self._done,
            f"{metrics.cores:.3g} cores, {metrics.queued} queued, {self._violations} violations",
        )

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Say in one line how the episode ended."""
        self._progress.close()
        self._progress.say(
            f"{'interrupted' if metrics.partial else 'done'} after {self._done} intervals, "
            f"{metrics.violation_rate:.3%} violations, {metrics.mean_cores:.2f} cores"
        )

    def close(self) -> None:
        """Take the bar away."""
        self._progress.close()
