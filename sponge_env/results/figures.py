"""Pictures: over time, violations against cores, distributions of latency, decision times."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    Locator,
    MaxNLocator,
    NullFormatter,
)
from matplotlib.transforms import Bbox
from PIL import Image

from sponge_env.arrays import FloatArray
from sponge_env.metrics import (
    CELL,
    SCALES,
    AgainstBound,
    EpisodeMetrics,
    IntervalMetrics,
    axis_label,
)
from sponge_env.results.statistics import Estimate, mean
from sponge_env.run.suite import BOUND_AGENTS
from sponge_env.utils.files import replacing

if TYPE_CHECKING:
    from sponge_env.results.comparison import Cell, Comparison

Runs = Mapping[str, Any]
"""By agent, its interval metrics: name to (intervals,) values."""

Styles = Mapping[str, "Style"]

Panels = Sequence[Sequence[tuple[str, Sequence["Cell"]]]]
"""Rows of (title, cells)."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with any colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Tell agents apart that share a colour; all but the first are drawn hollow, so that an agent
which coincides with another hides nothing."""

NETWORK_COLOUR = "#999999"

PALETTE = 128
"""Colours of a file: enough for lines, their edges and pale shades, at half the size."""

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
"""Writes a tick without trailing zeros or powers of ten."""

LEAST_TICKS = 3
"""Fewest numbers on a logarithmic axis."""

ROUND = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Numbers that such an axis may have in each decade, if there are enough of them."""

SMOOTHING = 1 / 40
"""Share of the episode over which moving means reach."""


INPUTS = (("bandwidth_bytes_per_s", "MB/s"), ("delay_mean_s", None), ("offered", None))
"""What happens to every agent: metric, and unit if not its own."""

OUTPUTS = ("cores", "batch", "replicas_ready")
"""What an agent chooses. The batch size is that of the first stage, and left out of several."""

LINEAR_UP_TO = 10
"""Violations so far from which on their axis is logarithmic: agents differ by orders of
magnitude."""

VIOLATION_TICKS = (
    (0, *(10**k for k in range(1, 9))), (0, 10, 20, 30, 50, 70),
    *(range(0, LINEAR_UP_TO + 1, step) for step in (5, 2, 1)),
)  # fmt: skip
"""Numbers that this axis may have, see :class:`FewTicks`."""

LINEAR_UP_TO_PERCENT = 0.1
"""The same for violations per request; 0 must be on it."""

SUMMARY_LINEAR_UP_TO_PERCENT = 0.01
"""The same where few agents have room for their names."""

NAME_OFFSETS = tuple(
    (right * far, up * far)
    for far in (7, 18, 30, 44)
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
)
"""Where a name may stand beside its point, in points; the first that is free is taken."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one agent is drawn, in every picture of a report."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def of_marker(self) -> dict[str, Any]:
        """What Matplotlib has to know of the marker."""
        # Hollow ones surround others, stars need more to be as large.
        size = 12.0 if self.marker == "*" else 8.0 if self.hollow else 5.5
        fill = "none" if self.hollow else self.colour
        shape = {"marker": self.marker, "markersize": size}
        return {**shape, "color": self.colour, "markerfacecolor": fill}


def style_of(agents: Sequence[str]) -> dict[str, Style]:
    """Give every agent a colour, and a marker where there are more agents than colours."""
    found = {}
    for n, agent in enumerate(agents):
        block, colour = divmod(n, len(COLOURS))
        found[agent] = Style(COLOURS[colour], MARKERS[block % len(MARKERS)], hollow=block > 0)
    return found


def open_frame(ax: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Take away what carries nothing and put a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def log_axis(ax: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers on it."""
    ax.set_xscale("log")
    _mark(ax, *([m * 10.0**k for k in range(-6, 9) for m in each] for each in ROUND))


class FewTicks(Locator):
    """The first of some choices that has enough ticks in sight; if none has, at equal distance."""

    def __init__(self, *choices: Sequence[float]) -> None:
        self._choices = choices

    def __call__(self) -> Sequence[float]:
        """Return the ticks of the axis."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks between two ends."""
        for choice in self._choices:
            found = [tick for tick in choice if vmin <= tick <= vmax]
            if len(found) >= LEAST_TICKS:
                return found
        evenly = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=LEAST_TICKS)
        even: Sequence[float] = evenly.tick_values(vmin, vmax)
        return [tick for tick in even if vmin <= tick <= vmax]


def _mark(ax: Axes, *choices: Sequence[float]) -> None:
    """Give the horizontal axis a few plain numbers, see :class:`FewTicks`, and no others."""
    ax.xaxis.set_major_locator(FewTicks(*choices))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.xaxis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """Return a picture as a small PNG file's content; the same picture gives the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    few.save(small, format="png", optimize=True)
    return small.getvalue()


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """Average over about ``width`` values around each; over fewer at the ends.

    ``width`` is at least 1 and at most ``len(values)``, whatever is asked for. What is NaN does
    not count; the average of nothing is NaN.
    """
    kernel = np.ones(min(max(width, 1), len(values)))
    known = ~np.isnan(values)
    counts = np.convolve(known.astype(np.float64), kernel, mode="same")
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    means = np.full(len(values), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


BOUND_STYLES = {
    BOUND_AGENTS["joint"]: Style("#000000", "*"),
    BOUND_AGENTS["vertical"]: Style("#777777", "*"),
}
"""The bounds are no agents, and look like none."""


def plot_comparison(
    intervals: Mapping[str, Sequence[IntervalMetrics]], path: Path, title: str
) -> None:
    """Draw network, violations so far and cores held of all agents on one time axis.

    Where some answers are wrong, effective accuracy, too.

    All are of the same seed and so under the same network and arrivals. Agents without
    intervals are left out; without any, no PNG is written. RunDirectoryError if it cannot be.
    """
    shown = ("time_s", "delay_mean_s", "violations", "cores", "accuracy", "effective_accuracy")
    there = {agent: run for agent, run in intervals.items() if run}
    runs = {agent: {name: series(run, name) for name in shown} for agent, run in there.items()}
    if not runs:
        return
    styles = style_of(list(runs))
    of_accuracy = (2,) * _some_wrong(runs)
    figure, panels = _over_time((10, 7.5), 150, (2, 3, 4, *of_accuracy))
    network, violations, cores, *accuracy = panels
    # The delay is what the network takes from the budgets.
    _draw_input(network, max(runs.values(), key=lambda run: len(run["time_s"])), "delay_mean_s")
    network.set_ylabel("communication\n" + axis_label(IntervalMetrics, "delay_mean_s"))
    draw_violations(violations, runs, styles)
    violations.set_ylabel(f"{violations.get_ylabel()}\n(log above {LINEAR_UP_TO})")
    _draw_choice(cores, runs, "cores", styles)
    cores.set_ylabel(axis_label(IntervalMetrics, "cores"))
    for ax in accuracy:
        _draw_choice(ax, runs, "effective_accuracy", styles)
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, "effective_accuracy")))
    small: dict[str, Any] = dict.fromkeys(("fontsize", "title_fontsize"), "small")
    beside: dict[str, Any] = {"bbox_to_anchor": (1.01, 1.05), "alignment": "left", **small}
    for ax, legend in ((violations, "Violations in all"), (cores, "Mean cores")):
        ax.legend(title=legend, loc="upper left", frameon=False, **beside)
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
    several = any(len(stages) > 1 for found in comparison.stages(cell).values() for stages in found)
    outputs = [name for name in OUTPUTS if name != "batch" or not several]
    outputs += ["effective_accuracy"] * _some_wrong(runs)
    heights = (1.1, 1.1, 1.1, 1.6, 2, *([1.2] * (len(outputs) - 1)))
    figure, panels = _over_time((9, 0.2 + sum(heights)), 90, heights)
    for ax, (name, unit) in zip(panels, INPUTS, strict=False):
        for run in list(runs.values())[:1]:
            _draw_input(ax, run, name, SCALES.get(unit or "", 1.0))
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name, unit)))
    draw_violations(panels[3], runs, styles)
    panels[3].set_ylabel(panels[3].get_ylabel().replace(" so", "\nso"))
    for ax, name in zip(panels[4:], outputs, strict=True):
        _draw_choice(ax, runs, name, styles)
        ax.set_ylabel(_stacked(axis_label(IntervalMetrics, name)))
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
    ax.set_ylim(-0.5, max(LEAST_TICKS, ax.get_ylim()[1]))
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


def _grid(
    panels: Panels, size: tuple[float, float], dpi: int, labels: tuple[str, str], lines: Any
) -> tuple[Figure, list[tuple[Axes, Sequence[Cell]]]]:
    """Lay out panels with shared axes, of which the horizontal one is logarithmic.

    The size is in inches, the labels are those of both axes, and the lines behind the data x,
    y or both. With the figure comes each panel with its cells.
    """
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False, sharex=True, sharey=True)
    flat = [panel for row in panels for panel in row]
    for ax, (title, _) in zip(grid.flat, flat, strict=True):
        log_axis(ax)
        open_frame(ax, lines)
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set(xlabel=labels[0], ylabel=labels[1])
        ax.label_outer(remove_inner_ticks=False)
    return figure, [(ax, cells) for ax, (_, cells) in zip(grid.flat, flat, strict=True)]


def latency_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw the distribution of latency on each panel's cell, mean over the seeds."""
    size = (1.6 + 3.2 * len(panels[0]), 0.8 + 2.4 * len(panels))
    figure, grid = _grid(panels, size, 90, ("latency [ms]", "requests [%]"), "both")
    for ax, cells in grid:
        for agent, style in styles.items():
            for table in [comparison.latencies_of(agent, cell) for cell in cells]:
                if not table.empty:
                    share, latency_ms = table["quantile"] * 100, table["latency_s"] * 1000
                    ax.plot(latency_ms, share, color=style.colour, label=agent)
        ax.set_ylim(0, 100)
    legend = grid[0][0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right upper", frameon=False)
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


@dataclass(frozen=True, slots=True)
class Point:
    """An agent, or a bound, on some cells."""

    agent: str
    cores: Estimate
    violations: Estimate
    """In per cent."""


def points(comparison: Comparison, cells: Sequence[Cell]) -> list[Point]:
    """Return agents and bounds, as means over cells and seeds.

    Cores and violations are relative to the bound of all agents, on the cells that have it, or
    as they are without one. Agents that failed on one of the cells are left out: theirs would
    be other means.
    """
    names = ("mean_cores", "avoidable_violation_rate")
    if comparison.common_bound:
        cells = comparison.bounded(cells)
        names = ("cores_over_common_bound", "beyond_common_bound_rate")
    if not cells:
        return []
    found = []
    for agent in comparison.agents:
        if all(comparison.has(agent, cell) for cell in cells):
            cores, rates = (comparison.pooled(agent, name, cells) for name in names)
            found.append(Point(agent, mean(cores), mean(rates * 100)))
    if not comparison.common_bound:
        return found
    wide = comparison.bound_episodes.pivot(index=["agent", *CELL], columns="seed")
    best = wide.loc[comparison.common_bound].loc[list(cells)]
    for name in BOUND_STYLES:
        if all((name, *cell) in wide.index for cell in cells):
            own = wide.loc[name].loc[list(cells)]
            cores = (own["core_seconds_upper"] / best["core_seconds_upper"]).to_numpy()
            # Below 0 where the bound is beaten.
            beyond = own["violations_upper"] - best["violations_upper"]
            rates = (beyond / own["offered"].clip(lower=1) * 100).to_numpy()
            both = (comparison.by_family(cells, values) for values in (cores, rates))
            found.append(Point(name, *map(mean, both)))
    return found


def summary_figure(comparison: Comparison, styles: Styles) -> Figure:
    """Draw the README's table: violations against cores of a few agents, a panel for each start.

    Each point has its agent's name beside it.
    """
    starts, bound = comparison.starts, comparison.common_bound
    panels: Panels = [[(f"{start} start", comparison.cells_of(start=start)) for start in starts]]
    cores = f"cores over what {bound} attains" if bound else "mean cores"
    labels = cores, "avoidable violations [%]"
    figure, grid = _grid(panels, (0.8 + 4.4 * len(starts), 4.6), 110, labels, "both")
    shown = [_places(comparison, start, list(styles)) for start in starts]
    most = max([1.0, *(rate for places in shown for _, rate in places.values())])
    for (ax, _), places in zip(grid, shown, strict=True):
        for agent, place in places.items():
            ax.plot(*place, linestyle="none", clip_on=False, **styles[agent].of_marker)
        linear_up_to = SUMMARY_LINEAR_UP_TO_PERCENT
        _violation_axis(ax, -0.4 * linear_up_to, min(100.0, 2.5 * most), linear_up_to)
        _core_axis(ax)
        ax.margins(x=0.12)
    figure.draw_without_rendering()  # where names go depends on where the axes are
    for (ax, _), places in zip(grid, shown, strict=True):
        _name_points(ax, places, styles)
    return figure


def _places(
    comparison: Comparison, start: str, agents: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return cores and violations in per cent of agents, as in the README's table."""
    bound, found = comparison.common_bound, {}
    metric = "cores_over_common_bound" if bound else "mean_cores"
    for agent in agents:
        cells = comparison.shared_cells(agent, start)
        if bounded := comparison.bounded(cells) if bound else cells:
            rate = comparison.mean(agent, "avoidable_violation_rate", *cells) * 100
            found[agent] = comparison.mean(agent, metric, *bounded), rate
    return found


def _name_points(ax: Axes, places: Mapping[str, tuple[float, float]], styles: Styles) -> None:
    """Write each agent's name where it hides nothing, if there is such a place."""
    points = [ax.transData.transform(place) for place in places.values()]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    taken.append(_arrow_to_better(ax, taken))
    for agent, place in sorted(places.items(), key=lambda item: item[1][1]):
        tried = [_name_at(ax, agent, place, offset, styles[agent]) for offset in NAME_OFFSETS]
        boxes = [_box(name).padded(2) for name in tried]
        hidden = [box.count_overlaps(taken) + 9 * _outside(box, ax) for box in boxes]
        best = hidden.index(min(hidden))
        taken.append(boxes[best])
        for n, name in enumerate(tried):
            if n != best:
                name.remove()


def _arrow_to_better(ax: Axes, taken: Sequence[Bbox]) -> Bbox:
    """Point to fewer cores and violations, from the corner with the fewest points in it."""
    width, height = 0.2, 0.2  # of the axes
    corners = [(0.98, 0.98), (0.25, 0.25), (0.98, 0.25), (0.25, 0.98)]
    boxes = [
        Bbox.from_extents(x - width, y - height, x, y).transformed(ax.transAxes) for x, y in corners
    ]
    points = [box.count_overlaps(taken) for box in boxes]
    best = points.index(min(points))
    x, y = corners[best]
    ax.annotate(
        "better", (x - width, y - height), (x, y), ha="right", va="top", color="#666666",
        xycoords="axes fraction", textcoords="axes fraction",
        arrowprops={"arrowstyle": "->", "color": NETWORK_COLOUR},
    )  # fmt: skip
    return boxes[best]


def _name_at(
    ax: Axes, agent: str, place: tuple[float, float], offset: tuple[int, int], style: Style
) -> Annotation:
    """Write a name at an offset in points from a point, with a line to it if it is far."""
    right, up = offset
    line = {"arrowstyle": "-", "color": style.colour, "linewidth": 0.6}
    name = ax.annotate(
        agent, place, offset, textcoords="offset points", color=style.colour, fontsize="medium",
        ha="left" if right > 0 else "right" if right < 0 else "center",
        va="bottom" if up > 0 else "top" if up < 0 else "center",
        arrowprops=line if max(map(abs, offset)) > 10 else None,
    )  # fmt: skip
    name.set_in_layout(False)  # the axes stay where they are
    return name


def _box(name: Annotation) -> Bbox:
    """Return where the letters are, without the line to the point."""
    name.get_window_extent()  # finds its place
    return Text.get_window_extent(name)


def _outside(box: Bbox, ax: Axes) -> bool:
    return bool(box.x0 < ax.bbox.x0 or box.x1 > ax.bbox.x1 or box.y0 < ax.bbox.y0)


def pareto_figure(comparison: Comparison, panels: Panels, styles: Styles) -> Figure:
    """Draw violations against cores; a panel shows means over its cells."""
    all_styles = {**styles, **BOUND_STYLES}
    height = max(0.6 + 3.0 * len(panels), 0.3 + 0.2 * len(all_styles))  # the legend's rows
    size = (2.2 + 3.4 * len(panels[0]), height)
    cores = axis_label(EpisodeMetrics, "mean_cores")
    violations = axis_label(EpisodeMetrics, "avoidable_violation_rate", "%")
    if comparison.common_bound:
        cores = axis_label(AgainstBound, "cores_over_common_bound")
        violations = axis_label(AgainstBound, "beyond_common_bound_rate", "%")
    figure, grid = _grid(panels, size, 110, (cores, violations), "y")
    shown = [(ax, points(comparison, cells)) for ax, cells in grid]
    drawn = [point for _, found in shown for point in found]
    lowest = min([0.0, *(point.violations.value for point in drawn)])
    for ax, found in shown:
        _draw_points(ax, found, all_styles)
        # Below 0 where a bound is beaten.
        _violation_axis(ax, 1.2 * lowest - 0.02, 100, LINEAR_UP_TO_PERCENT)
        _core_axis(ax)
    there = {point.agent for point in drawn}
    handles = [
        Line2D([], [], linestyle="none", label=agent, **style.of_marker)
        for agent, style in all_styles.items()
        if agent in there
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _violation_axis(ax: Axes, lowest: float, highest: float, linear_up_to: float) -> None:
    """Make the vertical axis logarithmic, but around 0."""
    ax.set_yscale("symlog", linthresh=linear_up_to)
    ax.set_ylim(lowest, highest)
    ticks = [-1, -0.1, 0, *([linear_up_to] if linear_up_to < 0.1 else []), 0.1, 1, 10, 100]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(PLAIN)


def _core_axis(ax: Axes) -> None:
    _mark(ax, [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32], range(1, 33))


def _draw_points(ax: Axes, shown: Sequence[Point], styles: Styles) -> None:
    """Draw every point with its intervals, and a line along those that nobody beats."""
    agents = [(p.cores.value, p.violations.value) for p in shown if p.agent not in BOUND_STYLES]
    front: list[tuple[float, float]] = []
    for place in sorted(agents):
        if not front or place[1] < front[-1][1]:
            front.append(place)
    ax.step(*np.reshape(front, (-1, 2)).T, where="post", color=NETWORK_COLOUR, linewidth=0.8)
    for height, point in enumerate(reversed(shown)):
        cores, violations = point.cores, point.violations
        look = {"elinewidth": 0.8, "clip_on": False, **styles[point.agent].of_marker}
        reach = _reach(violations), _reach(cores)
        ax.errorbar(cores.value, violations.value, *reach, zorder=3 + height, **look)


def _reach(interval: Estimate) -> list[list[float]]:
    """Return how far an interval reaches below and above its estimate; 0 where unknown."""
    below, above = interval.value - interval.low, interval.high - interval.value
    return [[max(0.0, float(np.nan_to_num(below)))], [max(0.0, float(np.nan_to_num(above)))]]
