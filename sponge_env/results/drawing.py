"""How pictures look: colours and markers of agents, axes with few plain numbers, small files."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullFormatter
from PIL import Image

from sponge_env.run.suite import load_suite

Styles = Mapping[str, "Style"]

STANDARD = "standard"
"""Suite whose order of agents all reports keep to."""

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

MIN_TICKS = 3
"""Fewest numbers on a logarithmic axis."""

DECADES = tuple(
    [digit * 10.0**k for k in range(-6, 9) for digit in digits]
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
)
"""Numbers that such an axis may have, see :class:`FewTicks`."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one agent is drawn, in every picture of a report."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def of_marker(self) -> dict[str, Any]:
        """Matplotlib's arguments for the marker."""
        # Hollow ones surround others, stars need more to be as large.
        size = 12.0 if self.marker == "*" else 8.0 if self.hollow else 5.5
        fill = "none" if self.hollow else self.colour
        shape = {"marker": self.marker, "markersize": size}
        return {**shape, "color": self.colour, "markerfacecolor": fill}


def style_of(agents: Sequence[str]) -> dict[str, Style]:
    """Give every agent a colour, and a marker where there are more agents than colours."""
    styles = {}
    for n, agent in enumerate(agents):
        block, colour = divmod(n, len(COLOURS))
        styles[agent] = Style(COLOURS[colour], MARKERS[block % len(MARKERS)], hollow=block > 0)
    return styles


def in_order(played: Collection[str]) -> list[str]:
    """Return a run's agents in the order of the standard suite, further ones by name."""
    known = [agent for agent in load_suite(STANDARD).agents if agent in played]
    return known + sorted({*played} - {*known})


def featured_of(agents: Sequence[str]) -> list[str]:
    """Return the agents of a run with a colour of their own, at most as many as there are."""
    few = [agent for agent in load_suite(STANDARD).featured if agent in agents]
    ordered = [*few, *(agent for agent in agents if agent not in few)]
    return few if len(few) > 1 and len(agents) > len(COLOURS) else ordered[: len(COLOURS)]


def styles_of_run(agents: Sequence[str], featured: Sequence[str]) -> dict[str, Style]:
    """Return how a run's agents are drawn, the same in all its pictures.

    Those featured come first where there are more agents than colours.
    """
    first = featured if len(agents) > len(COLOURS) else featured_of(agents)
    return style_of([*first, *(agent for agent in agents if agent not in first)])


def legend_above(figure: Figure, *legend: Sequence[Any], title: str) -> None:
    """Put handles and labels above everything, in as many columns as the figure has room for."""
    for columns in range(6, 0, -1):
        drawn = figure.legend(
            *legend, title=title, loc="outside upper left", ncols=columns, frameon=False
        )
        if drawn.get_window_extent().width < figure.bbox.width or columns == 1:
            break
        drawn.remove()
    rows = drawn.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + rows)


def legend_beside(figure: Figure, **handles: Any) -> None:
    """Put a legend on the right, for which the figure grows."""
    drawn = figure.legend(**handles, loc="outside right upper", frameon=False, fontsize="small")
    size, (width, height) = drawn.get_window_extent(), figure.get_size_inches()
    width += size.width / figure.dpi
    figure.set_size_inches(width, max(height, 0.2 + size.height / figure.dpi))


def open_frame(ax: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Take away what carries nothing and put a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)


def log_axis(ax: Axes, *choices: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a few plain numbers of the choices on it."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FewTicks(*(choices or DECADES)))
    ax.xaxis.set_major_formatter(PLAIN)
    ax.xaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_xlim()
    if high < 1.01 * low:  # a single value, of which rounding leaves no view
        ax.set_xlim(low / 1.25, high * 1.25)


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
        evenly = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=MIN_TICKS)
        ticks: list[float] = []
        for choice in (*self._choices, evenly.tick_values(vmin, vmax)):
            ticks = [tick for tick in choice if vmin <= tick <= vmax]
            if len(ticks) >= MIN_TICKS:
                break
        return ticks


def png(figure: Figure) -> bytes:
    """Return a picture as a small PNG file's content; the same picture gives the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    few.save(small, format="png", optimize=True)
    return small.getvalue()
