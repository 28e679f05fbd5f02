"""The targets of the experiment: the program, the horizontal scaler, the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sponge_env.report.agents import PUBLISHED, SPONGE
from sponge_env.report.fidelity import Fidelity
from sponge_env.report.findings import bound_gaps
from sponge_env.report.judging import Target, Verdict, all_of, at_most, horizontal_groups, times
from sponge_env.report.live import live_targets
from sponge_env.report.rates import (
    AVOIDABLE,
    Rates,
    core_ratios,
    corrected,
    named,
    percent,
    rates,
    shared,
    values,
)
from sponge_env.report.scaling import scaling_targets
from sponge_env.report.source import Source
from sponge_env.statistics import SIGNIFICANCE, holm, paired_p
from sponge_env.suite.comparison import Cell, Comparison

PAPER = "paper"
"""How the names of the published scenarios begin."""

MOST_VIOLATIONS = 0.0005
MOST_CORES = 0.80
FEWEST_TIMES = 15.0
WIDEST_GAP = 0.03

TARGET_NOTE = (
    "Avoidable violations are those of requests that were not hopeless on arrival; the same "
    "measure for whoever is compared. p: that both have equally many, not that the ratio is the "
    "one wanted (paired sign-flip test over the seeds, by Holm's method over the rows of the same "
    "target); a difference that chance could explain is not decidable. Where "
    "the better of two counts, it is in each cell the one with fewer avoidable violations"
)


def targets(source: Source, fidelity: Fidelity | None = None) -> list[Target]:
    """Return the targets that the runs say something about.

    Args:
        source: A suite, or one evaluation.
        fidelity: What the real worker did.
    """
    parts = (_violations, _cores, _ratios, _gaps, scaling_targets)
    found = [target for part in parts for target in part(source)]
    return found + (live_targets(fidelity) if fidelity else [])


def _violations(source: Source) -> Iterator[Target]:
    """The program per request on the published scenarios, worst cell."""
    comparison = source.comparison
    for start in source.starts:
        cells = shared(comparison, _paper_cells(source, start), SPONGE)
        if cells:
            means = values(comparison, SPONGE, AVOIDABLE, cells).mean(axis=1)
            worst = int(means.argmax())
            yield Target(
                f"{SPONGE[0]}, {PAPER} scenarios, {start} start: avoidable violations",
                f"at most {percent(MOST_VIOLATIONS, 2)} in every cell",
                f"at most {percent(means[worst], 3)} ({', '.join(cells[worst][:2])})",
                at_most(means[worst], MOST_VIOLATIONS),
            )


def _cores(source: Source) -> Iterator[Target]:
    """The program per request against the published one."""
    comparison = source.comparison
    parts = {
        start: shared(comparison, _paper_cells(source, start), SPONGE, PUBLISHED)
        for start in source.starts
    }
    parts = {start: cells for start, cells in parts.items() if cells}
    compared = [rates(comparison, cells, SPONGE, PUBLISHED) for cells in parts.values()]
    ps = holm([_core_p(comparison, cells) for cells in parts.values()])
    rows = zip(parts.items(), corrected([r for r in compared if r]), ps, strict=True)
    for (start, cells), found, p in rows:
        ratio = float(core_ratios(comparison, cells, SPONGE, PUBLISHED).mean())
        yield Target(
            f"{SPONGE[0]} / {PUBLISHED[0]}, {PAPER} scenarios, {start} start: cores at no "
            "more avoidable violations",
            f"at most {MOST_CORES:.2f}",
            f"{ratio:.2f}, p = {p:.2g} ({percent(found.ours, 3)} against "
            f"{percent(found.theirs, 3)} avoidable violations)",
            all_of(_fewer_cores(ratio, p), _no_more(found)),
        )


def _core_p(comparison: Comparison, cells: Sequence[Cell]) -> float:
    """Test whether core-seconds relative to the published program's differ from it."""
    ours, theirs = (values(comparison, g, "core_seconds", cells) for g in (SPONGE, PUBLISHED))
    usual = theirs.mean(axis=1, keepdims=True)
    return paired_p(ours / usual, theirs / usual)


def _fewer_cores(ratio: float, p: float) -> Verdict:
    if ratio > MOST_CORES:
        return "missed"
    return "met" if p < SIGNIFICANCE else "not decidable"


def _no_more(found: Rates) -> Verdict:
    """Judge whether we have no more violations: more by chance alone decides nothing."""
    if found.ours <= found.theirs:
        return "met"
    return "missed" if found.significant else "not decidable"


def _ratios(source: Source) -> Iterator[Target]:
    """The horizontal scaler's violations where budgets or load move fast."""
    parts = {
        "cold start": source.cells(start="cold"),
        "flash-crowd, warm start": source.cells("flash-crowd", "warm"),
        "deep-fade, warm start": source.cells("deep-fade", "warm"),
    }
    groups = horizontal_groups(source.comparison)
    rows = [(name, group, cells) for name, cells in parts.items() for group in groups]
    pairs = [(SPONGE, group, cells) for _, group, cells in rows]
    compared = times(source.comparison, pairs, FEWEST_TIMES)
    for (name, group, _), found in zip(rows, compared, strict=True):
        if found:
            yield Target(
                f"{named(source.comparison, group)} / {SPONGE[0]}, {name}: avoidable violations",
                f"at least {FEWEST_TIMES:g} times",
                found.text,
                found.at_least(FEWEST_TIMES),
            )


def _gaps(source: Source) -> Iterator[Target]:
    for name, gaps in bound_gaps(source).items():
        for start in source.starts:
            cores = gaps["cores"][gaps.index.get_level_values("start") == start]
            if not cores.empty:
                yield Target(
                    f"bound {name}, {start} start: gap between its sides",
                    f"at most {percent(WIDEST_GAP)} of core-seconds in every cell",
                    f"at most {percent(cores.max(), 1)}, "
                    f"{(cores <= WIDEST_GAP).sum()} of {len(cores)} cells",
                    at_most(cores.max(), WIDEST_GAP),
                )


def _paper_cells(source: Source, start: str) -> list[Cell]:
    return [cell for cell in source.cells(start=start) if cell[0].startswith(PAPER)]
