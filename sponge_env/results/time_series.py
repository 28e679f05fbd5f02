"""Pictures over time: what came in, what agents chose, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sponge_env.arrays import FloatArray
from sponge_env.metrics import SCALES, IntervalMetrics, axis_label
from sponge_env.results.drawing import (
    MIN_TICKS,
    NETWORK_COLOUR,
    PLAIN,
    FewTicks,
    Styles,
    featured_of,
    in_order,
    legend_above,
    open_frame,
    styles_of_run,
)
from sponge_env.utils.files import replacing

Runs = Mapping[str, Any]
"""By agent, its interval metrics: name to (intervals,) values."""

LINEAR_UP_TO = 10
"""Violations so far from which on their axis is logarithmic: agents differ by orders of
magnitude."""

VIOLATION_TICKS = (
    (0, *(10**k for k in range(1, 9))), (0, 10, 20, 30, 50, 70),
    *(range(0, LINEAR_UP_TO + 1, step) for step in (5, 2, 1)),
)  # fmt: skip

SMOOTHING = 1 / 40
"""Share of the episode over which moving means reach."""

INPUTS = (("bandwidth_bytes_per_s", "MB/s"), ("delay_mean_s", None), ("offered", None))
"""What happens to every agent: metric, and unit if not its own."""

CHOICES = ("cores", "batch", "replicas_ready")
"""What an agent chooses. The batch size is that of the first stage."""

ACCURACY = "effective_accuracy"
"""Shown where some answers are wrong."""

DRAWN = ("time_s", *(name for name, _ in INPUTS), "violations", *CHOICES, "accuracy", ACCURACY)
"""Interval metrics that are shown, or decide what is."""


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """Average over about ``width`` values around each; over fewer at the ends.

    ``width`` is at least 1 and at most ``len(values)``, whatever is passed. What is NaN does
    not count; the average of nothing is NaN.
    """
    width = min(max(width, 1), len(values))
    around = pd.Series(values).rolling(width, center=True, min_periods=1)
    return around.mean().to_numpy(np.float64)


def plot_comparison(
    intervals: Mapping[str, Sequence[IntervalMetrics]], path: Path, title: str
) -> None:
    """Draw agents over time as :func:`time_series` does, below a title.

    Agents without intervals are left out; without any, no PNG is written. RunDirectoryError if it
    cannot be.
    """
    agents = in_order([agent for agent, run in intervals.items() if run])
    if agents:
        runs = {agent: pd.DataFrame(intervals[agent])[list(DRAWN)] for agent in agents}
        figure = time_series(runs, styles_of_run(agents, featured_of(agents)))
        figure.axes[0].set_title(title, loc="left", fontweight="bold")
        with replacing(path) as partial:
            figure.savefig(partial, format="png")


def time_series(runs: Runs, styles: Styles) -> Figure:
    """Draw :data:`DRAWN` of agents under the same network and arrivals, and violations so far."""
    choices = list(CHOICES)
    if any((np.asarray(run["accuracy"]) < 1).any() for run in runs.values()):
        choices.append(ACCURACY)
    heights = (1.1, 1.1, 1.1, 1.6, 2, *([1.2] * (len(choices) - 1)))
    figure = Figure(figsize=(9, 0.2 + sum(heights)), dpi=90, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for ax in panels:
        open_frame(ax)
        ax.margins(x=0.005)
    longest = max(runs.values(), key=lambda run: len(run["time_s"]), default=None)
    for ax, (name, unit) in zip(panels, INPUTS, strict=False):
        if longest is not None:
            shown = longest[name] * SCALES.get(unit or "", 1.0)
            ax.fill_between(longest["time_s"], shown, color=NETWORK_COLOUR, linewidth=0)
            ax.set_ylim(bottom=0)
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name, unit)))
    violations = panels[len(INPUTS)]
    draw_violations(violations, runs, styles)
    for ax, name in zip(panels[len(INPUTS) + 1 :], choices, strict=True):
        _draw_choice(ax, runs, name, styles)
    panels[0].set_xlim(left=0)
    panels[-1].set_xlabel(axis_label(IntervalMetrics, "time_s"))
    figure.align_ylabels()
    legend_above(figure, *violations.get_legend_handles_labels(), title="Violations in all")
    return figure


def _stacked(label: str) -> str:
    """Break a label in two lines, at its unit if it has one: panels are low."""
    return label.replace(" [", "\n[") if "[" in label else label.replace(" ", "\n", 1)


def draw_violations(ax: Axes, runs: Runs, styles: Styles) -> None:
    """Draw the running sum, whose last value the legend has."""
    for agent, run in runs.items():
        total = np.cumsum(np.asarray(run["violations"]))
        label = f"{agent}: {total[-1]:.0f}"
        ax.step(run["time_s"], total, where="post", color=styles[agent].colour, label=label)
    ax.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ax.yaxis.set_major_locator(FewTicks(*VIOLATION_TICKS))
    ax.yaxis.set_major_formatter(PLAIN)
    # Keeps an agent without violations off the axis.
    ax.set_ylim(-0.5, max(MIN_TICKS, ax.get_ylim()[1]))
    ax.set_ylabel(f"{axis_label(IntervalMetrics, 'violations')}\nso far")


def _draw_choice(ax: Axes, runs: Runs, name: str, styles: Styles) -> None:
    """Draw each interval faintly and a moving mean over it."""
    for agent, run in runs.items():
        values = np.asarray(run[name], dtype=np.float64)
        smooth = moving_mean(values, round(len(values) * SMOOTHING))
        colour = styles[agent].colour
        ax.plot(run["time_s"], values, color=colour, linewidth=0.6, alpha=0.3)
        ax.plot(run["time_s"], smooth, color=colour, linewidth=1.6)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))
