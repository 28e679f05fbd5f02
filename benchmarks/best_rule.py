"""Learned controllers beside the best rule or program of each cell of a run.

The best is the cheapest with few avoidable violations or, where nobody has few, whoever has the
fewest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.pairs import AVOIDABLE, CORES, Group, Target, picked, shared
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.layout import code, listed, percent
from sponge_env.results.statistics import SIGNIFICANCE, paired_p

TOLERANCE = 1e-4
"""Share of the requests by which a policy may violate more and still count as violating no more."""


class Beside(NamedTuple):
    """A policy beside the best rule of a cell."""

    cores: float
    """Relative to the rule's."""
    cores_p: float
    """That both hold as many, for this cell alone."""
    more: float
    """Avoidable violations beyond the rule's, as a share of the requests."""
    more_p: float
    """That both have as many, for this cell alone."""


def cheapest_learned(
    comparison: Comparison, learned: Group, least: float, most: float
) -> Iterator[Target]:
    """The cheapest policy of each cell with few violations: fewer cores in a share of the cells."""
    rules = [agent for agent in comparison.agents if agent not in learned]
    present = [agent for agent in comparison.agents if agent in learned]
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), learned, rules)
        if not cells:
            continue
        found = [_cheapest(comparison, cell, learned, rules) for cell in cells]
        there = [one for one in found if one]
        fewer = [one for one in there if one.cores < 1]
        shown = sum(one.cores_p < SIGNIFICANCE for one in fewer)
        worse, missing = sum(one.cores > most for one in there), found.count(None)
        wanted = least * len(found)
        enough = len(fewer) >= wanted and not worse and not missing
        yield Target(
            f"best learned controller ({listed(present)}) against the best rule or program, "
            f"{start} start: cores at no more avoidable violations than the rule's or "
            f"{percent(FEW_VIOLATIONS, 1)}, whichever is more",
            f"fewer in {percent(least)} of the cells, {_over(most)} in none",
            f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g} each for "
            f"itself, uncorrected), {_over(most)} in {worse}, no policy with so few violations "
            f"in {missing}",
            "missed" if not enough else "met" if shown >= wanted else "not decidable",
        )


def one_learned(
    comparison: Comparison,
    ours: str,
    learned: Group,
    least: float,
    most: float,
    without: Group = (),
) -> Iterator[Target]:
    """One policy in all cells: fewer cores at no more violations in a share of them.

    No more are :data:`TOLERANCE` more at most, or more that are not significant.
    """
    rules = [agent for agent in comparison.agents if agent not in (*learned, *without)]
    left_out = [agent for agent in without if agent in comparison.agents]
    if without and not left_out:
        return
    but = f" but {listed([code(agent) for agent in left_out])}" * bool(left_out)
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), [ours], rules)
        if not cells:
            continue
        found = [_beside(comparison, c, ours, _best(comparison, c, rules)) for c in cells]
        fewer = [one for one in found if one.cores < 1]
        strictly = sum(one.more <= TOLERANCE for one in fewer)
        shown = sum(one.more > TOLERANCE and one.more_p < SIGNIFICANCE for one in fewer)
        alike, dearest = len(fewer) - shown, max(one.cores for one in found)
        enough = alike >= least * len(found) and dearest <= most
        yield Target(
            f"{code(ours)} in each cell against the best of all rules and programs{but}, {start} "
            f"start: fewer cores at no more avoidable violations (at most {percent(TOLERANCE, 2)} "
            "of the requests more, or not significantly more)",
            f"in {percent(least)} of the cells, {_over(most)} in none",
            f"fewer cores in {len(fewer)} of {len(found)}: in {strictly} at most "
            f"{percent(TOLERANCE, 2)} more violations, in {alike - strictly} more that are not "
            f"significant (p >= {SIGNIFICANCE:g}, each for itself), in {shown} significantly more; "
            f"at most {dearest:.3f} times the rule's cores",
            "met" if enough else "missed",
        )


def _over(most: float) -> str:
    return f"over {percent(most - 1)} more"


def _best(comparison: Comparison, cell: Cell, rules: Sequence[str]) -> str:
    """Return the cheapest rule with few violations or, if none has few, that with the fewest."""
    there = [agent for agent in rules if comparison.has(agent, cell)]
    few = [a for a in there if comparison.mean(a, AVOIDABLE, cell) <= FEW_VIOLATIONS]
    if not few:
        return picked(comparison, cell, rules)
    return min(few, key=lambda agent: comparison.mean(agent, CORES, cell))


def _cheapest(
    comparison: Comparison, cell: Cell, policies: Group, rules: Sequence[str]
) -> Beside | None:
    """Return the cheapest policy that violates no more than is few, or than the best rule does."""
    rule = _best(comparison, cell, rules)
    allowed = max(FEW_VIOLATIONS, comparison.mean(rule, AVOIDABLE, cell))
    there = [agent for agent in policies if comparison.has(agent, cell)]
    able = [a for a in there if comparison.mean(a, AVOIDABLE, cell) <= allowed]
    if not able:
        return None
    policy = min(able, key=lambda agent: comparison.mean(agent, CORES, cell))
    return _beside(comparison, cell, policy, rule)


def _beside(comparison: Comparison, cell: Cell, policy: str, rule: str) -> Beside:
    cores, violations = (
        [comparison.values(agent, name, [cell]) for agent in (policy, rule)]
        for name in (CORES, AVOIDABLE)
    )
    ours, theirs = (values.mean() for values in cores)
    more = violations[0].mean() - violations[1].mean()
    return Beside(
        float(ours / theirs), paired_p(*map(np.log, cores)), float(more), paired_p(*violations)
    )
