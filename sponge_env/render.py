"""Pictures of a running episode: a line of text, or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.installation import require_extra
from sponge_env.results.schema import IntervalMetrics, axis_label
from sponge_env.scenario import Scenario

SHOWN_INTERVALS = 60
"""Intervals in a frame."""


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
    """Draw cores, queue and violations of the last minute.

    Returns:
        (320, 480, 3) pixels.
    """
    require_extra("report", "rendering")
    # Matplotlib takes a third of a second to import and only rendering needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    shown = intervals[-SHOWN_INTERVALS:]
    time_s = [w.time_s for w in shown]
    panels = (("cores", scenario.limits.cores), ("queued", None), ("violations", None))
    for axes, (name, top) in zip(figure.subplots(3, 1, sharex=True), panels, strict=True):
        axes.step(time_s, [getattr(w, name) for w in shown], where="pre")
        axes.set_ylabel(axis_label(IntervalMetrics, name), fontsize=6)
        axes.set_ylim(bottom=0, top=top)
        axes.tick_params(labelsize=6)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
