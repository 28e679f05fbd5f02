"""What is seen of running work: its progress, and pictures of an episode so far."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sponge_env.installation import require_extra
from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics, axis_label
from sponge_env.scenario import Scenario


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
        hidden = not (shown and self._stream.isatty())
        self._bar = tqdm(
            total=total, desc=label, unit=unit, file=self._stream, leave=False, disable=hidden
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


def status_line(intervals: Sequence[IntervalMetrics]) -> str:
    """Describe the last interval in one line."""
    if not intervals:
        return "t=0 s: nothing has happened yet"
    last = intervals[-1]
    return (
        f"t={last.time_s:.0f} s: {last.requested_cores} cores x {last.replicas}, "
        f"batch {last.batch}; {last.offered} arrived, {last.violations} missed, "
        f"{last.queued} queued; reward {last.reward:.3f}"
    )


def frame(intervals: Sequence[IntervalMetrics], scenario: Scenario) -> NDArray[np.uint8]:
    """Draw cores, queue and violations of the last 60 intervals, as (320, 480, 3) pixels."""
    require_extra("report", "rendering")
    # Matplotlib takes a third of a second to import and only rendering needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    shown = intervals[-60:]
    time_s = [w.time_s for w in shown]
    panels = (("cores", scenario.limits.cores), ("queued", None), ("violations", None))
    for axes, (name, top) in zip(figure.subplots(3, 1, sharex=True), panels, strict=True):
        axes.step(time_s, [getattr(w, name) for w in shown], where="pre")
        axes.set_ylabel(axis_label(IntervalMetrics, name), fontsize=6)
        axes.set_ylim(bottom=0, top=top)
        axes.tick_params(labelsize=6)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
