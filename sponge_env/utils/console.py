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

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, axis_label
from sponge_env.utils.installation import require_extra


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
        """Say how far it is; that nothing is done yet at once."""
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(done - self._bar.n)
        due = self._clock() >= self._due_s or (done == 0 and self._every_s < math.inf)
        if self._bar.disable and due:
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


_WIDTH, _HEIGHT, _SHOWN = 480, 320, 60
"""Pixels of a frame, and intervals in it."""


def frame(intervals: Sequence[IntervalMetrics], cores_max: int) -> NDArray[np.uint8]:
    """Draw cores, queue and violations of the last 60 intervals, as (320, 480, 3) pixels."""
    require_extra("report", "rendering")
    # Pillow, for Matplotlib takes 100 ms; and here, for only rendering needs it.
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, shown = ImageDraw.Draw(picture), intervals[-_SHOWN:]
    panels = (("cores", cores_max), ("queued", 0), ("violations", 0))
    height = (_HEIGHT - 18) // len(panels)
    for row, (name, top) in enumerate(panels):
        values = [float(getattr(w, name)) for w in shown]
        label = axis_label(IntervalMetrics, name)
        _panel(draw, values, max(top, 1, *values), label, 4 + row * height, height - 18)
    if shown:
        ends = f"{shown[0].time_s:g} .. {shown[-1].time_s:g} s"
        draw.text((_WIDTH - 8, _HEIGHT - 16), ends, fill="black", anchor="ra")
    return np.asarray(picture, np.uint8).copy()


def _panel(
    draw: Any, values: Sequence[float], most: float, label: str, top: int, height: int
) -> None:
    """Draw steps from 0 to the most in a box at this row of pixels, its label above it."""
    left, right, base = 8, _WIDTH - 8, top + 14 + height
    draw.text((left, top), label, fill="black")
    draw.text((right, top), f"{most:g}", fill="black", anchor="ra")
    draw.rectangle((left, base - height, right, base), outline="#bbbbbb")
    width = (right - left) / _SHOWN
    ends = [left + round(n * width) for n in range(len(values) + 1)]
    heights = [base - round(value / most * height) for value in values]
    steps = zip(ends, ends[1:], heights, strict=False)
    points = [point for start, end, y in steps for point in ((start, y), (end, y))]
    if points:
        draw.line(points, fill="#1f77b4", width=2)
