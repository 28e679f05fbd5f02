"""How all pictures look: colours, markers, axes, legends, files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from sponge_env.arrays import FloatArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with any colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Tell agents apart that share a colour; all but the first are drawn hollow, so that an agent
which coincides with another hides nothing."""

NETWORK_COLOUR = "#999999"

PALETTE = 128
"""Colours of a file: enough for lines, their edges and pale shades, at half the size."""

SMOOTHING = 1 / 40
"""Share of the episode over which moving means reach."""


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
    ax.xaxis.set_major_formatter(FuncFormatter(plain_number))


def plain_number(value: float, _position: object) -> str:
    """Write a tick without trailing zeros or powers of ten."""
    return f"{value:g}"


def tidy(ax: Axes) -> None:
    """Open the frame of a panel over time, which begins at 0."""
    open_frame(ax)
    ax.margins(x=0.005)
    ax.set_xlim(left=0)


def add_legend(ax: Axes, title: str) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    small: dict[str, Any] = dict.fromkeys(("fontsize", "title_fontsize"), "small")
    beside: dict[str, Any] = {"bbox_to_anchor": (1.01, 1.05), "alignment": "left"}
    ax.legend(title=title, loc="upper left", frameon=False, **beside, **small)


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

    Args:
        values: (n,) numbers.
        width: Values to average; below 1 counts as 1, above n as n.

    Returns:
        (n,) means.
    """
    kernel = np.ones(min(max(width, 1), len(values)))
    counts = np.convolve(np.ones_like(values), kernel, mode="same")
    return np.convolve(values, kernel, mode="same") / counts
