"""Which options of which controller are tuned, over which values, and what is best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RULE_TOLERANCE = 0.001
"""Avoidable violations, as a share of all requests, that fewer cores may cost a rule."""


@dataclass(frozen=True, slots=True)
class Search:
    """Where to look for one controller's options."""

    grid: Mapping[str, tuple[Any, ...]]
    """Values of each option; all combinations are tried."""
    smallest: str = ""
    """Option that is made as small as possible in each combination: cores, by bisection,
    which takes violations to fall with them."""
    tolerance: float = RULE_TOLERANCE
    """Share of avoidable violations that is as good as none."""

    def combinations(self) -> list[dict[str, Any]]:
        """Return all combinations, the last option's values first."""
        chosen = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in chosen]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How options did on a cell, over all training seeds."""

    options: dict[str, Any]
    avoidable_violation_rate: float
    mean_cores: float

    def rank(self, allowed: float) -> tuple[float, float]:
        """Return what is to be small: violations beyond the allowed share, then cores."""
        return max(0.0, self.avoidable_violation_rate - allowed), self.mean_cores


def search_options(
    search: Search, allowed: float, cores_max: int, attempt: Callable[[dict[str, Any]], Outcome]
) -> Iterator[Outcome]:
    """Yield what comes of all combinations of a search.

    Args:
        search: Where to look.
        allowed: Share of avoidable violations that counts as none.
        cores_max: Largest value of the option to be made small.
        attempt: Tries options.
    """
    for options in search.combinations():
        if not search.smallest:
            yield attempt(options)
            continue
        low, high = 1, cores_max
        while low <= high:
            middle = (low + high) // 2
            outcome = attempt({**options, search.smallest: middle})
            yield outcome
            if outcome.avoidable_violation_rate <= allowed:
                high = middle - 1
            else:
                low = middle + 1


YARDSTICK = "static"
"""With all cores and its best batch size it misses only what hardly anything could save."""

_BATCHES = (1, 2, 4, 8, 16)
_HPA = Search({"target": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "batch_slo_share": (0.2, 0.35)})

SEARCHES: Mapping[str, Search] = {
    "fa2": Search({"slo_fraction": (0.5, 0.7, 0.9), "rate_windows": (1, 10, 30)}),
    "hpa": _HPA,
    "hpa-fast": _HPA,
    "queue-rule": Search(
        {"up_queue": (0.1, 0.25, 0.5, 1.0), "down_after": (3, 10), "batch_slo_share": (0.2, 0.35)}
    ),
    "sponge-no-scaling": Search({}, smallest="cores_fixed"),
    YARDSTICK: Search({"batch": _BATCHES}, tolerance=0.0),
    "static-tuned": Search({"batch": _BATCHES}, smallest="cores", tolerance=0.0),
    "throttle": Search(
        {"target": (0.01, 0.03, 0.1, 0.2), "usage_windows": (5, 15), "batch_slo_share": (0.2, 0.35)}
    ),
    "vpa": Search(
        {
            "percentile": (0.9, 0.98),
            "margin": (1.0, 1.15, 1.5),
            "batch_slo_share": (0.2, 0.35),
        }
    ),
}
"""By registered name."""
