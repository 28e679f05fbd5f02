"""Which options of which controller are tuned, and over which values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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


_HPA = Search({"target": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "batch_slo_share": (0.2, 0.35)})

SEARCHES: Mapping[str, Search] = {
    "fa2": Search({"slo_fraction": (0.7, 0.8, 0.9), "rate_windows": (1, 5, 15)}),
    "hpa": _HPA,
    "hpa-fast": _HPA,
    "queue-rule": Search(
        {"up_queue": (0.25, 0.5, 1.0), "down_after": (3, 10), "batch_slo_share": (0.2, 0.35)}
    ),
    "sponge-no-scaling": Search({}, smallest="cores_fixed"),
    "static-tuned": Search({"batch": (1, 2, 4, 8, 16)}, smallest="cores", tolerance=0.0),
    "throttle": Search(
        {"target": (0.05, 0.1, 0.2), "usage_windows": (5, 15), "batch_slo_share": (0.2, 0.35)}
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
