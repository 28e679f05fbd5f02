"""What a run shows, in sentences whose numbers and direction come from its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sponge_env.results.comparison import FEW_VIOLATIONS, Comparison


def findings(comparison: Comparison) -> list[str]:
    """Return what can be said about any run, whoever was compared."""
    return [*_cheapest(comparison), *_bounds(comparison)]


def _cheapest(comparison: Comparison) -> Iterator[str]:
    """Say who meets the SLO with the fewest cores, and where nobody does."""
    for start in comparison.starts:
        cells = comparison.cells_of(start=start)
        counts = Counter(map(comparison.cheapest, cells))
        nobody = counts.pop("", 0)
        parts = [f"{agent} in {count}" for agent, count in counts.most_common()]
        if nobody:
            parts.append(f"none in {nobody}")
        few = percent(FEW_VIOLATIONS, 1)
        yield (
            f"With a {start} start, the cheapest agent with at most {few} avoidable violations "
            f"is, of {len(cells)} cell{'s' * (len(cells) > 1)}, {listed(parts)}."
        )


def _bounds(comparison: Comparison) -> Iterator[str]:
    """Say how exact the bounds are."""
    for name, gaps in comparison.bound_gaps().items():
        widest, median = percent(gaps["cores"].max(), 1), percent(gaps["cores"].median(), 1)
        open_cells = gaps["violations"] > 0
        sentence = (
            f"Between what is proven of the bound {name} and what is attained lie at most "
            f"{widest} of the core-seconds, {median} in the median cell"
        )
        if open_cells.any():
            most = percent(gaps["violations"].max(), 3)
            sentence += (
                f"; its violations are more than the fewest that are proven in "
                f"{open_cells.sum()} of {len(gaps)} cells, by at most {most} of the requests"
            )
        yield f"{sentence}."


def listed(parts: Sequence[str]) -> str:
    """Join as in a sentence."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def percent(share: float, digits: int = 0) -> str:
    """Write a share in per cent."""
    return f"{share * 100:.{digits}f} %"
