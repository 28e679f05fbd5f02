"""What is seen of running work: its progress, and pictures of an episode so far."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, axis_label
from sponge_env.utils.installation import require_extra

EVERY_S = 10.0  # Wall time between two lines where there is no terminal


class Progress:
    """Shows on standard error how far something has come: a bar on a terminal, else lines."""

    def __init__(self, label: str, total: int, unit: str, shown: bool = True) -> None:
        """Start at 0 of so many units; nothing at all appears unless it is shown."""
        from tqdm import tqdm  # an environment does without

        hidden = not (shown and sys.stderr.isatty())
        self._bar = tqdm(total=total, desc=label, unit=unit, leave=False, disable=hidden)
        self.close: Callable[[], None] = self._bar.close  # Takes the bar away
        self._label, self._total, self._unit, self._shown = label, total, unit, shown
        self._due_s = time.monotonic() + EVERY_S

    def show(self, done: int, status: str = "") -> None:
        """Say how far it is; that nothing is done yet at once."""
        done = min(done, self._total)  # what comes in batches may end with more
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._shown and self._bar.disable and (done == 0 or time.monotonic() >= self._due_s):
            self._due_s = time.monotonic() + EVERY_S
            self.say(f"{done}/{self._total} {self._unit}s" + f", {status}" * bool(status))

    def say(self, text: str) -> None:
        """Write one line."""
        sys.stderr.write(f"{self._label}: {text}\n")
        sys.stderr.flush()


class ConsoleSink:
    """Shows the progress of an episode, and in one line how it ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.close = progress, progress.close
        self._done = self._violations = 0

    def interval(self, metrics: IntervalMetrics) -> None:
        """Advance by one interval."""
        self._done += 1
        self._violations += metrics.violations
        said = f"{metrics.cores:.3g} cores, {metrics.queued} queued, {self._violations} violations"
        self._progress.show(self._done, said)

    def episode(self, metrics: EpisodeMetrics) -> None:
        """Say in one line how the episode ended, if it began."""
        self._progress.close()
        if self._done:
            self._progress.say(
                f"{'stopped' if metrics.partial else 'done'} after {self._done} intervals, "
                f"{metrics.violation_rate:.3%} violations, {metrics.mean_cores:.2f} cores"
            )


_WIDTH, _HEIGHT, _SHOWN, _ROW = 480, 320, 60, 100  # Pixels, intervals shown, pixels of a panel


def frame(intervals: Sequence[IntervalMetrics], cores_max: int) -> NDArray[np.uint8]:
    """Draw cores, queue and violations of the last 60 intervals, as (320, 480, 3) pixels."""
    try:  # Pillow, for Matplotlib takes 100 ms; and here, for only rendering needs it
        from PIL import Image, ImageDraw
    except ModuleNotFoundError:
        require_extra("report", "rendering")
        raise

    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, shown = ImageDraw.Draw(picture), intervals[-_SHOWN:]
    for row, (name, least) in enumerate((("cores", cores_max), ("queued", 0), ("violations", 0))):
        values = [float(getattr(w, name)) for w in shown]
        label = axis_label(IntervalMetrics, name)
        _panel(draw, values, max(least, 1, *values), label, 4 + row * _ROW)
    if shown:
        ends = f"{shown[0].time_s:g} .. {shown[-1].time_s:g} s"
        draw.text((_WIDTH - 8, _HEIGHT - 16), ends, fill="black", anchor="ra")
    return np.asarray(picture, np.uint8).copy()


def _panel(draw: Any, values: Sequence[float], most: float, label: str, top: int) -> None:
    left, right, height = 8, _WIDTH - 8, _ROW - 18
    base = top + 14 + height
    draw.text((left, top), label, fill="black")
    draw.text((right, top), f"{most:g}", fill="black", anchor="ra")
    draw.rectangle((left, base - height, right, base), outline="#bbbbbb")
    points = []
    for n, value in enumerate(values):
        y = base - round(value / most * height)
        points += [(left + round(k * (right - left) / _SHOWN), y) for k in (n, n + 1)]
    if points:
        draw.line(points, fill="#1f77b4", width=2)
