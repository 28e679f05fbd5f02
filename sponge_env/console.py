"""Progress of a run on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from sponge_env.metrics import EpisodeMetrics, WindowMetrics


class ConsoleSink:
    """Shows progress: a bar on a terminal, now and then a line elsewhere."""

    def __init__(
        self,
        label: str,
        windows: int,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the bar.

        Args:
            label: What runs, e.g. agent and seed.
            windows: Intervals in the episode.
            stream: Where to write; standard error if left out.
            every_s: Wall time between two lines where there is no terminal.
            clock: Wall clock in seconds.
        """
        self._stream = stream or sys.stderr
        self._bar = tqdm(
            total=windows,
            desc=label,
            unit="window",
            file=self._stream,
            leave=False,
            disable=not self._stream.isatty(),
        )
        self._label, self._windows = label, windows
        self._every_s, self._clock = every_s, clock
        self._due_s = clock() + every_s
        self._done = self._violations = 0

    def window(self, metrics: WindowMetrics) -> None:
        """Advance by one interval."""
        self._done += 1
        self._violations += metrics.violations
        status = f"{metrics.cores:g} cores, {metrics.queued} queued, {self._violations} violations"
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update()
        if self._bar.disable and self._clock() >= self._due_s:
            self._due_s = self._clock() + self._every_s
            self._line(f"{self._done}/{self._windows} windows, {status}")

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Say in one line how the episode ended."""
        self._bar.close()
        self._line(
            f"{'interrupted' if metrics.partial else 'done'} after {self._done} windows, "
            f"{metrics.violation_rate:.3%} violations, {metrics.mean_cores:.2f} cores"
        )

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _line(self, text: str) -> None:
        self._stream.write(f"{self._label}: {text}\n")
        self._stream.flush()
