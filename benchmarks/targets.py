"""What this project set out to reach, in a run: ``python -m benchmarks.targets RUN``.

As ``python -m sponge_env.results``, and says in the Markdown what the run shows about this
project's controllers and which of its targets it meets. ``targets.toml`` declares both; here is
a function for each kind, whose arguments are the keys in the file. Numbers and direction come
from the data. What the run lacks the agents, starts or bounds for is left out.

The measure is the same for both sides: avoidable violations (those of requests that were not
hopeless on arrival) and core-seconds. What is relative to a bound would be relative to another
one for another kind of scaling. Either side may be a group of agents. In each cell that one of
it counts which has the fewest avoidable violations there, and of several the fewest
core-seconds. Differences that one sentence or target lists are one family of tests.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from benchmarks.readme import SUMMARY, first_minute
from sponge_env import cli
from sponge_env.arrays import FloatArray
from sponge_env.config import ControlName
from sponge_env.fidelity.report import Fidelity
from sponge_env.results.__main__ import run
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.layout import Table, listed, markdown, percent
from sponge_env.results.page import Remarks, Section
from sponge_env.results.statistics import SIGNIFICANCE, fewest_seeds, holm, paired_p
from sponge_env.run.suite import BOUND_AGENTS

DECLARED: dict[str, Any] = tomllib.loads(Path(__file__).with_name("targets.toml").read_text())

T = TypeVar("T")

Group = Sequence[str]

Verdict = Literal["met", "missed", "not decidable"]
"""The last: there is nothing to divide, a number is missing, or chance could explain it."""

AVOIDABLE, CORES = "avoidable_violation_rate", "core_seconds"

NO_DIFFERENCE, TOO_FEW = "no significant difference", "too few seeds to tell"


class Target(NamedTuple):
    """What was to be reached, beside what a run shows."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict


def at_most(value: float, limit: float) -> Verdict:
    """Say whether a number is within its limit, which is no comparison."""
    return "met" if value <= limit else "missed"


def all_of(*verdicts: Verdict) -> Verdict:
    """Say whether a target of several parts is met: the worst of them decides."""
    return min(verdicts, key=("missed", "not decidable", "met").index)


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


def _more_violations(comparison: Comparison, ours: Group, theirs: Group) -> Iterator[str]:
    """Say in which scenarios they have more avoidable violations than we, and where not."""
    for start in comparison.starts:
        kinds = comparison.kinds.items()
        of = [(k, [c for s in ss for c in comparison.cells_of(s, start)]) for k, ss in kinds]
        found = pairs(comparison, [(*place, ours, theirs) for place in of])
        groups: dict[str, list[str]] = {"more": [], "fewer": [], NO_DIFFERENCE: [], TOO_FEW: []}
        for pair in found:
            cores = f"on {1 / pair.core_ratio:.2f} times the cores{pair.against_tables}"
            groups[pair.rates.verdict].append(f"{pair.place} ({pair.rates}, {cores})")
        parts = [f"{verdict} in {listed(where)}" for verdict, where in groups.items() if where]
        if parts:
            yield (
                f"Avoidable violations of {found[0].rivals} against {ours[0]}, "
                f"{start} start: {'; '.join(parts)}."
            )


def _first_minute(comparison: Comparison, agent: str) -> Iterator[str]:
    """Say whether an agent violates right after a cold start."""
    shares = first_minute(comparison, agent)
    shares.pop("", None)
    what = f"{agent}'s avoidable violations after a cold start (first seed)"
    for said, early in (("fall into", True), ("come after", False)):
        where = [f"{n} ({percent(s)})" for n, s in shares.items() if (s > 0.5) == early]
        if where:
            yield f"Most of {what} {said} the first minute in {listed(where)}."


def _fewer_cores(
    comparison: Comparison, ours: Group, theirs: Group, why: str = ""
) -> Iterator[str]:
    """Say how many cores we hold against them, and who violates more, after what explains it."""
    said = []
    for start in comparison.starts:
        for pair in pairs(comparison, [(start, comparison.cells_of(start=start), ours, theirs)]):
            ratio = pair.core_ratio
            said.append(
                f"With a {start} start, {ours[0]} holds {percent(abs(1 - ratio))} "
                f"{'fewer' if ratio < 1 else 'more'} cores than {theirs[0]}{pair.against_tables}, "
                f"whose avoidable violations are {_beside_ours(pair.rates)}."
            )
    if said:
        yield " ".join(filter(None, [why, *said]))


def _beside_ours(rates: Rates) -> str:
    verdict = rates.verdict
    shown = verdict if verdict in ("more", "fewer") else f"not shown to differ ({verdict})"
    return f"{shown}: {rates}"


def _compared(
    comparison: Comparison,
    ours: Group,
    cells: Sequence[Mapping[str, str]],
    theirs: Sequence[Group] = (),
    **limits: float,
) -> Iterator[Target]:
    """Our violations and cores beside theirs, a row for each choice of cells and each of them.

    The limits are keys of :data:`LIMITS`.
    """
    there = [group for group in theirs if any(agent in comparison.agents for agent in group)]
    others = there if theirs else [ours]
    of = [(*_chosen(comparison, **c), ours, group) for c, group in product(cells, others)]
    for pair in pairs(comparison, of):
        *texts, verdicts = zip(
            *(LIMITS[name](pair, limit) for name, limit in limits.items()), strict=True
        )
        names = [ours[0], pair.rivals] if theirs else [ours[0]]
        who = " / ".join(reversed(names) if "times" in limits else names)
        what, wanted, measured = (
            joint.join(text) for joint, text in zip((", and ", ", and ", "; "), texts, strict=True)
        )
        yield Target(f"{who}, {pair.place}: {what}", wanted, measured, all_of(*verdicts))


def _chosen(
    comparison: Comparison, start: str, where: str = "", scenarios: str = "", profiles: str = "*"
) -> tuple[str, list[Cell]]:
    """Return the cells whose scenario and profile match patterns, after what to call them."""
    names = [where or scenarios, f"{start} start"]
    matching = [
        cell
        for cell in comparison.cells_of(start=start)
        if fnmatchcase(cell[0], scenarios or "*") and fnmatchcase(cell[1], profiles)
    ]
    return ", ".join(filter(None, names)), matching


def _bound_gap(comparison: Comparison, most: float) -> Iterator[Target]:
    """How far apart the two sides of a bound are, worst cell."""
    for name, gaps in comparison.bound_gaps().items():
        cores = gaps["cores"]
        yield Target(
            f"bound {name}: gap between its sides",
            f"at most {percent(most)} of core-seconds in every cell",
            f"in {(cores <= most).sum()} of {len(cores)} cells; median "
            f"{percent(cores.median(), 1)}, most {percent(cores.max(), 1)}",
            at_most(cores.max(), most),
        )


def _over_bound(comparison: Comparison, scaling: ControlName, most: float) -> Iterator[Target]:
    """The best controller of a kind of scaling beside its bound, in every cell."""
    name = BOUND_AGENTS[scaling]
    if comparison.bounds.empty or name not in set(comparison.bounds["agent"]):
        return
    for start in comparison.starts:
        cells = comparison.cells_of(start=start)
        found = {cell: _nearest(comparison, cell, name) for cell in cells}
        known = {cell: near for cell, near in found.items() if near}
        if not known:
            continue
        few = {cell: near for cell, near in known.items() if near[1]}
        within = sum(ratio <= most for ratio, _ in few.values())
        parts = [f"in {within} of {len(known)} cells"]
        if few:
            worst = max(few, key=lambda cell: few[cell][0])
            middle = median(ratio for ratio, _ in few.values())
            parts.append(f"median {middle:.2f}, most {few[worst][0]:.2f} ({_where(worst)})")
        if none := [cell for cell in known if cell not in few]:
            parts.append(f"nobody with so few violations in {listed([_where(c) for c in none])}")
        yield Target(
            f"best {scaling} controller over what {name} attains, {start} start: cores",
            f"at most {most:.2f} in every cell, with at most {percent(FEW_VIOLATIONS, 1)} "
            "violations beyond those attained",
            "; ".join(parts),
            "missed"
            if within < len(known)
            else "met"
            if len(known) == len(cells)
            else "not decidable",
        )


def _where(cell: Cell) -> str:
    return f"{cell[0]} with {cell[1]}"


def _nearest(comparison: Comparison, cell: Cell, bound: str) -> tuple[float, str] | None:
    """Find who has the fewest cores over a bound, among those with few violations beyond it.

    Returned are these cores and the name, which is empty if nobody has few; None without a bound.
    """
    own = [a for a in comparison.there(cell) if comparison.own_bound(a, cell) == bound]
    ratios = {agent: comparison.mean(agent, "cores_over_bound", cell) for agent in own}
    known = {agent: ratio for agent, ratio in ratios.items() if not math.isnan(ratio)}
    if not known:
        return None
    few = [a for a in known if comparison.mean(a, "beyond_bound_rate", cell) <= FEW_VIOLATIONS]
    best = min(few, key=known.__getitem__, default="")
    return known.get(best, math.nan), best


def _learned(comparison: Comparison, ours: Group, most: float) -> Iterator[Target]:
    """The best policy against the best of all others, cell by cell."""
    rules, more = [agent for agent in comparison.agents if agent not in ours], percent(most - 1)
    present = [agent for agent in comparison.agents if agent in ours]
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), ours, rules)
        if not cells:
            continue
        found = [_against_rules(comparison, cell, ours, rules) for cell in cells]
        there = [one for one in found if one]
        fewer = [p for ratio, p in there if ratio < 1.0]
        shown = sum(p < SIGNIFICANCE for p in fewer)
        worse, missing = sum(ratio > most for ratio, _ in there), found.count(None)
        enough = 2 * len(fewer) >= len(found) and not worse and not missing
        yield Target(
            f"best learned controller ({listed(present)}) against the best rule or program, "
            f"{start} start: cores at no more avoidable violations than the rule's or "
            f"{percent(FEW_VIOLATIONS, 1)}, whichever is more",
            f"fewer in at least half of the cells, over {more} more in none",
            f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g} each for "
            f"itself, uncorrected), over {more} more in {worse}, no policy with so few violations "
            f"in {missing}",
            "missed" if not enough else "met" if 2 * shown >= len(found) else "not decidable",
        )


def _against_rules(
    comparison: Comparison, cell: Cell, policies: Group, rules: Group
) -> tuple[float, float] | None:
    """Compare the cheapest policy with few violations with the best rule, if there is one.

    The best rule is the cheapest with few violations or, where none has few, the one with the
    fewest, which then are the few of a policy. Returned are cores relative to the rule's, and
    the p value that both are alike, for this cell alone.
    """
    there = comparison.there(cell)
    cores, violations = (
        {agent: comparison.mean(agent, name, cell) for agent in there}
        for name in (CORES, AVOIDABLE)
    )
    few = [a for a in rules if a in there and violations[a] <= FEW_VIOLATIONS]
    rule = min(few, key=cores.__getitem__) if few else picked(comparison, cell, rules)
    allowed = max(FEW_VIOLATIONS, violations[rule])
    able = [a for a in policies if a in there and violations[a] <= allowed]
    if not able:
        return None
    policy = min(able, key=cores.__getitem__)
    a, b = (np.log(comparison.values(agent, CORES, [cell])) for agent in (policy, rule))
    return cores[policy] / cores[rule], paired_p(a, b)


def _simulator(fidelity: Sequence[Fidelity]) -> Iterator[Target]:
    """What the simulator says of the real worker."""
    said = {"met": "met", "within spread": "within the spread of live runs", "missed": "missed"}
    counts = Counter(row.verdict for each in fidelity for row in each.rows if row.verdict)
    if counts:
        yield Target(
            "simulator against the real worker",
            "all differences within their targets, or within the spread of live runs",
            ", ".join(f"{counts[verdict]} {words}" for verdict, words in said.items()),
            "missed" if counts["missed"] else "met",
        )


def _live(
    fidelity: Sequence[Fidelity], ours: Group, theirs: Group, least: float
) -> Iterator[Target]:
    """How many times as many avoidable violations they have on the real worker.

    Only who ran in turn with the other is compared: the machine was another the next day.
    """
    for each in fidelity:
        yield from _live_in_turn(each, ours, theirs, least)


def _live_in_turn(fidelity: Fidelity, ours: Group, theirs: Group, least: float) -> Iterator[Target]:
    by_run: dict[tuple[str, str], dict[int, float]] = {}
    for trial in fidelity.live:
        of_agent = by_run.setdefault((trial["agent"], trial["scenario"]), {})
        of_agent[trial["repetition"]] = trial["avoidable_violation_rate"]
    for scenario in dict.fromkeys(scenario for _, scenario in by_run):
        for b, a in product(theirs, ours):
            a_rates, b_rates = (by_run.get((agent, scenario), {}) for agent in (a, b))
            if a_rates and a_rates.keys() == b_rates.keys():
                pooled = Rates(fmean(a_rates.values()), fmean(b_rates.values()), math.nan)
                each = [Rates(a_rates[n], b_rates[n], math.nan).ratio for n in a_rates]
                many = sum(ratio >= least for ratio in each)
                always: Verdict = "met" if many == len(each) else "not decidable"
                yield Target(
                    f"{b} / {a}, {scenario} live: avoidable violations",
                    f"at least {least:g} times, in every repetition",
                    f"{percent(pooled.theirs, 3)} against {percent(pooled.ours, 3)}; in {many} "
                    f"of {len(each)} repetitions",
                    "missed" if pooled.ratio < least else always,
                )


FINDINGS: Mapping[str, Callable[..., Iterator[str]]] = {
    "violations": _more_violations,
    "first minute": _first_minute,
    "cores": _fewer_cores,
}
TARGETS: Mapping[str, Callable[..., Iterator[Target]]] = {
    "compared": _compared,
    "bound gap": _bound_gap,
    "over bound": _over_bound,
    "learned": _learned,
}
CLAIMS: Mapping[str, Callable[[Pair], str]] = {
    "fewer violations": Pair.claimed_violations,
    "fewer cores": Pair.claimed_cores,
    "violations": Pair.claimed_rate,
}
LIVE_TARGETS: Mapping[str, Callable[..., Iterator[Target]]] = {
    "simulator": _simulator,
    "live": _live,
}


def _said(what: str, kinds: Mapping[str, Callable[..., Iterator[T]]], source: object) -> list[T]:
    """Return what there is to say of the sort that is declared in the file, of some kinds."""
    there = [dict(entry) for entry in DECLARED[what] if entry["kind"] in kinds]
    return [said for entry in there for said in kinds[entry.pop("kind")](source, **entry)]


def findings(comparison: Comparison) -> list[str]:
    """Return what can be said about a run of the findings of ``targets.toml``."""
    found = _said("finding", FINDINGS, comparison)
    return [*found, DECLARED["relative"].strip()] if found else []


def targets(comparison: Comparison, *fidelity: Fidelity) -> list[Target]:
    """Return the targets that the runs say something about; those on the real worker last."""
    found = _said("target", TARGETS, comparison)
    return found + _said("target", LIVE_TARGETS, fidelity) if fidelity else found


def claims(comparison: Comparison) -> Table | None:
    """Return what was published beside what a run shows; None if it has nothing to show."""
    there = DECLARED["claims"]
    found = {
        (row, start): CLAIMS[claim["kind"]](pair)
        for row, claim in enumerate(there["claim"])
        for start in comparison.starts
        for pair in pairs(
            comparison,
            [(*_chosen(comparison, start, **there["cells"]), claim["ours"], claim["theirs"])],
        )
    }
    rows = [row for row in range(len(there["claim"])) if any(key[0] == row for key in found)]
    if not rows:
        return None
    columns: list[tuple[str, Callable[[int], str]]] = [
        ("reported", lambda row: there["claim"][row]["says"]),
        ("agents here", lambda row: _agents(**there["claim"][row])),
    ]
    columns += [
        (f"we find, {start} start", lambda row, start=start: found.get((row, start), "-"))
        for start in comparison.starts
    ]
    return Table.of(columns, rows)


def _agents(ours: Group, theirs: Group, **_: str) -> str:
    """Name who is compared."""
    sides = [" or ".join(f"`{name}`" for name in group) for group in (theirs, ours)]
    return " / ".join(dict.fromkeys(sides))


def remarks(section: Section) -> Remarks:
    """Return what this project says about a run."""
    comparison, published, last = section.comparison, DECLARED["claims"], ""
    table = claims(comparison)
    text = (
        f"## {published['heading']}\n\n{markdown(table)}\n\n{published['note'].strip()}"
        if table
        else ""
    )
    if found := targets(comparison, *section.fidelity):
        headings = {"what": "target", "wanted": "wanted", "measured": "measured", "verdict": ""}
        table = Table.of([(head, attrgetter(name)) for name, head in headings.items()], found)
        last = f"## Targets\n\n{_tally(found)}\n\n{markdown(table)}\n\n{DECLARED['note'].strip()}"
    known = set(DECLARED["scenarios"]["profiles"]) <= set(comparison.profiles)
    return Remarks(
        summary=_said("summary", SUMMARY, section),
        scenarios=DECLARED["scenarios"]["note"].strip() * known,
        findings=findings(comparison),
        text=text,
        sensitivity=DECLARED["sensitivity"].strip(),
        fidelity=DECLARED["fidelity"].strip(),
        last=last,
    )


def _tally(found: Sequence[Target]) -> str:
    """Say how many targets are met."""
    counts = Counter(target.verdict for target in found)
    return f"Of {len(found)}, {listed([f'{n} {verdict}' for verdict, n in counts.most_common()])}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(partial(run, remark=remarks), argv)


if __name__ == "__main__":
    sys.exit(main())
