"""Pictures over time, of latencies and of decision times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from sponge_env.arrays import FloatArray
from sponge_env.files import replacing
from sponge_env.results.schema import SCALES, EpisodeMetrics, IntervalMetrics, axis_label
from sponge_env.results.style import (
    LINEAR_UP_TO,
    NETWORK_COLOUR,
    SMOOTHING,
    Style,
    add_legend,
    log_axis,
    moving_mean,
    open_frame,
    style_of,
    tidy,
)

if TYPE_CHECKING:
    from sponge_env.results.comparison import Cell, Comparison

Runs = Mapping[str, Any]
"""By agent, its interval metrics: name to (intervals,) values."""

Styles = Mapping[str, Style]

INPUTS = (("bandwidth_bytes_per_s", "MB/s"), ("delay_mean_s", None), ("offered", None))
"""What happens to every agent: metric, and unit if not its own."""

OUTPUTS = ("cores", "batch", "replicas_ready")
"""What an agent chooses."""


def plot_comparison(
    intervals: Mapping[str, Sequence[IntervalMetrics]], path: Path, title: str
) -> None:
    """Draw network, violations so far and cores held of all agents on one time axis.

    Args:
        intervals: The intervals of each agent, all of the same seed and so under the same
            network and arrivals. Agents without intervals are left out.
        path: The PNG to write, whole or not at all; not written without any interval.
        title: Heading.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    shown = ("time_s", "delay_mean_s", "violations", "cores")
    runs = {
        agent: {name: series(run, name) for name in shown}
        for agent, run in intervals.items()
        if run
    }
    if not runs:
        return
    styles = style_of(list(runs))
    figure = Figure(figsize=(10, 7.5), dpi=150, layout="constrained")
    network, violations, cores = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 4))
    # The delay is what the network takes from the budgets.
    _draw_input(network, max(runs.values(), key=lambda run: len(run["time_s"])), "delay_mean_s")
    network.set_ylabel("communication\n" + axis_label(IntervalMetrics, "delay_mean_s"))
    _draw_violations(violations, runs, styles)
    violations.set_ylabel(f"{violations.get_ylabel()}\n(log above {LINEAR_UP_TO})")
    add_legend(violations, "Violations in all")
    _draw_choice(cores, runs, "cores", styles)
    cores.set_ylabel(axis_label(IntervalMetrics, "cores"))
    add_legend(cores, "Mean cores")
    for ax in (network, violations, cores):
        tidy(ax)
    network.set_title(title, loc="left", fontweight="bold")
    cores.set_xlabel(axis_label(IntervalMetrics, "time_s"))
    figure.align_ylabels()
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def series(run: Sequence[IntervalMetrics], name: str) -> FloatArray:
    """Return a metric of every interval, shape (intervals,)."""
    return np.array([getattr(interval, name) for interval in run], dtype=np.float64)


def time_series(comparison: Comparison, cell: Cell, styles: Styles) -> Figure:
    """Draw the first seed's episodes: what came in, what agents chose, what went wrong.

    Args:
        comparison: The run.
        cell: Which episodes.
        styles: Agents to show.
    """
    frames = {agent: comparison.intervals_of(agent, cell) for agent in styles}
    runs = {agent: frame for agent, frame in frames.items() if not frame.empty}
    figure = Figure(figsize=(9, 8.5), dpi=90, layout="constrained")
    panels = figure.subplots(7, 1, sharex=True, height_ratios=(1.1, 1.1, 1.1, 1.6, 2, 1.2, 1.1))
    for ax, (name, unit) in zip(panels, INPUTS, strict=False):
        for run in list(runs.values())[:1]:
            _draw_input(ax, run, name, SCALES.get(unit or "", 1.0))
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name, unit)))
    _draw_violations(panels[3], runs, styles)
    panels[3].set_ylabel(panels[3].get_ylabel().replace(" so", "\nso"))
    for ax, name in zip(panels[4:], OUTPUTS, strict=True):
        _draw_choice(ax, runs, name, styles)
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))
    for ax in panels:
        tidy(ax)
    panels[-1].set_xlabel(axis_label(IntervalMetrics, "time_s"))
    figure.align_ylabels()
    handles, labels = panels[3].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="Violations in all", loc="outside upper left", ncols=6, frameon=False
    )
    return figure


def _stacked(label: str) -> str:
    """Break a label in two lines, at its unit if it has one: panels are low."""
    return label.replace(" [", "\n[") if "[" in label else label.replace(" ", "\n", 1)


def _draw_input(ax: Axes, run: Any, name: str, scale: float = 1.0) -> None:
    """Fill the area below what happened to every agent."""
    ax.fill_between(run["time_s"], run[name] * scale, color=NETWORK_COLOUR, linewidth=0)
    ax.set_ylim(bottom=0)


def _draw_violations(ax: Axes, runs: Runs, styles: Styles) -> None:
    """Draw the running sum, whose last value the legend has."""
    for agent, run in runs.items():
        total = np.cumsum(np.asarray(run["violations"]))
        label = f"{agent}: {total[-1]:.0f}"
        ax.step(run["time_s"], total, where="post", color=styles[agent].colour, label=label)
    ax.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(bottom=-0.5)  # keeps an agent without violations off the axis
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


def latency_figure(comparison: Comparison, scenario: str, styles: Styles) -> Figure:
    """Draw the distribution of latency in every cell of a scenario, mean over the seeds.

    Args:
        comparison: The run.
        scenario: Which one; a row per start, a column per profile.
        styles: Agents to show.
    """
    profiles = list(dict.fromkeys(profile for _, profile, _ in comparison.cells_of(scenario)))
    starts = comparison.starts
    size = (1.6 + 3.2 * len(profiles), 0.8 + 2.4 * len(starts))
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    grid = figure.subplots(len(starts), len(profiles), squeeze=False, sharex=True, sharey=True)
    for axes, start in zip(grid, starts, strict=True):
        for ax, profile in zip(axes, profiles, strict=True):
            for agent, style in styles.items():
                table = comparison.latencies_of(agent, (scenario, profile, start))
                if not table.empty:
                    share, latency_ms = table["quantile"] * 100, table["latency_s"] * 1000
                    ax.plot(latency_ms, share, color=style.colour, label=agent)
            log_axis(ax)
            ax.set_ylim(0, 100)
            open_frame(ax, "both")
            ax.set_title(f"{profile}, {start}", loc="left", fontsize="medium")
    for ax in grid[-1]:
        ax.set_xlabel("latency [ms]")
    for ax in grid[:, 0]:
        ax.set_ylabel("requests [%]")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def decision_figure(comparison: Comparison) -> Figure:
    """Draw how long decisions take: each agent's median and 99th percentile, over all cells."""
    names = ("decision_p50_s", "decision_p99_s")
    medians = comparison.episodes.groupby("agent")[list(names)].median() * 1000
    medians = medians.loc[list(reversed(comparison.agents))]
    figure = Figure(figsize=(7, 0.9 + 0.28 * len(medians)), dpi=90, layout="constrained")
    ax = figure.subplots()
    ax.hlines(medians.index, medians[names[0]], medians[names[1]], color=NETWORK_COLOUR)
    for name, style in zip(names, style_of(names).values(), strict=True):
        label = axis_label(EpisodeMetrics, name, "")
        ax.plot(medians[name], medians.index, style.marker, color=style.colour, label=label)
    log_axis(ax)
    ax.set_xlabel("decision [ms]")
    ax.margins(y=0.5 / len(medians))
    open_frame(ax, "x")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure
