"""Pictures of one run: time series, latencies, decision times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, ScalarFormatter

from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, axis_label
from sponge_env.report.source import Source
from sponge_env.report.style import (
    LINEAR_UP_TO,
    NETWORK_COLOUR,
    SMOOTHING,
    Style,
    moving_mean,
    open_frame,
    style_of,
    tidy,
)
from sponge_env.suite.comparison import Cell

INPUTS = (
    ("bandwidth_bytes_per_s", 1e-6, "MB/s"),
    ("delay_mean_s", 1.0, None),
    ("offered", 1.0, None),
)
"""What happens to every agent: metric, scale, unit."""

Styles = Mapping[str, Style]

OUTPUTS = ("cores", "batch", "replicas_ready")
"""What an agent chooses."""


def time_series(source: Source, cell: Cell, styles: Styles) -> Figure:
    """Draw the first seed's episodes: what came in, what agents chose, what went wrong.

    Args:
        source: The run.
        cell: Which episodes.
        styles: Agents to show.
    """
    runs = {agent: source.intervals_of(agent, cell) for agent in styles}
    runs = {agent: run for agent, run in runs.items() if not run.empty}
    figure = Figure(figsize=(9, 8.5), dpi=90, layout="constrained")
    panels = figure.subplots(7, 1, sharex=True, height_ratios=(1.1, 1.1, 1.1, 1.6, 2, 1.2, 1.1))
    given = next(iter(runs.values()), pd.DataFrame())
    for ax, (name, scale, unit) in zip(panels, INPUTS, strict=False):
        if not given.empty:
            ax.fill_between(given["time_s"], given[name] * scale, color=NETWORK_COLOUR, linewidth=0)
        ax.set_ylim(bottom=0)
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name, unit)))
    _draw_violations(panels[3], runs, styles)
    for ax, name in zip(panels[4:], OUTPUTS, strict=True):
        _draw_choice(ax, runs, name, styles)
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


def _draw_violations(ax: Axes, runs: Mapping[str, pd.DataFrame], styles: Styles) -> None:
    for agent, run in runs.items():
        total = run["violations"].cumsum()
        label = f"{agent}: {total.iloc[-1]:.0f}"
        ax.step(run["time_s"], total, where="post", color=styles[agent].colour, label=label)
    ax.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(bottom=-0.5)  # keeps an agent without violations off the axis
    ax.set_ylabel(f"{axis_label(IntervalMetrics, 'violations')}\nso far")


def _draw_choice(ax: Axes, runs: Mapping[str, pd.DataFrame], name: str, styles: Styles) -> None:
    """Draw each interval faintly and a moving mean over it."""
    for agent, run in runs.items():
        values = run[name].to_numpy(np.float64)
        smooth = moving_mean(values, round(len(values) * SMOOTHING))
        colour = styles[agent].colour
        ax.plot(run["time_s"], values, color=colour, linewidth=0.6, alpha=0.3)
        ax.plot(run["time_s"], smooth, color=colour, linewidth=1.4)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))


def latency_figure(source: Source, scenario: str, styles: Styles) -> Figure:
    """Draw the distribution of latency in every cell of a scenario, mean over the seeds.

    Args:
        source: The run.
        scenario: Which one; a row per start, a column per profile.
        styles: Agents to show.
    """
    cells = source.cells(scenario)
    profiles = list(dict.fromkeys(profile for _, profile, _ in cells))
    size = (1.6 + 3.2 * len(profiles), 0.8 + 2.4 * len(source.starts))
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    grid = figure.subplots(
        len(source.starts), len(profiles), squeeze=False, sharex=True, sharey=True
    )
    for row, start in enumerate(source.starts):
        for column, profile in enumerate(profiles):
            ax = grid[row, column]
            _draw_latencies(ax, source, (scenario, profile, start), styles)
            ax.set_title(f"{profile}, {start}", loc="left", fontsize="medium")
    for ax in grid[-1]:
        ax.set_xlabel("latency [ms]")
    for ax in grid[:, 0]:
        ax.set_ylabel("requests [%]")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _draw_latencies(ax: Axes, source: Source, cell: Cell, styles: Styles) -> None:
    for agent, style in styles.items():
        table = source.latencies_of(agent, cell)
        if not table.empty:
            ax.plot(
                table["latency_s"] * 1000, table["quantile"] * 100, color=style.colour, label=agent
            )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylim(0, 100)
    open_frame(ax, "both")


def decision_figure(source: Source) -> Figure:
    """Draw how long decisions take: each agent's median and 99th percentile, over all cells."""
    names = ("decision_p50_s", "decision_p99_s")
    medians = source.comparison.episodes.groupby("agent")[list(names)].median() * 1000
    medians = medians.loc[list(reversed(source.comparison.agents))]
    figure = Figure(figsize=(7, 0.9 + 0.28 * len(medians)), dpi=90, layout="constrained")
    ax = figure.subplots()
    ax.hlines(medians.index, medians[names[0]], medians[names[1]], color=NETWORK_COLOUR)
    for name, style in zip(names, style_of(names).values(), strict=True):
        ax.plot(
            medians[name],
            medians.index,
            style.marker,
            color=style.colour,
            label=axis_label(EpisodeMetrics, name, ""),
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("decision [ms]")
    ax.margins(y=0.5 / len(medians))
    open_frame(ax, "x")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure
