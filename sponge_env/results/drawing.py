"""Pictures of a run, and how all of them look: colours of agents, few plain numbers."""

import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from sponge_env.arrays import FloatArray
from sponge_env.metrics import SCALES, IntervalMetrics, axis_label
from sponge_env.run.suite import load_suite
from sponge_env.utils.files import replacing

Styles = Mapping[str, Mapping[str, Any]]  # Of Matplotlib's lines, by agent, in all pictures

STANDARD = "standard-v1"  # Suite whose order of agents all reports keep to

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with any colour vision."""

NETWORK_COLOUR = "#999999"

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # Ticks without trailing zeros

MIN_TICKS = 3  # Fewest numbers on a logarithmic axis
Runs = Mapping[str, Any]  # By agent, its interval metrics: name to (intervals,) values

LINEAR_UP_TO = 10  # Violations so far beyond which their axis is logarithmic

VIOLATION_TICKS = (
    (0, *(10**k for k in range(1, 9))), (0, 10, 20, 30, 50, 70),
    *(range(0, LINEAR_UP_TO + 1, step) for step in (5, 2, 1)),
)  # fmt: skip

RATIO_TICKS = ([0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4], [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4])
LARGEST_RATIO = 4.0  # Times the reference's cores up to which a performance profile goes
SMOOTHING = 1 / 40  # Share of the episode over which moving means reach

INPUTS = (("bandwidth_bytes_per_s", "MB/s"), ("delay_mean_s", None), ("offered", None))
"""What happens to every agent: metric, and unit if not its own."""

CHOICES = ("cores", "batch", "replicas_ready")  # What an agent chooses; batch of the first stage

ACCURACY = "effective_accuracy"  # Shown where some answers are wrong

DRAWN = ("time_s", *(name for name, _ in INPUTS), "violations", *CHOICES, "accuracy", ACCURACY)
"""Interval metrics that are shown, or decide what is."""


def in_order(played: Collection[str]) -> list[str]:
    """Return a run's agents in the order of the standard suite, further ones by name."""
    known = [agent for agent in load_suite(STANDARD).agents if agent in played]
    return known + sorted({*played} - {*known})


def featured_of(agents: Sequence[str]) -> list[str]:
    """Return the agents of a run with a colour of their own, at most as many as there are."""
    few = [agent for agent in load_suite(STANDARD).featured if agent in agents]
    ordered = [*few, *(agent for agent in agents if agent not in few)]
    return few if len(few) > 1 and len(agents) > len(COLOURS) else ordered[: len(COLOURS)]


def styles_of(agents: Sequence[str]) -> Styles:
    """Return how a run's agents are drawn, in colours that repeat where there are more agents."""
    # Those that are featured have the first. The reference of the standard suite is grey.
    reference = load_suite(STANDARD).compared_with
    ordered = dict.fromkeys([*featured_of(agents), *agents])
    grey = {"color": "#777777", "linestyle": "--"}
    lines = itertools.product(("-", ":", "-."), COLOURS)
    coloured = ({"color": each, "linestyle": line} for line, each in itertools.cycle(lines))
    return {agent: grey if agent == reference else next(coloured) for agent in ordered}


def legend_above(figure: Figure, *legend: Sequence[Any], title: str) -> None:
    """Put handles and labels above everything, in as many columns as the figure has room for."""
    for columns in range(6, 0, -1):
        drawn = figure.legend(
            *legend, title=title, loc="outside upper left", ncols=columns, frameon=False
        )
        if drawn.get_window_extent().width < figure.bbox.width or columns == 1:
            break
        drawn.remove()
    figure.set_figheight(figure.get_figheight() + drawn.get_window_extent().height / figure.dpi)


def open_frame(ax: Axes) -> None:
    """Take away what carries nothing and put a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def few_ticks(ends: tuple[float, float], choices: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return the first choice with enough ticks between ends; if none has, at equal distance."""
    evenly = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=MIN_TICKS).tick_values(*ends)
    shown = [[t for t in ticks if ends[0] <= t <= ends[1]] for ticks in (*choices, evenly)]
    return next((ticks for ticks in shown if len(ticks) >= MIN_TICKS), shown[-1])


def png(figure: Figure) -> bytes:
    """Return a picture as a PNG file's content; the same picture gives the same bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """Average over about ``width`` values around each; NaN does not count."""
    width = min(max(width, 1), len(values))
    return pd.Series(values).rolling(width, center=True, min_periods=1).mean().to_numpy(np.float64)


def plot_comparison(runs: Runs, path: Path, title: str) -> None:
    """Draw some agents over time, below a title, as a PNG file."""
    agents = in_order(runs)
    figure = time_series({agent: runs[agent] for agent in agents}, styles_of(agents))
    figure.axes[0].set_title(title, loc="left", fontweight="bold")
    with replacing(path) as partial:
        partial.write_bytes(png(figure))


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
        ax.step(run["time_s"], total, where="post", label=label, **styles[agent])
    ax.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ax.yaxis.set_major_formatter(PLAIN)
    # Keeps an agent without violations off the axis.
    ax.set_ylim(-0.5, max(MIN_TICKS, ax.get_ylim()[1]))
    ax.set_yticks(few_ticks(ax.get_ylim(), VIOLATION_TICKS))
    ax.set_ylabel(f"{axis_label(IntervalMetrics, 'violations')}\nso far")


def _draw_choice(ax: Axes, runs: Runs, name: str, styles: Styles) -> None:
    for agent, run in runs.items():
        values = np.asarray(run[name], dtype=np.float64)
        smooth = moving_mean(values, round(len(values) * SMOOTHING))
        ax.plot(run["time_s"], values, linewidth=0.6, alpha=0.3, **styles[agent])
        ax.plot(run["time_s"], smooth, linewidth=1.6, **styles[agent])
    ax.set_ylim(bottom=0)
    ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))


def profile_figure(rows: pd.DataFrame, reference: str, styles: Styles) -> Figure:
    """Draw a performance profile (Dolan and More, 2002), with a panel for each start."""
    # By a suite's rows of :func:`~sponge_env.results.suite_tables.ratios` it shows the share of the
    # cells that agents meet with at most so many times the reference's cores.
    starts = [*rows["start"].unique()]
    figure = Figure((0.7 + 4.6 * len(starts), 3.4), dpi=100, layout="constrained")
    grid = figure.subplots(1, len(starts), squeeze=False, sharex=True, sharey=True)
    lowest = np.fmin(rows["cores_over_reference"].min(), 1.0)
    for ax, start in zip(grid.flat, starts, strict=True):
        own = rows[rows["start"] == start]
        total = len(own.drop_duplicates(["scenario", "profile"]))
        for agent, style in styles.items():
            found = own.loc[own["agent"] == agent, "cores_over_reference"].dropna().sort_values()
            steps = [lowest, *found, max(LARGEST_RATIO, found.max())]
            shares = [*(np.arange(len(found) + 1) / total), len(found) / total]
            ax.step(steps, shares, where="post", label=agent, **style)
        open_frame(ax)
        ax.set_title(f"{start} start", loc="left", fontsize="medium")
        ax.set(xlabel=f"cores over {reference}", ylabel="cells met", ylim=(0, 1.02))
        ax.label_outer(remove_inner_ticks=False)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xscale("log")
        ax.set_xlim(0.95 * lowest, LARGEST_RATIO)
        ax.set_xticks(few_ticks(ax.get_xlim(), RATIO_TICKS))
        ax.xaxis.set_major_formatter(PLAIN)
        ax.xaxis.set_minor_formatter(NullFormatter())
    legend_above(figure, *grid[0, 0].get_legend_handles_labels(), title="")
    return figure
