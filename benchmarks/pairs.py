"""Two controllers, or groups of them, on the cells of a run: how they differ, and what was wanted.

The measure is the same for both sides: avoidable violations (those of requests that were not
hopeless on arrival) and core-seconds. What is relative to a bound would be relative to another
one for another kind of scaling. Either side may be a group of agents. In each cell that one of
it counts which has the fewest avoidable violations there, and of several the fewest
core-seconds. Differences that one sentence or target lists are one family of tests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.verdicts import Target, Verdict, all_of, at_most
from sponge_env.arrays import FloatArray
from sponge_env.results.comparison import AVOIDABLE, Cell, Comparison
from sponge_env.results.layout import listed, percent
from sponge_env.results.statistics import SIGNIFICANCE, fewest_seeds, holm, paired_p

Group = Sequence[str]

CORES = "core_seconds"

NO_DIFFERENCE, TOO_FEW = "no significant difference", "too few seeds to tell"


@dataclass(frozen=True, slots=True)
class Rates:
    """Avoidable violations of two controllers on the same cells."""

    ours: float
    """Per request offered, mean over cells and seeds."""
    theirs: float
    p: float
    """That they differ so much by chance."""
    seeds: int = 0
    tests: int = 1
    """How many are corrected for, this one included."""

    @property
    def significant(self) -> bool:
        """Whether they are shown to differ."""
        return self.p < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        """What theirs are, beside ours."""
        if not self.significant:
            return NO_DIFFERENCE if self.seeds >= fewest_seeds(self.tests) else TOO_FEW
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
            return "none against none"
        both = f"{percent(self.theirs, 3)} against {percent(self.ours, 3)}"
        times = f"{float(f'{self.ratio:.3g}'):g} times"  # 1330 rather than 1.33e+03
        return f"{times}: {both}" if 0 < self.ratio < math.inf else both


def picked(comparison: Comparison, cell: Cell, group: Group) -> str:
    """Return the agent of a group that counts on a cell; empty if none has results there."""
    there = [agent for agent in group if comparison.has(agent, cell)]
    order = (AVOIDABLE, CORES)
    return min(there, key=lambda a: [comparison.mean(a, n, cell) for n in order], default="")


def corrected(found: Sequence[Rates]) -> list[Rates]:
    """Return comparisons that are read together, with p values by Holm's method."""
    ps = holm([r.p for r in found])
    return [replace(r, p=p, tests=len(ps)) for r, p in zip(found, ps, strict=True)]


@dataclass(frozen=True, slots=True)
class Pair:
    """Ours and theirs on the cells that both have, and what targets say about them."""

    comparison: Comparison
    place: str
    """What to call the cells."""
    cells: Sequence[Cell]
    ours: Group
    theirs: Group
    violations: Sequence[FloatArray]
    """(cells, seeds) ours and theirs: avoidable ones per request offered."""
    core_ratios: FloatArray
    """(cells,) our core-seconds relative to theirs, means over the seeds."""
    over_bound: Sequence[float]
    """Cores over the bound of all agents, ours and theirs, as tables show them; NaN without it."""
    rates: Rates
    cores_p: float
    """That both hold as many cores."""

    @classmethod
    def of(
        cls, comparison: Comparison, place: str, cells: Sequence[Cell], ours: Group, theirs: Group
    ) -> Pair:
        """Compare two groups on cells on which both have results."""

        def values(group: Group, name: str) -> FloatArray:
            agents = [(picked(comparison, cell, group), cell) for cell in cells]
            return np.concatenate([comparison.values(a, name, [cell]) for a, cell in agents])

        pooled = partial(comparison.by_family, cells)
        violations = [values(group, AVOIDABLE) for group in (ours, theirs)]
        means = [pooled(v) for v in violations]
        seeds = means[0].shape[-1]
        rates = Rates(*(float(v.mean()) for v in means), paired_p(*means), seeds)
        a, b = (values(group, CORES) for group in (ours, theirs))
        ratios = a.mean(axis=1) / b.mean(axis=1)
        cores_p = paired_p(pooled(np.log(a)), pooled(np.log(b)))
        over = [pooled(values(g, "cores_over_common_bound")).mean() for g in (ours, theirs)]
        return cls(comparison, place, cells, ours, theirs, violations, ratios, over, rates, cores_p)

    @property
    def core_ratio(self) -> float:
        """Our core-seconds relative to theirs, geometric mean over families of cells.

        Theirs relative to ours is 1 / this, as with no arithmetic mean of ratios.
        """
        return float(np.exp(self.comparison.by_family(self.cells, np.log(self.core_ratios)).mean()))

    @property
    def against_tables(self) -> str:
        """What to add where the tables' mean says that the other side has fewer cores."""
        ours, theirs = self.over_bound
        if not (ours - theirs) * math.log(self.core_ratio) < 0:
            return ""
        return (
            f" (though {ours:.2f} against {theirs:.2f} times the bound's cores in the tables, "
            "whose mean is arithmetic: cells with many times the bound's cores weigh more)"
        )

    @property
    def rivals(self) -> str:
        """What to call them: only those that the run has."""
        there = [agent for agent in self.theirs if agent in self.comparison.agents]
        best = "better" if len(there) == 2 else "best"
        return there[0] if len(there) == 1 else f"the {best} of {listed(there)}"

    @property
    def picks(self) -> str:
        """Which of them counted in how many cells; empty if there was no choice."""
        if sum(agent in self.comparison.agents for agent in self.theirs) < 2:
            return ""
        counts = Counter(picked(self.comparison, cell, self.theirs) for cell in self.cells)
        return listed([f"{agent} in {count}" for agent, count in counts.most_common()])

    def times(self, least: float) -> Target:
        """How many times as many avoidable violations they have, and in how many cells."""
        found, total = self.rates, len(self.cells)
        means = zip(*(v.mean(axis=1).tolist() for v in self.violations), strict=True)
        alone = sum(Rates(a, b, math.nan).ratio >= least for a, b in means)
        parts = [
            f"{found}, p = {found.p:.2g}",
            f"in {alone} of {total} cells each for itself" if total > 1 else "",
            self.picks,
            found.verdict if found.verdict == TOO_FEW else "",
        ]
        sure: Verdict = "met" if found.ratio >= least and found.significant else "not decidable"
        verdict: Verdict = "missed" if found.ratio < least else sure
        measured = "; ".join(filter(None, parts))
        return Target("avoidable violations", f"at least {least:g} times", measured, verdict)

    def cores(self, most: float) -> Target:
        """Our cores relative to theirs, at no more violations."""
        ratio, found = self.core_ratio, self.rates
        fewer: Verdict = "met" if self.cores_p < SIGNIFICANCE else "not decidable"
        # More violations by chance alone decide nothing.
        more: Verdict = "missed" if found.significant else "not decidable"
        few: Verdict = fewer if ratio <= most else "missed"
        return Target(
            "cores at no more avoidable violations",
            f"at most {most:.2f}",
            f"{ratio:.2f}, p = {self.cores_p:.2g} ({percent(found.ours, 3)} against "
            f"{percent(found.theirs, 3)} avoidable violations)",
            all_of(few, "met" if found.ours <= found.theirs else more),
        )

    def cores_everywhere(self, most: float) -> Target:
        """Our cores relative to theirs, worst cell."""
        ratios = self.core_ratios
        measured = f"cores {self.core_ratio:.2f}, at most {ratios.max():.2f}"
        wanted = f"at most {most:.2f} in every cell"
        return Target(f"{self.ours[0]}'s cores", wanted, measured, at_most(ratios.max(), most))

    def violated(self, most: float) -> Target:
        """Our avoidable violations, worst cell."""
        means = self.violations[0].mean(axis=1)
        worst, cell = means.max(), self.cells[int(means.argmax())]
        whose = f"{self.ours[0]}'s " if self.theirs != self.ours else ""
        wanted = f"at most {percent(most, 2)} in every cell"
        measured = f"at most {percent(worst, 3)} ({', '.join(cell[:2])})"
        return Target(f"{whose}avoidable violations", wanted, measured, at_most(worst, most))

    def claimed_violations(self) -> str:
        """How many times as many violations of any kind they have."""
        ours, theirs = (self.all_violations(group) for group in (self.ours, self.theirs))
        return f"{Rates(float(ours.mean()), float(theirs.mean()), paired_p(ours, theirs))}"

    def claimed_cores(self) -> str:
        """How many cores we save, and what that costs."""
        ours, theirs = (self.all_violations(group).mean() for group in (self.ours, self.theirs))
        saved = 1 - self.core_ratio
        return (
            f"{percent(abs(saved), 1)} {'fewer' if saved >= 0 else 'more'}, with "
            f"{percent(ours, 3)} violations against {percent(theirs, 3)}"
        )

    def claimed_rate(self) -> str:
        """Which share of the requests violates, whether it could be avoided or not."""
        rate = self.all_violations(self.ours).mean()
        return f"{percent(rate, 3)}, {percent(self.rates.ours, 3)} avoidable"

    def all_violations(self, group: Group) -> FloatArray:
        """Return violations per request, (families, seeds), hopeless requests included."""
        found = [(picked(self.comparison, cell, group), cell) for cell in self.cells]
        rates = [self.comparison.values(a, "violation_rate", [cell]) for a, cell in found]
        return self.comparison.by_family(self.cells, np.concatenate(rates))


LIMITS: Mapping[str, Callable[[Pair, float], Target]] = {
    "times": Pair.times,
    "cores": Pair.cores,
    "cores_everywhere": Pair.cores_everywhere,
    "violations": Pair.violated,
}
"""By their keys in the file, what is said of a pair; the value there is what is wanted."""


def pairs(
    comparison: Comparison, of: Iterable[tuple[str, Sequence[Cell], Group, Group]]
) -> list[Pair]:
    """Compare places, with their cells, ours and theirs, as one family; without empty ones."""
    found = [
        Pair.of(comparison, place, there, ours, theirs)
        for place, cells, ours, theirs in of
        if (there := shared(comparison, cells, ours, theirs))
    ]
    rates, ps = corrected([pair.rates for pair in found]), holm([pair.cores_p for pair in found])
    return [replace(pair, rates=r, cores_p=p) for pair, r, p in zip(found, rates, ps, strict=True)]


def shared(comparison: Comparison, cells: Sequence[Cell], *groups: Group) -> list[Cell]:
    """Return the cells on which all groups have results."""
    return [c for c in cells if all(picked(comparison, c, group) for group in groups)]
