"""What this project set out to reach, in a run: ``python -m benchmarks.targets RUN``.

As ``python -m sponge_env.results``, and says in the Markdown what the run shows about this
project's controllers and which of its targets it meets. ``targets.toml`` declares both; there is
a function for each kind, whose arguments are the keys in the file. Numbers and direction come
from the data. What the run lacks the agents, starts or bounds for is left out.
What is compared, and how, is in :mod:`benchmarks.pairs` and :mod:`benchmarks.policy_targets`.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from agents import LEARNERS
from benchmarks.pairs import (
    LIMITS,
    NO_DIFFERENCE,
    TOO_FEW,
    Group,
    Pair,
    Rates,
    pairs,
)
from benchmarks.policy_targets import cheapest_learned, one_learned
from benchmarks.readme import SUMMARY, first_minute, resize_delays
from benchmarks.verdicts import Target, Verdict, all_of, at_most
from sponge_env import cli
from sponge_env.fidelity.report import Fidelity
from sponge_env.results.__main__ import run
from sponge_env.results.comparison import FEW_VIOLATIONS, Cell, Comparison
from sponge_env.results.layout import Table, listed, markdown, percent
from sponge_env.results.page import Remarks, Section
from sponge_env.run.suite import BOUND_AGENTS
from sponge_env.scenario.config import ControlName

DECLARED: dict[str, Any] = tomllib.loads(Path(__file__).with_name("targets.toml").read_text())

T = TypeVar("T")


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

    That is beside ours and those of all that is learned. Only who ran in turn with the other is
    compared: the machine was another the next day.
    """
    for each in fidelity:
        yield from _live_in_turn(each, ours, theirs, least)


def _live_in_turn(fidelity: Fidelity, ours: Group, theirs: Group, least: float) -> Iterator[Target]:
    by_run: dict[tuple[str, str], dict[int, float]] = {}
    for trial in fidelity.live:
        of_agent = by_run.setdefault((trial["agent"], trial["scenario"]), {})
        of_agent[trial["repetition"]] = trial["avoidable_violation_rate"]
    for scenario in dict.fromkeys(scenario for _, scenario in by_run):
        for b, a in product(theirs, [*ours, *LEARNERS]):
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
    "cheapest learned": cheapest_learned,
    "one learned": one_learned,
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
        readme=resize_delays(section, **DECLARED["resize_delays"]),
        scenarios=DECLARED["scenarios"]["note"].strip() * known,
        findings=findings(comparison),
        text=text,
        sensitivity=DECLARED["sensitivity"].strip(),
        stages=DECLARED["stages"].strip() * (section.staged is not None),
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
