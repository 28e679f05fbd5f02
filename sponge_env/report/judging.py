"""Targets, and when one counts as met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sponge_env.report.agents import HORIZONTAL, PUBLISHED_HORIZONTAL, Group
from sponge_env.report.rates import Rates, corrected, picks, rates, shared
from sponge_env.report.tables import Entry, Table
from sponge_env.suite.comparison import Cell, Comparison

Verdict = Literal["met", "missed", "not decidable"]
"""The last: there is nothing to divide, a number is missing, or chance could explain it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What was to be reached, beside what a run shows."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Times:
    """How many times as many avoidable violations others have, on some cells."""

    rates: Rates
    """With p values corrected for those that were compared beside them."""
    cells: Sequence[Cell]
    alone: int
    """Cells on which, each for itself, they have as many times as wanted."""
    chosen: str
    """Which of the others counted where, if there was a choice."""

    @property
    def text(self) -> str:
        """All of it."""
        parts = [f"{self.rates}, p = {self.rates.p:.2g}"]
        if len(self.cells) > 1:
            parts.append(f"in {self.alone} of {len(self.cells)} cells each for itself")
        return "; ".join([*parts, *([self.chosen] if self.chosen else [])])

    def at_least(self, wanted: float) -> Verdict:
        """Judge whether they have so many times as many."""
        if self.rates.ratio < wanted:
            return "missed"
        return "met" if self.rates.ratio >= wanted and self.rates.significant else "not decidable"


def times(
    comparison: Comparison, pairs: Sequence[tuple[Group, Group, Sequence[Cell]]], wanted: float
) -> list[Times | None]:
    """Compare avoidable violations of (ours, theirs) on cells, as one family of tests.

    Args:
        comparison: The run.
        pairs: What is compared.
        wanted: How many times as many theirs should be.

    Returns:
        In the order of ``pairs``, None where the two share no cell.
    """
    found = [rates(comparison, cells, ours, theirs) for ours, theirs, cells in pairs]
    adjusted = iter(corrected([r for r in found if r]))
    return [
        _times(comparison, pair, next(adjusted), wanted) if r else None
        for pair, r in zip(pairs, found, strict=True)
    ]


def _times(
    comparison: Comparison,
    pair: tuple[Group, Group, Sequence[Cell]],
    pooled: Rates,
    wanted: float,
) -> Times:
    ours, theirs, cells = pair
    cells = shared(comparison, cells, ours, theirs)
    each = [rates(comparison, [cell], ours, theirs) for cell in cells]
    alone = sum(r is not None and r.ratio >= wanted for r in each)
    return Times(pooled, cells, alone, picks(comparison, cells, theirs))


def horizontal_groups(comparison: Comparison) -> list[Group]:
    """Return what stands for the horizontal scaler: its better form, and the published one."""
    groups = (HORIZONTAL, PUBLISHED_HORIZONTAL)
    return [group for group in groups if any(agent in comparison.agents for agent in group)]


def at_most(value: float, limit: float) -> Verdict:
    """Judge a number that is no comparison."""
    return "met" if value <= limit else "missed"


def all_of(*verdicts: Verdict) -> Verdict:
    """Judge a target of several parts."""
    worst: tuple[Verdict, ...] = ("missed", "not decidable")
    return next((verdict for verdict in worst if verdict in verdicts), "met")


def target_table(found: Sequence[Target]) -> Table:
    """Return targets as a table."""
    return Table(
        ["target", "wanted", "measured", ""],
        [[Entry(t.what), Entry(t.wanted), Entry(t.measured), Entry(t.verdict)] for t in found],
    )
