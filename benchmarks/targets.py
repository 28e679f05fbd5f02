"""The targets of ``targets.toml``, measured in a run: ``python -m benchmarks.targets RUN``.

As ``python -m sponge_env.results``, and says in the Markdown what the run shows about this
project's controllers and which of its targets it meets.

A function for each kind; its arguments are the keys in the file. A target of which the run
lacks the agents, starts or bounds is left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import attrgetter
from statistics import fmean
from typing import Literal, NamedTuple

from benchmarks.findings import (
    AVOIDABLE,
    Group,
    Rates,
    core_ratios,
    corrected,
    declared,
    findings,
    named,
    picked,
    picks,
    rates,
    select,
    shared,
    values,
)
from sponge_env import cli
from sponge_env.config import ControlName
from sponge_env.fidelity.report import Fidelity
from sponge_env.results.__main__ import run
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.layout import Table, markdown, percent
from sponge_env.results.page import Remarks, Section
from sponge_env.results.statistics import SIGNIFICANCE, holm, paired_p
from sponge_env.run.bounds import BOUND_AGENTS

Verdict = Literal["met", "missed", "not decidable"]
"""The last: there is nothing to divide, a number is missing, or chance could explain it."""

NOTE = (
    "Avoidable violations are those of requests that were not hopeless on arrival; the same "
    "measure for whoever is compared. p: that both have equally many, not that the ratio is the "
    "one wanted (paired sign-flip test over the seeds, by Holm's method over the rows of the same "
    "target); a difference that chance could explain is not decidable. Where "
    "the better of two counts, it is in each cell the one with fewer avoidable violations."
)


class Target(NamedTuple):
    """What was to be reached, beside what a run shows."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict


def targets(comparison: Comparison, fidelity: Fidelity | None = None) -> list[Target]:
    """Return the targets that the runs say something about."""
    found: list[Target] = []
    for kind, arguments in declared("target"):
        source = fidelity if kind in LIVE_KINDS else comparison
        if source is not None:
            found += {**KINDS, **LIVE_KINDS}[kind](source, **arguments)
    return found


def target_table(found: Sequence[Target]) -> Table:
    """Return targets as a table."""
    headings = {"what": "target", "wanted": "wanted", "measured": "measured", "verdict": ""}
    return Table.of([(text, attrgetter(name)) for name, text in headings.items()], found)


def at_most(value: float, limit: float) -> Verdict:
    """Say whether a number is within its limit, which is no comparison."""
    return "met" if value <= limit else "missed"


def all_of(*verdicts: Verdict) -> Verdict:
    """Say whether a target of several parts is met: the worst of them decides."""
    worst: tuple[Verdict, ...] = ("missed", "not decidable")
    return next((verdict for verdict in worst if verdict in verdicts), "met")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Ours and theirs on the cells that both have; p values are those of a target's rows."""

    comparison: Comparison
    cells: Sequence[Cell]
    ours: Group
    theirs: Group
    rates: Rates
    cores_p: float
    """That both hold as many cores."""

    def times(self, least: float) -> Target:
        """How many times as many avoidable violations they have, and in how many cells."""
        found, total = self.rates, len(self.cells)
        each = [rates(self.comparison, [cell], self.ours, self.theirs) for cell in self.cells]
        alone = sum(r is not None and r.ratio >= least for r in each)
        parts = [
            f"{found}, p = {found.p:.2g}",
            f"in {alone} of {total} cells each for itself" if total > 1 else "",
            picks(self.comparison, self.cells, self.theirs),
        ]
        sure = found.ratio >= least and found.significant
        verdict: Verdict = "missed" if found.ratio < least else "met" if sure else "not decidable"
        measured = "; ".join(filter(None, parts))
        return Target("avoidable violations", f"at least {least:g} times", measured, verdict)

    def cores(self, most: float) -> Target:
        """Our cores relative to theirs, at no more violations."""
        ratio = float(core_ratios(self.comparison, self.cells, self.ours, self.theirs).mean())
        fewer: Verdict = "met" if self.cores_p < SIGNIFICANCE else "not decidable"
        # More violations by chance alone decide nothing.
        more: Verdict = "missed" if self.rates.significant else "not decidable"
        return Target(
            "cores at no more avoidable violations",
            f"at most {most:.2f}",
            f"{ratio:.2f}, p = {self.cores_p:.2g} ({percent(self.rates.ours, 3)} against "
            f"{percent(self.rates.theirs, 3)} avoidable violations)",
            all_of(
                fewer if ratio <= most else "missed",
                "met" if self.rates.ours <= self.rates.theirs else more,
            ),
        )

    def cores_everywhere(self, most: float) -> Target:
        """Our cores relative to theirs, worst cell."""
        ratios = core_ratios(self.comparison, self.cells, self.ours, self.theirs)
        measured = f"cores {ratios.mean():.2f}, at most {ratios.max():.2f}"
        wanted = f"at most {most:.2f} in every cell"
        return Target(f"{self.ours[0]}'s cores", wanted, measured, at_most(ratios.max(), most))

    def violations(self, most: float) -> Target:
        """Our avoidable violations, worst cell."""
        means = values(self.comparison, self.ours, AVOIDABLE, self.cells).mean(axis=1)
        worst, cell = means.max(), self.cells[int(means.argmax())]
        whose = f"{self.ours[0]}'s " if self.theirs != self.ours else ""
        wanted = f"at most {percent(most, 2)} in every cell"
        measured = f"at most {percent(worst, 3)} ({', '.join(cell[:2])})"
        return Target(f"{whose}avoidable violations", wanted, measured, at_most(worst, most))


def _compared(
    comparison: Comparison,
    ours: Group,
    cells: Sequence[Mapping[str, str]],
    theirs: Sequence[Group] = (),
    **limits: float,
) -> Iterator[Target]:
    """Our violations and cores beside theirs, a row for each choice of cells and each of them.

    The limits name methods of :class:`_Pair`, and say what each of them wants.
    """
    there = [group for group in theirs if any(agent in comparison.agents for agent in group)]
    rows = []
    for chosen, group in product(cells, there if theirs else [ours]):
        place, found = _chosen(comparison, **chosen)
        if both := shared(comparison, found, ours, group):
            rows.append((place, both, group))
    compared = [rates(comparison, both, ours, group) for _, both, group in rows]
    adjusted = corrected([found for found in compared if found])
    ps = holm([_core_p(comparison, both, ours, group) for _, both, group in rows])
    for (place, both, group), found, p in zip(rows, adjusted, ps, strict=True):
        pair = _Pair(comparison, both, ours, group, found, p)
        parts = [getattr(pair, name)(limit) for name, limit in limits.items()]
        *texts, verdicts = zip(*parts, strict=True)
        names = [ours[0], named(comparison, group)] if theirs else [ours[0]]
        who = " / ".join(reversed(names) if "times" in limits else names)
        what, wanted, measured = (
            joint.join(text) for joint, text in zip((", and ", ", and ", "; "), texts, strict=True)
        )
        yield Target(f"{who}, {place}: {what}", wanted, measured, all_of(*verdicts))


def _chosen(comparison: Comparison, where: str = "", **patterns: str) -> tuple[str, list[Cell]]:
    """Return some cells, and what to call them."""
    names = [where or patterns.get("scenarios", ""), f"{patterns['start']} start"]
    return ", ".join(filter(None, names)), select(comparison, **patterns)


def _core_p(comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group) -> float:
    """Test whether our core-seconds relative to theirs differ from 1."""
    a, b = (values(comparison, group, "core_seconds", cells) for group in (ours, theirs))
    usual = b.mean(axis=1, keepdims=True)
    return paired_p(a / usual, b / usual)


def _bound_gap(comparison: Comparison, most: float) -> Iterator[Target]:
    """How far apart the two sides of a bound are, worst cell."""
    for name, gaps in comparison.bound_gaps().items():
        for start in comparison.starts:
            cores = gaps["cores"][gaps.index.get_level_values("start") == start]
            if not cores.empty:
                yield Target(
                    f"bound {name}, {start} start: gap between its sides",
                    f"at most {percent(most)} of core-seconds in every cell",
                    f"at most {percent(cores.max(), 1)}, "
                    f"{(cores <= most).sum()} of {len(cores)} cells",
                    at_most(cores.max(), most),
                )


def _over_bound(comparison: Comparison, scaling: ControlName, most: float) -> Iterator[Target]:
    """The best controller of a kind of scaling beside its bound, scenario by scenario."""
    name = BOUND_AGENTS[scaling]
    if comparison.bounds.empty or name not in set(comparison.bounds["agent"]):
        return
    for start, scenario in product(comparison.starts, comparison.scenarios):
        cells = comparison.cells_of(scenario, start)
        nearest = [_nearest(comparison, cell, name, most) for cell in cells]
        if cells:
            texts = [f"{cell[1]} {text}" for cell, (text, _) in zip(cells, nearest, strict=True)]
            yield Target(
                f"best {scaling} controller over {name}, {scenario}, {start} start: cores",
                f"at most {most:.2f}, with at most {percent(FEW_VIOLATIONS, 1)} violations "
                "beyond the bound's",
                ", ".join(texts),
                all_of(*(verdict for _, verdict in nearest)),
            )


def _nearest(comparison: Comparison, cell: Cell, bound: str, most: float) -> tuple[str, Verdict]:
    """Find who has the fewest cores over a bound, among those with few violations beyond it."""
    ratios = {
        agent: comparison.mean(agent, "cores_over_bound", cell)
        for agent in comparison.there(cell)
        if comparison.own_bound(agent, cell) == bound
    }
    known = {agent: ratio for agent, ratio in ratios.items() if not math.isnan(ratio)}
    if not known:
        return "without a bound", "not decidable"
    few = [a for a in known if comparison.mean(a, "beyond_bound_rate", cell) <= FEW_VIOLATIONS]
    if not few:
        return "none", "missed"
    best = min(few, key=known.__getitem__)
    return f"{known[best]:.2f} ({best})", at_most(known[best], most)


def _learned(comparison: Comparison, ours: Group, most: float) -> Iterator[Target]:
    """The best policy against the best of all others, cell by cell."""
    rules, more = [agent for agent in comparison.agents if agent not in ours], percent(most - 1)
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
            f"best learned controller against the best rule or program, {start} start: cores at "
            "no more avoidable violations",
            f"fewer in at least half of the cells, over {more} more in none",
            f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g} each for "
            f"itself, uncorrected), over {more} more in {worse}, all policies with more violations "
            f"in {missing}",
            "missed" if not enough else "met" if 2 * shown >= len(found) else "not decidable",
        )


def _against_rules(
    comparison: Comparison, cell: Cell, policies: Group, rules: Group
) -> tuple[float, float] | None:
    """Compare the cheapest policy that violates no more than the best rule, if there is one.

    The best rule is the cheapest with few violations or, where none has few, the one with the
    fewest. Returned are cores relative to the rule's, and the p value that both are alike, for
    this cell alone.
    """
    there = comparison.there(cell)
    cores, violations = (
        {agent: comparison.mean(agent, name, cell) for agent in there}
        for name in ("core_seconds", AVOIDABLE)
    )
    few = [a for a in rules if a in there and violations[a] <= FEW_VIOLATIONS]
    rule = min(few, key=cores.__getitem__) if few else picked(comparison, cell, rules)
    able = [a for a in policies if a in there and violations[a] <= violations[rule]]
    if not able:
        return None
    policy = min(able, key=cores.__getitem__)
    a, b = (comparison.values(agent, "core_seconds", [cell]) for agent in (policy, rule))
    return cores[policy] / cores[rule], paired_p(a, b)


def _simulator(fidelity: Fidelity) -> Iterator[Target]:
    """What the simulator says of the real worker."""
    verdicts = [row.verdict for row in fidelity.rows if row.verdict]
    if verdicts:
        missed = verdicts.count("missed")
        yield Target(
            "simulator against the real worker",
            "all differences within their targets, or within the spread of live runs",
            f"{len(verdicts) - missed} of {len(verdicts)}",
            "missed" if missed else "met",
        )


def _live(fidelity: Fidelity, ours: Group, theirs: Group, least: float) -> Iterator[Target]:
    """How many times as many avoidable violations they have on the real worker."""
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


KINDS: Mapping[str, Callable[..., Iterator[Target]]] = {
    "compared": _compared,
    "bound gap": _bound_gap,
    "over bound": _over_bound,
    "learned": _learned,
}
LIVE_KINDS: Mapping[str, Callable[..., Iterator[Target]]] = {"simulator": _simulator, "live": _live}


MACHINE = (
    "The run was made before replicas shared one machine (`limits.total_cores`): all 16 replicas "
    "may have 16 cores each, which is what the standard suite still asks for."
)
"""What sets the run in docs/results.md apart from what scenarios do by default."""


def remarks(section: Section) -> Remarks:
    """Return what this project says about a run."""
    found = targets(section.comparison, section.fidelity)
    text = f"## Targets\n\n{markdown(target_table(found))}\n\n{NOTE}" if found else ""
    return Remarks(findings(section.comparison), text, MACHINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(partial(run, remark=remarks), argv)


if __name__ == "__main__":
    sys.exit(main())
