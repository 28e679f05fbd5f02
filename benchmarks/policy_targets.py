"""Learned controllers beside the best rule or program of each cell of a run.

The best is the cheapest of those with few avoidable violations or, where nobody has few, whoever
has the fewest. All controllers that are not learned are rules or programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agents import LEARNERS
from agents.learn.evaluation import TOLERANCE
from benchmarks.pairs import CORES, Group, picked, shared
from benchmarks.verdicts import Target, Verdict
from sponge_env.arrays import FloatArray
from sponge_env.results.comparison import AVOIDABLE, FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.layout import listed, percent
from sponge_env.results.statistics import SIGNIFICANCE, paired_p

BEST = f"cheapest rule or program with at most {percent(FEW_VIOLATIONS, 1)} avoidable violations"


@dataclass(frozen=True, slots=True)
class Won:
    """In how many cells a policy holds fewer cores than the rule, and what it violates there."""

    cells: int
    fewer: int
    """Cells with fewer cores; the next three add up to it."""
    no_more: int
    """Of these, with at most :data:`.TOLERANCE` of the requests violated beyond the rule's."""
    undecided: int
    """With more than that, which chance could explain: a paired test over the seeds, for each
    cell alone. With few seeds that is said of any difference."""
    more: int
    """With significantly more."""

    @classmethod
    def of(cls, core_ratios: FloatArray, excess: FloatArray, p: FloatArray) -> Won:
        """Count (cells,) core ratios and violations beyond the rule's, with their p values."""
        fewer = core_ratios < 1
        no_more = fewer & (excess <= TOLERANCE)
        more = fewer & ~no_more & (p < SIGNIFICANCE)
        counts = [int(np.count_nonzero(cells)) for cells in (fewer, no_more, more)]
        return cls(core_ratios.size, *counts[:2], counts[0] - counts[1] - counts[2], counts[2])

    def __str__(self) -> str:
        """Say all counts."""
        return (
            f"fewer cores in {self.fewer} of {self.cells}: {self.no_more} with at most "
            f"{percent(TOLERANCE, 2)} of the requests more violated, {self.undecided} with more, "
            f"not significantly (p >= {SIGNIFICANCE:g} each), {self.more} with significantly more"
        )


class AgainstRule(NamedTuple):
    """A policy beside a rule, in one cell."""

    core_ratio: float
    """Its cores relative to the rule's."""
    core_p: float
    """P value of "both hold equally many cores", for this cell alone."""
    excess: float
    """Avoidable violations beyond the rule's, as a share of the requests."""
    excess_p: float
    """P value of "both have equally many"."""


def cheapest_learned(comparison: Comparison, least: float, most: float) -> Iterator[Target]:
    """The cheapest policy of each cell with few violations: fewer cores in a share of the cells."""
    rules, learned = _sides(comparison)
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), learned, rules)
        if not cells:
            continue
        found = [_cheapest(comparison, cell, learned, rules) for cell in cells]
        there = [one for one in found if one]
        fewer = [one for one in there if one.core_ratio < 1]
        shown = sum(one.core_p < SIGNIFICANCE for one in fewer)
        dearer, missing = sum(one.core_ratio > most for one in there), found.count(None)
        possible = not dearer and not missing
        yield Target(
            f"best learned controller ({listed(learned)}) against the {BEST}, {start} start: cores "
            f"at no more avoidable violations than the rule's or {percent(FEW_VIOLATIONS, 1)}, "
            "whichever is more",
            f"fewer in at least {percent(least)} of the cells, {_over(most)} in none",
            f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g}, each for "
            f"itself), {_over(most)} in {dearer}, no policy with so few violations in {missing}",
            _share_verdict(least * len(found), shown, len(fewer)) if possible else "missed",
        )


def one_learned(
    comparison: Comparison, ours: str, least: float, most: float, without: Group = ()
) -> Iterator[Target]:
    """One policy in all cells: fewer cores at no more violations in a share of them.

    What is found is also told against the rules ``without`` some.
    """
    rules = _sides(comparison)[0]
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), [ours], rules)
        if not cells:
            continue
        ratios, core_ps, excess, excess_ps = _in_each(comparison, cells, ours, rules)
        won = Won.of(ratios, excess, excess_ps)
        shown = (ratios < 1) & (excess <= TOLERANCE) & (core_ps < SIGNIFICANCE)
        dearest, worst = cells[int(ratios.argmax())], cells[int(excess.argmax())]
        verdict = _share_verdict(least * len(cells), int(shown.sum()), won.no_more + won.undecided)
        yield Target(
            f"{ours} against the {BEST} of each cell, {start} start: fewer cores at no more "
            f"avoidable violations (at most {percent(TOLERANCE, 2)} of the requests more)",
            f"in at least {percent(least)} of the cells, {_over(most)} in none",
            f"{won}; fewer cores and no more violations with p < {SIGNIFICANCE:g} of the cores in "
            f"{shown.sum()}; at most {ratios.max():.3f} times the rule's cores "
            f"({', '.join(dearest[:2])}) and {percent(max(0.0, float(excess.max())), 3)} of the "
            f"requests more violated ({', '.join(worst[:2])})"
            f"{_told_without(comparison, cells, ours, rules, without)}",
            verdict if ratios.max() <= most else "missed",
        )


def _told_without(
    comparison: Comparison, cells: Sequence[Cell], ours: str, rules: Sequence[str], without: Group
) -> str:
    """Say what is found where some rules do not count; nothing if the run has none of them."""
    others = [agent for agent in rules if agent not in without]
    if len(others) == len(rules):
        return ""
    ratios, _, excess, p = _in_each(comparison, cells, ours, others)
    return (
        f"; without {listed([agent for agent in rules if agent in without])}: "
        f"{Won.of(ratios, excess, p)}, at most {ratios.max():.3f} times the cores"
    )


def _sides(comparison: Comparison) -> tuple[list[str], list[str]]:
    """Return the rules and programs of a run, and what was learned."""
    agents = comparison.agents
    return [a for a in agents if a not in LEARNERS], [a for a in agents if a in LEARNERS]


def _over(most: float) -> str:
    return f"over {percent(most - 1)} more cores"


def _share_verdict(wanted: float, shown: int, possible: int) -> Verdict:
    """Say whether so many cells are enough: those that are shown, or all that are possible."""
    if shown >= wanted:
        return "met"
    return "not decidable" if possible >= wanted else "missed"


def _cheapest(
    comparison: Comparison, cell: Cell, policies: Group, rules: Sequence[str]
) -> AgainstRule | None:
    """Return the cheapest policy that violates no more than is few, or than the best rule does."""
    rule = _best(comparison, cell, rules)
    allowed = max(FEW_VIOLATIONS, comparison.mean(rule, AVOIDABLE, cell))
    policy = comparison.cheapest(cell, policies, allowed)
    return _against(comparison, cell, policy, rule) if policy else None


def _best(comparison: Comparison, cell: Cell, rules: Sequence[str]) -> str:
    return comparison.cheapest(cell, rules) or picked(comparison, cell, rules)


def _in_each(
    comparison: Comparison, cells: Sequence[Cell], ours: str, rules: Sequence[str]
) -> FloatArray:
    """Return (4, cells) what :class:`AgainstRule` has of the best rule of each cell."""
    of = [_against(comparison, cell, ours, _best(comparison, cell, rules)) for cell in cells]
    return np.array(of).T


def _against(comparison: Comparison, cell: Cell, policy: str, rule: str) -> AgainstRule:
    our_cores, their_cores = (comparison.values(a, CORES, [cell]) for a in (policy, rule))
    ours, theirs = (comparison.values(a, AVOIDABLE, [cell]) for a in (policy, rule))
    return AgainstRule(
        float(our_cores.mean() / their_cores.mean()),
        paired_p(np.log(our_cores), np.log(their_cores)),
        float(ours.mean() - theirs.mean()),
        paired_p(ours, theirs),
    )
