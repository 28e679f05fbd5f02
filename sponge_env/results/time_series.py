"""Pictures over time: what came in, what agents chose, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sponge_env.arrays import FloatArray
from sponge_env.metrics import SCALES, IntervalMetrics, axis_label
from sponge_env.results.drawing import (
    MIN_TICKS,
    NETWORK_COLOUR,
    NO_FRAME,
    PLAIN,
    FewTicks,
    Styles,
    open_frame,
    style_of,
)
from sponge_env.utils.files import replacing

if TYPE_CHECKING:
    from sponge_env.results.comparison import Cell, Comparison

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
"""What an agent chooses. The batch size is that of the first stage, and left out of several."""


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """Average over about ``width`` values around each; over fewer at the ends.

    ``width`` is at least 1 and at most ``len(values)``, whatever is passed. What is NaN does
    not count; the average of nothing is NaN.
    """
    kernel = np.ones(min(max(width, 1), len(values)))
    known = ~np.isnan(values)
    counts = np.convolve(known.astype(np.float64), kernel, mode="same")
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    means = np.full(len(values), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def plot_comparison(
    intervals: Mapping[str, Sequence[IntervalMetrics]], path: Path, title: str
) -> None:
    """Draw network, violations so far and cores held of all agents on one time axis.

    Where some answers are wrong, effective accuracy, too.

    All are of the same seed and so under the same network and arrivals. Agents without
    intervals are left out; without any, no PNG is written. RunDirectoryError if it cannot be.
    """
    shown = ("time_s", "delay_mean_s", "violations", "cores", "accuracy", "effective_accuracy")
    runs = {
        agent: {name: series(run, name) for name in shown}
        for agent, run in intervals.items()
        if run
    }
    if not runs:
        return
    styles = style_of(list(runs))
    choices = ["cores", *["effective_accuracy"] * _some_wrong(runs)]
    figure, panels = _over_time((10, 7.5), 150, (2, 3, 4, *[2] * (len(choices) - 1)))
    network, violations, *others = panels
    # The delay is what the network takes from the budgets.
    _draw_input(network, max(runs.values(), key=lambda run: len(run["time_s"])), "delay_mean_s")
    network.set_ylabel("communication\n" + axis_label(IntervalMetrics, "delay_mean_s"))
    draw_violations(violations, runs, styles)
    violations.set_ylabel(f"{violations.get_ylabel()}\n(log above {LINEAR_UP_TO})")
    for ax, name in zip(others, choices, strict=True):
        _draw_choice(ax, runs, name, styles)
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.05)}
    beside |= {"alignment": "left", "title_fontsize": "small", **NO_FRAME}
    for ax, legend in ((violations, "Violations in all"), (others[0], "Mean cores")):
        ax.legend(title=legend, **beside)
    network.set_title(title, loc="left", fontweight="bold")
    network.set_xlim(left=0)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def series(run: Sequence[IntervalMetrics], name: str) -> FloatArray:
    """Return a metric of every interval, shape (intervals,)."""
    return np.array([getattr(interval, name) for interval in run], dtype=np.float64)


def time_series(comparison: Comparison, cell: Cell, styles: Styles) -> Figure:
    """Draw the first seed's episodes: what came in, what agents chose, what went wrong."""
    frames = {agent: comparison.intervals_of(agent, cell) for agent in styles}
    runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
    several = any(len(stages) > 1 for own in comparison.stages(cell).values() for stages in own)
    choices = [name for name in CHOICES if name != "batch" or not several]
    choices += ["effective_accuracy"] * _some_wrong(runs)
    heights = (1.1, 1.1, 1.1, 1.6, 2, *([1.2] * (len(choices) - 1)))
    figure, panels = _over_time((9, 0.2 + sum(heights)), 90, heights)
    for ax, (name, unit) in zip(panels, INPUTS, strict=False):
        for run in list(runs.values())[:1]:
            _draw_input(ax, run, name, SCALES.get(unit or "", 1.0))
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name, unit)))
    draw_violations(panels[3], runs, styles)
    panels[3].set_ylabel(panels[3].get_ylabel().replace(" so", "\nso"))
    for ax, name in zip(panels[4:], choices, strict=True):
        _draw_choice(ax, runs, name, styles)
    panels[0].set_xlim(left=0)
    legend, title = panels[3].get_legend_handles_labels(), "Violations in all"
    figure.legend(*legend, title=title, loc="outside upper left", ncols=6, frameon=False)
    return figure


def _over_time(
    size: tuple[float, float], dpi: int, heights: Sequence[float]
) -> tuple[Figure, Sequence[Axes]]:
    """Lay out panels over the same time."""
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for ax in panels:
        open_frame(ax)
        ax.margins(x=0.005)
    panels[-1].set_xlabel(axis_label(IntervalMetrics, "time_s"))
    figure.align_ylabels()
    return figure, panels


def _some_wrong(runs: Runs) -> bool:
    """Return whether some answers are less than sure to be right."""
    return any((np.asarray(run["accuracy"]) < 1).any() for run in runs.values())


def _stacked(label: str) -> str:
    """Break a label in two lines, at its unit if it has one: panels are low."""
    return label.replace(" [", "\n[") if "[" in label else label.replace(" ", "\n", 1)


def _draw_input(ax: Axes, run: Any, name: str, scale: float = 1.0) -> None:
    """Fill the area below what happened to every agent."""
    ax.fill_between(run["time_s"], run[name] * scale, color=NETWORK_COLOUR, linewidth=0)
    ax.set_ylim(bottom=0)


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
    ax.set_ylabel(f"{axis_label(IntervalMetrics, 'violations')} so far")


def _draw_choice(ax: Axes, runs: Runs, name: str, styles: Styles) -> None:
    """Draw each interval faintly and a moving mean over it; the legend has the mean."""
    for agent, run in runs.items():
        values = np.asarray(run[name], dtype=np.float64)
        smooth = moving_mean(values, round(len(values) * SMOOTHING))
        colour = styles[agent].colour
        ax.plot(run["time_s"], values, color=colour, linewidth=0.6, alpha=0.3)
        label = f"{agent}: {values.mean():.2f}"
        ax.plot(run["time_s"], smooth, color=colour, linewidth=1.6, label=label)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))
