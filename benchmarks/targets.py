"""The targets of ``targets.toml``, measured in a run of the standard suite.

A function for each kind; its arguments are the keys in the file. A target of which the run
lacks the agents, starts or bounds is left out.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from benchmarks.rates import (
    AVOIDABLE,
    Group,
    Rates,
    core_ratios,
    corrected,
    named,
    picked,
    picks,
    rates,
    select,
    shared,
    values,
)
from sponge_env.config import ControlName
from sponge_env.fidelity.report import Fidelity
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.findings import percent
from sponge_env.results.layout import Table
from sponge_env.results.statistics import SIGNIFICANCE, holm, paired_p
from sponge_env.suite.unit import BOUND_AGENTS

FILE = Path(__file__).with_name("targets.toml")

Verdict = Literal["met", "missed", "not decidable"]
"""The last: there is nothing to divide, a number is missing, or chance could explain it."""

NOTE = (
    "Avoidable violations are those of requests that were not hopeless on arrival; the same "
    "measure for whoever is compared. p: that both have equally many, not that the ratio is the "
    "one wanted (paired sign-flip test over the seeds, by Holm's method over the rows of the same "
    "target); a difference that chance could explain is not decidable. Where "
    "the better of two counts, it is in each cell the one with fewer avoidable violations."
)


@dataclass(frozen=True, slots=True)
class Target:
    """What was to be reached, beside what a run shows."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is measured."""

    comparison: Comparison
    fidelity: Fidelity | None = None
    """What the real worker did."""


def declared(what: Literal["finding", "target"]) -> list[Mapping[str, Any]]:
    """Return what ``targets.toml`` declares of one sort."""
    return list(tomllib.loads(FILE.read_text())[what])


def targets(comparison: Comparison, fidelity: Fidelity | None = None) -> list[Target]:
    """Return the targets that the runs say something about."""
    evidence, found = Evidence(comparison, fidelity), []
    for entry in declared("target"):
        arguments = {key: value for key, value in entry.items() if key != "kind"}
        found += KINDS[entry["kind"]](evidence, **arguments)
    return found


def target_table(found: Sequence[Target]) -> Table:
    """Return targets as a table."""
    rows = [(t.what, t.wanted, t.measured, t.verdict) for t in found]
    return Table.of(["target", "wanted", "measured", ""], rows)


def at_most(value: float, limit: float) -> Verdict:
    """Judge a number that is no comparison."""
    return "met" if value <= limit else "missed"


def all_of(*verdicts: Verdict) -> Verdict:
    """Judge a target of several parts."""
    worst: tuple[Verdict, ...] = ("missed", "not decidable")
    return next((verdict for verdict in worst if verdict in verdicts), "met")


def _violations(
    evidence: Evidence, ours: Group, where: str, scenarios: str, most: float
) -> Iterator[Target]:
    """Our avoidable violations, worst cell."""
    comparison = evidence.comparison
    for start in comparison.starts:
        cells = shared(comparison, select(comparison, scenarios, start=start), ours)
        if cells:
            means = values(comparison, ours, AVOIDABLE, cells).mean(axis=1)
            worst = int(means.argmax())
            yield Target(
                f"{ours[0]}, {where}, {start} start: avoidable violations",
                f"at most {percent(most, 2)} in every cell",
                f"at most {percent(means[worst], 3)} ({', '.join(cells[worst][:2])})",
                at_most(means[worst], most),
            )


def _cores(
    evidence: Evidence, ours: Group, theirs: Group, where: str, scenarios: str, most: float
) -> Iterator[Target]:
    """Our cores against theirs, at no more violations."""
    comparison = evidence.comparison
    by_start = {
        start: shared(comparison, select(comparison, scenarios, start=start), ours, theirs)
        for start in comparison.starts
    }
    parts = {start: cells for start, cells in by_start.items() if cells}
    compared = [rates(comparison, cells, ours, theirs) for cells in parts.values()]
    ps = holm([_core_p(comparison, cells, ours, theirs) for cells in parts.values()])
    rows = zip(parts.items(), corrected([r for r in compared if r]), ps, strict=True)
    for (start, cells), found, p in rows:
        ratio = float(core_ratios(comparison, cells, ours, theirs).mean())
        fewer: Verdict = "met" if p < SIGNIFICANCE else "not decidable"
        # More violations by chance alone decide nothing.
        more: Verdict = "missed" if found.significant else "not decidable"
        yield Target(
            f"{ours[0]} / {theirs[0]}, {where}, {start} start: cores at no more avoidable "
            "violations",
            f"at most {most:.2f}",
            f"{ratio:.2f}, p = {p:.2g} ({percent(found.ours, 3)} against "
            f"{percent(found.theirs, 3)} avoidable violations)",
            all_of(
                fewer if ratio <= most else "missed",
                "met" if found.ours <= found.theirs else more,
            ),
        )


def _core_p(comparison: Comparison, cells: Sequence[Cell], ours: Group, theirs: Group) -> float:
    """Test whether our core-seconds relative to theirs differ from 1."""
    a, b = (values(comparison, group, "core_seconds", cells) for group in (ours, theirs))
    usual = b.mean(axis=1, keepdims=True)
    return paired_p(a / usual, b / usual)


def _times(
    evidence: Evidence,
    ours: Group,
    theirs: Sequence[Group],
    cells: Sequence[Mapping[str, str]],
    least: float,
    most_cores: float | None = None,
) -> Iterator[Target]:
    """How many times as many avoidable violations they have, pooled over some cells.

    All rows are one family of tests.
    """
    comparison = evidence.comparison
    rows = [(where, group) for where in cells for group in _there(comparison, theirs)]
    compared = [rates(comparison, select(comparison, **where), ours, g) for where, g in rows]
    adjusted = iter(corrected([found for found in compared if found]))
    for (where, group), found in zip(rows, compared, strict=True):
        if not found:
            continue
        pooled = next(adjusted)
        there = shared(comparison, select(comparison, **where), ours, group)
        what, wanted = "avoidable violations", f"at least {least:g} times"
        measured = _times_text(comparison, there, (ours, group), pooled, least)
        verdict = _at_least(pooled, least)
        if most_cores is not None:
            cores = core_ratios(comparison, there, ours, group)
            what += ", and the latter's cores over the former's"
            wanted += f", and at most {most_cores:.2f} in every cell"
            measured += f"; cores {cores.mean():.2f}, at most {cores.max():.2f}"
            verdict = all_of(verdict, at_most(cores.max(), most_cores))
        names = [where[key] for key in ("scenarios",) if key in where]
        place = ", ".join([*names, f"{where['start']} start"])
        yield Target(
            f"{named(comparison, group)} / {ours[0]}, {place}: {what}", wanted, measured, verdict
        )


def _there(comparison: Comparison, groups: Sequence[Group]) -> list[Group]:
    """Return the groups of which the run has an agent."""
    return [group for group in groups if any(agent in comparison.agents for agent in group)]


def _times_text(
    comparison: Comparison,
    cells: Sequence[Cell],
    pair: tuple[Group, Group],
    pooled: Rates,
    least: float,
) -> str:
    """Say how many times as many, in how many cells, and who of them counted where."""
    parts = [f"{pooled}, p = {pooled.p:.2g}"]
    each = [rates(comparison, [cell], *pair) for cell in cells]
    alone = sum(r is not None and r.ratio >= least for r in each)
    if len(cells) > 1:
        parts.append(f"in {alone} of {len(cells)} cells each for itself")
    chosen = picks(comparison, cells, pair[1])
    return "; ".join([*parts, *([chosen] if chosen else [])])


def _at_least(found: Rates, least: float) -> Verdict:
    """Judge whether they have so many times as many."""
    if found.ratio < least:
        return "missed"
    return "met" if found.ratio >= least and found.significant else "not decidable"


def _bound_gap(evidence: Evidence, most: float) -> Iterator[Target]:
    """How far apart the two sides of a bound are, worst cell."""
    for name, gaps in evidence.comparison.bound_gaps().items():
        for start in evidence.comparison.starts:
            cores = gaps["cores"][gaps.index.get_level_values("start") == start]
            if not cores.empty:
                yield Target(
                    f"bound {name}, {start} start: gap between its sides",
                    f"at most {percent(most)} of core-seconds in every cell",
                    f"at most {percent(cores.max(), 1)}, "
                    f"{(cores <= most).sum()} of {len(cores)} cells",
                    at_most(cores.max(), most),
                )


def _over_bound(evidence: Evidence, scaling: ControlName, most: float) -> Iterator[Target]:
    """The best controller of a kind of scaling beside its bound, scenario by scenario."""
    comparison, name = evidence.comparison, BOUND_AGENTS[scaling]
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


def _cores_and_violations(
    evidence: Evidence,
    ours: Group,
    theirs: Sequence[Group],
    where: str,
    scenarios: str,
    profiles: str,
    most: float,
) -> Iterator[Target]:
    """Our cores against theirs, and few violations; each in its worst cell."""
    comparison = evidence.comparison
    for start in comparison.starts:
        for group in _there(comparison, theirs):
            cells = shared(comparison, select(comparison, scenarios, profiles, start), ours, group)
            if not cells:
                continue
            cores = core_ratios(comparison, cells, ours, group).max()
            violations = values(comparison, ours, AVOIDABLE, cells).mean(axis=1).max()
            yield Target(
                f"{ours[0]} / {named(comparison, group)}, {where}, {start} start: cores, and its "
                "avoidable violations",
                f"at most {most:.2f}, and at most {percent(FEW_VIOLATIONS, 1)}",
                f"at most {cores:.2f}, and at most {percent(violations, 3)} (worst payload each)",
                all_of(at_most(cores, most), at_most(violations, FEW_VIOLATIONS)),
            )


@dataclass(frozen=True, slots=True)
class _Learned:
    """The best policy beside the best rule or program, on one cell."""

    ratio: float
    """Cores relative to the rule's."""
    p: float
    """That they differ so much by chance, for this cell alone."""


def _learned(evidence: Evidence, ours: Group, most: float) -> Iterator[Target]:
    """The best policy against the best of all others, cell by cell."""
    comparison = evidence.comparison
    rules = [agent for agent in comparison.agents if agent not in ours]
    for start in comparison.starts:
        cells = shared(comparison, comparison.cells_of(start=start), ours, rules)
        if cells:
            found = [_against_rules(comparison, cell, ours, rules) for cell in cells]
            yield _learned_target(start, found, most)


def _learned_target(start: str, found: Sequence[_Learned | None], most: float) -> Target:
    there = [one for one in found if one]
    fewer = [one for one in there if one.ratio < 1.0]
    shown = sum(one.p < SIGNIFICANCE for one in fewer)
    worse = sum(one.ratio > most for one in there)
    missing, more = len(found) - len(there), percent(most - 1)
    enough = 2 * len(fewer) >= len(found) and not worse and not missing
    return Target(
        f"best learned controller against the best rule or program, {start} start: cores at no "
        "more avoidable violations",
        f"fewer in at least half of the cells, over {more} more in none",
        f"fewer in {len(fewer)} of {len(found)} ({shown} with p < {SIGNIFICANCE:g} each for "
        f"itself, uncorrected), over {more} more in {worse}, all policies with more violations "
        f"in {missing}",
        "missed" if not enough else "met" if 2 * shown >= len(found) else "not decidable",
    )


def _against_rules(
    comparison: Comparison, cell: Cell, policies: Group, rules: Group
) -> _Learned | None:
    """Compare the cheapest policy that violates no more than the best rule; None without one.

    The best rule is the cheapest with few violations or, where none has few, the one with the
    fewest.
    """

    def cores(agent: str) -> float:
        return comparison.mean(agent, "core_seconds", cell)

    def violations(agent: str) -> float:
        return comparison.mean(agent, AVOIDABLE, cell)

    there = comparison.there(cell)
    few = [a for a in rules if a in there and violations(a) <= FEW_VIOLATIONS]
    rule = min(few, key=cores) if few else picked(comparison, cell, rules)
    able = [a for a in policies if a in there and violations(a) <= violations(rule)]
    if not able:
        return None
    policy = min(able, key=cores)
    a, b = (comparison.values(agent, "core_seconds", [cell]) for agent in (policy, rule))
    return _Learned(cores(policy) / cores(rule), paired_p(a, b))


def _simulator(evidence: Evidence) -> Iterator[Target]:
    """What the simulator says of the real worker."""
    rows = evidence.fidelity.rows if evidence.fidelity else ()
    verdicts = [row.verdict for row in rows if row.verdict]
    if verdicts:
        missed = verdicts.count("missed")
        yield Target(
            "simulator against the real worker",
            "all differences within their targets, or within the spread of live runs",
            f"{len(verdicts) - missed} of {len(verdicts)}",
            "missed" if missed else "met",
        )


def _live(evidence: Evidence, ours: Group, theirs: Group, least: float) -> Iterator[Target]:
    """How many times as many avoidable violations they have on the real worker."""
    runs = evidence.fidelity.live if evidence.fidelity else ()
    for scenario in dict.fromkeys(run["scenario"] for run in runs):
        for b, a in product(theirs, ours):
            rates_a, rates_b = (
                {
                    run["repetition"]: float(run["avoidable_violation_rate"])
                    for run in runs
                    if (run["agent"], run["scenario"]) == (agent, scenario)
                }
                for agent in (a, b)
            )
            if rates_a and rates_a.keys() == rates_b.keys():
                yield _live_target(f"{b} / {a}, {scenario}", rates_a, rates_b, least)


def _live_target(
    who: str, ours: Mapping[int, float], theirs: Mapping[int, float], least: float
) -> Target:
    each = [Rates(ours[n], theirs[n], math.nan).ratio for n in ours]
    pooled = Rates(fmean(ours.values()), fmean(theirs.values()), math.nan)
    many = sum(ratio >= least for ratio in each)
    always: Verdict = "met" if many == len(each) else "not decidable"
    return Target(
        f"{who} live: avoidable violations",
        f"at least {least:g} times, in every repetition",
        f"{percent(pooled.theirs, 3)} against {percent(pooled.ours, 3)}; in {many} of "
        f"{len(each)} repetitions",
        "missed" if pooled.ratio < least else always,
    )


KINDS = {
    "violations": _violations,
    "cores": _cores,
    "times": _times,
    "bound gap": _bound_gap,
    "over bound": _over_bound,
    "cores and violations": _cores_and_violations,
    "learned": _learned,
    "simulator": _simulator,
    "live": _live,
}
