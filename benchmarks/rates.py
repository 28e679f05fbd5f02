"""Two controllers' violations and cores on the same cells.

The measure is the same for both: avoidable violations (those of requests that were not hopeless
on arrival) and core-seconds. What is relative to a bound would be relative to another one for
another kind of scaling.

Either side may be a group of agents. In each cell that one of it counts which has the fewest
avoidable violations there, and of several the fewest core-seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from sponge_env.arrays import FloatArray
from sponge_env.results.comparison import Cell, Comparison
from sponge_env.results.findings import listed, percent
from sponge_env.results.statistics import SIGNIFICANCE, holm, paired_p

Group = Sequence[str]

AVOIDABLE = "avoidable_violation_rate"

NO_DIFFERENCE = "no significant difference"


@dataclass(frozen=True, slots=True)
class Rates:
    """Avoidable violations of two controllers on the same cells."""

    ours: float
    """Per request offered, mean over cells and seeds."""
    theirs: float
    p: float
    """That they differ so much by chance, see ``sponge_env.results.statistics.paired_p``."""

    @property
    def significant(self) -> bool:
        """Whether they are shown to differ."""
        return self.p < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        """What theirs are, beside ours."""
        if not self.significant:
            return NO_DIFFERENCE
        return "more" if self.theirs > self.ours else "fewer"

    @property
    def ratio(self) -> float:
        """How many times as many they have; infinite if we have none, NaN if nobody has."""
        if self.ours:
            return self.theirs / self.ours
        return math.inf if self.theirs else math.nan

    def __str__(self) -> str:
        """Say the ratio, and both rates."""
        if math.isnan(self.ratio):
            return "0 against 0: nothing to divide"
        both = f"{percent(self.theirs, 3)} against {percent(self.ours, 3)}"
        return f"{self.ratio:.3g} times: {both}" if 0 < self.ratio < math.inf else both


def select(
    comparison: Comparison, scenarios: str = "*", profiles: str = "*", start: str = ""
) -> list[Cell]:
    """Return the cells whose scenario and profile match patterns."""
    return [
        cell
        for cell in comparison.cells_of(start=start)
        if fnmatchcase(cell[0], scenarios) and fnmatchcase(cell[1], profiles)
    ]


def picked(comparison: Comparison, cell: Cell, group: Group) -> str:
    """Return the agent of a group that counts on a cell; empty if none has results there."""

    def order(agent: str) -> tuple[float, float]:
        mean = comparison.mean
        return mean(agent, AVOIDABLE, cell), mean(agent, "core_seconds", cell)

    there = [agent for agent in group if comparison.has(agent, cell)]
    return min(there, key=order, default="")


def shared(comparison: Comparison, cells: Sequence[Cell], *groups: Group) -> list[Cell]:
    """Return the cells on which all groups have results."""
    return [c for c in cells if all(picked(comparison, c, group) for group in groups)]


def values(comparison: Comparison, group: Group, name: str, cells: Sequence[Cell]) -> FloatArray:
    """Return a metric of a group, shape (cells, seeds)."""
    return np.concatenate(
        [comparison.values(picked(comparison, cell, group), name, [cell]) for cell in cells]
    )


def rates(
    comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group
) -> Rates | None:
    """Compare avoidable violations; None if the two share no cell."""
    cells = shared(comparison, cells, ours, theirs)
    if not cells:
        return None
    a, b = (values(comparison, group, AVOIDABLE, cells) for group in (ours, theirs))
    return Rates(float(a.mean()), float(b.mean()), paired_p(a, b))


def corrected(found: Sequence[Rates]) -> list[Rates]:
    """Return comparisons that are read together, with p values by Holm's method."""
    adjusted = holm([r.p for r in found])
    return [replace(r, p=p) for r, p in zip(found, adjusted, strict=True)]


def core_ratios(
    comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group
) -> FloatArray:
    """Return our core-seconds relative to theirs, means over the seeds; shape (cells,)."""
    a, b = (values(comparison, g, "core_seconds", cells).mean(axis=1) for g in (ours, theirs))
    return np.asarray(a / b)


def named(comparison: Comparison, group: Group) -> str:
    """Return what to call a group: only those of it that the run has."""
    there = [agent for agent in group if agent in comparison.agents]
    return there[0] if len(there) == 1 else f"the better of {listed(there)}"


def picks(comparison: Comparison, cells: Sequence[Cell], group: Group) -> str:
    """Say which agent of a group counted in how many cells; empty if there was no choice."""
    if sum(agent in comparison.agents for agent in group) < 2:
        return ""
    counts = Counter(picked(comparison, cell, group) for cell in cells)
    return listed([f"{agent} in {count}" for agent, count in counts.most_common()])
