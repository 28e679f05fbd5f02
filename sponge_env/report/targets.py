"""What the project set out to reach, beside what a run shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sponge_env.fidelity.comparison import Row
from sponge_env.report.findings import (
    HORIZONTAL,
    PUBLISHED,
    SPONGE,
    bound_gaps,
    core_ratio,
    percent,
    rates,
    shared,
)
from sponge_env.report.source import Source
from sponge_env.report.tables import Entry, Table, violations_metric
from sponge_env.suite.tables import Cell

PAPER = "paper"
"""How the names of the published scenarios begin."""

MOST_VIOLATIONS = 0.0005
MOST_CORES = 0.80
FEWEST_TIMES = 15.0
WIDEST_GAP = 0.03


@dataclass(frozen=True, slots=True)
class Target:
    """One of them."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(source: Source, fidelity: Sequence[Row] = ()) -> list[Target]:
    """Return the targets that the run says something about."""
    parts = (_violations, _cores, _ratios, _gaps)
    return [target for part in parts for target in part(source)] + list(_fidelity(fidelity))


def target_table(found: Sequence[Target]) -> Table:
    """Return the targets as a table."""
    return Table(
        ["target", "wanted", "measured", ""],
        [
            [Entry(t.what), Entry(t.wanted), Entry(t.measured), Entry("met" if t.met else "missed")]
            for t in found
        ],
    )


def _violations(source: Source) -> Iterator[Target]:
    """The program per request on the published scenarios, worst cell."""
    comparison = source.comparison
    cells = shared(comparison, _paper_cells(source), SPONGE)
    if not cells:
        return
    means = comparison.values(SPONGE, violations_metric(comparison), cells).mean(axis=1)
    worst = int(means.argmax())
    yield Target(
        f"{SPONGE}, {PAPER} scenarios: avoidable violations",
        f"at most {percent(MOST_VIOLATIONS, 2)} in every cell",
        f"at most {percent(means[worst], 3)} ({', '.join(cells[worst])})",
        bool(means[worst] <= MOST_VIOLATIONS),
    )


def _cores(source: Source) -> Iterator[Target]:
    """The program per request against the published one."""
    comparison = source.comparison
    cells = shared(comparison, _paper_cells(source), SPONGE, PUBLISHED)
    found = rates(comparison, cells, SPONGE, PUBLISHED)
    if not found:
        return
    ratio = core_ratio(comparison, cells, SPONGE, PUBLISHED)
    yield Target(
        f"{SPONGE} / {PUBLISHED}, {PAPER} scenarios: cores at no more violations",
        f"at most {MOST_CORES:.2f}",
        f"{ratio:.2f} ({percent(found.ours, 3)} against {percent(found.theirs, 3)} violations)",
        ratio <= MOST_CORES and found.ours <= found.theirs,
    )


def _ratios(source: Source) -> Iterator[Target]:
    """The horizontal scaler's violations where budgets or load move fast."""
    parts = {
        "cold start": source.cells(start="cold"),
        "flash-crowd, warm start": source.cells("flash-crowd", "warm"),
        "deep-fade, warm start": source.cells("deep-fade", "warm"),
    }
    for name, cells in parts.items():
        found = rates(source.comparison, cells, SPONGE, HORIZONTAL)
        if found and not math.isnan(found.ratio):
            yield Target(
                f"{HORIZONTAL} / {SPONGE}, {name}: avoidable violations",
                f"at least {FEWEST_TIMES:g} times",
                str(found),
                found.ratio >= FEWEST_TIMES,
            )


def _gaps(source: Source) -> Iterator[Target]:
    for name, gaps in bound_gaps(source).items():
        yield Target(
            f"bound {name}: gap between its sides",
            f"at most {percent(WIDEST_GAP)} of core-seconds in every cell",
            f"at most {percent(gaps.max(), 1)}, {(gaps <= WIDEST_GAP).sum()} of {len(gaps)} cells",
            bool(gaps.max() <= WIDEST_GAP),
        )


def _fidelity(rows: Sequence[Row]) -> Iterator[Target]:
    judged = [row for row in rows if row.verdict]
    if judged:
        missed = [row for row in judged if row.verdict == "missed"]
        yield Target(
            "simulator against the real worker",
            "all differences within their targets, or within the spread of live runs",
            f"{len(judged) - len(missed)} of {len(judged)}",
            not missed,
        )


def _paper_cells(source: Source) -> list[Cell]:
    return [cell for cell in source.comparison.cells if cell[0].startswith(PAPER)]
