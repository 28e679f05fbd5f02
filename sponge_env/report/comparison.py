"""The picture that compares agents over one episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from sponge_env.files import replacing
from sponge_env.interfaces import FloatArray
from sponge_env.metrics import IntervalMetrics, axis_label
from sponge_env.report.style import (
    COLOURS,
    LINEAR_UP_TO,
    NETWORK_COLOUR,
    SMOOTHING,
    add_legend,
    moving_mean,
    tidy,
)

Runs = Mapping[str, Sequence[IntervalMetrics]]


def plot_comparison(intervals: Runs, path: Path, title: str) -> None:
    """Draw network, violations so far and cores held of all agents on one time axis.

    Args:
        intervals: The intervals of each agent, all of the same seed and so under the same
            network and arrivals. Agents without intervals are left out.
        path: The PNG to write, whole or not at all; not written without any interval.
        title: Heading.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    runs = {agent: run for agent, run in intervals.items() if run}
    if not runs:
        return
    figure = Figure(figsize=(10, 7.5), dpi=150, layout="constrained")
    network, violations, cores = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 4))
    _draw_network(network, max(runs.values(), key=len))
    _draw_violations(violations, runs)
    _draw_cores(cores, runs)
    for ax in (network, violations, cores):
        tidy(ax)
    network.set_title(title, loc="left", fontweight="bold")
    cores.set_xlabel(axis_label(IntervalMetrics, "time_s"))
    figure.align_ylabels()
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _draw_network(ax: Axes, run: Sequence[IntervalMetrics]) -> None:
    """Draw the delay, which is what the network takes from the budgets."""
    delay_s = series(run, "delay_mean_s")
    ax.fill_between(series(run, "time_s"), delay_s, color=NETWORK_COLOUR, linewidth=0)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("communication\n" + axis_label(IntervalMetrics, "delay_mean_s"))


def _draw_violations(ax: Axes, runs: Runs) -> None:
    for (agent, run), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        total = np.cumsum(series(run, "violations"))
        label = f"{agent}: {total[-1]:.0f}"
        ax.step(series(run, "time_s"), total, where="post", color=colour, label=label)
    ax.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(bottom=-0.5)  # keeps an agent without violations off the axis
    ax.set_ylabel(f"{axis_label(IntervalMetrics, 'violations')} so far\n(log above {LINEAR_UP_TO})")
    add_legend(ax, "Violations in all")


def _draw_cores(ax: Axes, runs: Runs) -> None:
    """Draw each interval faintly and a moving mean over it."""
    for (agent, run), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        time_s, cores = series(run, "time_s"), series(run, "cores")
        smooth = moving_mean(cores, round(len(cores) * SMOOTHING))
        ax.plot(time_s, cores, color=colour, linewidth=0.6, alpha=0.3)
        label = f"{agent}: {cores.mean():.2f}"
        ax.plot(time_s, smooth, color=colour, linewidth=1.6, label=label)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(axis_label(IntervalMetrics, "cores"))
    add_legend(ax, "Mean cores")


def series(run: Sequence[IntervalMetrics], name: str) -> FloatArray:
    """Return a metric of every interval, shape (intervals,)."""
    return np.array([getattr(interval, name) for interval in run], dtype=np.float64)
