"""How pictures look: colours and markers of agents, axes with few plain numbers, small files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullFormatter
from PIL import Image

Styles = Mapping[str, "Style"]

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

NO_FRAME: dict[str, Any] = {"frameon": False, "fontsize": "small"}


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
