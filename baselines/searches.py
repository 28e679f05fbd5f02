"""Which options of which controller are tuned, and over which values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RULE_TOLERANCE = 0.0005
"""Avoidable violations, as a share of all requests, that count as none. It is what the
experiment asks of Sponge's program (0.05 %), so that no rule may save cores with more."""


@dataclass(frozen=True, slots=True)
class Search:
    """Where to look for one controller's options."""

    grid: Mapping[str, tuple[Any, ...]]
    """Values of each option, ascending where they are numbers; two at least."""
    natural: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Ends of the grid beyond which there is nothing to look for."""
    start: dict[str, Any] = field(default_factory=dict)
    """The controller's defaults, which are tried first."""
    smallest: str = ""
    """Option that is made as small as possible in each combination: cores, by bisection,
    which takes violations to fall with them."""
    tolerance: float = RULE_TOLERANCE
    """Share of avoidable violations that is as good as none."""

    def combinations(self) -> list[dict[str, Any]]:
        """Return all combinations, the last option's values first."""
        return self._product(self.grid.values())

    def coarse(self) -> list[dict[str, Any]]:
        """Return all combinations of the options' first, middle and last values."""
        levels = (dict.fromkeys((v[0], v[(len(v) - 1) // 2], v[-1])) for v in self.grid.values())
        return self._product(tuple(values) for values in levels)

    def neighbours(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all combinations that lie one step at most from another in each option."""
        places = ((v, v.index(options[name])) for name, v in self.grid.items())
        return self._product(v[max(0, at - 1) : at + 2] for v, at in places)

    def _product(self, axes: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
        chosen = itertools.product(*axes)
        return [dict(zip(self.grid, values, strict=True)) for values in chosen]


YARDSTICK = "static"
"""With all cores and its best batch size it misses only what hardly anything could save."""

# A batch of one, and the largest that the shipped scenarios allow.
_BATCH = {"batch": (1, 2, 4, 8, 16)}
_BATCH_ENDS = {"batch": (1, 16)}

# At 0.01 all batches are of one; of two batches in a row that are longer than 0.5, the second
# ends after the SLO.
_SHARE = {"batch_slo_share": (0.01, 0.1, 0.2, 0.3, 0.5)}
_SHARE_ENDS = {"batch_slo_share": (0.01, 0.5)}
_SHARE_START = {"batch_slo_share": 0.3}

# Above 1 / (1 + tolerance) = 0.91, a busy replica is within the tolerance: no scaling out.
_HPA = Search(
    grid={"target": (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), **_SHARE},
    natural={"target": (0.9,), **_SHARE_ENDS},
    start={"target": 0.8, **_SHARE_START},
)

# 1 is the whole SLO; in 0.15 of it hardly anything fits on the shipped profiles, so that all
# there is is asked for. A view holds the last 30 intervals.
_SLO_FRACTION = {"slo_fraction": (0.15, 0.3, 0.5, 0.7, 0.9, 1.0)}
_SLO_ENDS = {"slo_fraction": (0.15, 1.0)}
_RATE_ENDS = {"rate_windows": (1, 30)}

SEARCHES: Mapping[str, Search] = {
    "fa2": Search(
        grid={
            **_SLO_FRACTION,
            "rate_windows": (1, 3, 10, 30),
            "when_infeasible": ("keep", "largest"),
        },
        natural={
            **_SLO_ENDS,
            **_RATE_ENDS,
            "when_infeasible": ("keep", "largest"),
        },
        start={"slo_fraction": 0.9, "rate_windows": 1, "when_infeasible": "largest"},
    ),
    "hpa": _HPA,
    "hpa-fast": _HPA,
    # Below 1/16 request per core, of at most 16, any request that waits adds cores; after 100
    # calm intervals of 600 hardly any are given back.
    "queue-rule": Search(
        grid={
            "up_queue": (0.06, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
            "down_after": (1, 3, 10, 30, 100),
            **_SHARE,
        },
        natural={"up_queue": (0.06,), "down_after": (1, 100), **_SHARE_ENDS},
        start={"up_queue": 1.0, "down_after": 10, **_SHARE_START},
    ),
    "sponge-no-scaling": Search({}, smallest="cores_fixed"),
    YARDSTICK: Search(_BATCH, natural=_BATCH_ENDS, start={"batch": 16}, tolerance=0.0),
    "static-tuned": Search(_BATCH, natural=_BATCH_ENDS, smallest="cores", tolerance=0.0),
    # A number of replicas wanted for 100 intervals is hardly ever met where the load moves.
    "themis": Search(
        grid={
            **_SLO_FRACTION,
            "rate_windows": (1, 2, 5, 10, 30),
            "stable_windows": (1, 3, 10, 30, 100),
        },
        natural={**_SLO_ENDS, **_RATE_ENDS, "stable_windows": (1, 100)},
        start={"slo_fraction": 0.9, "rate_windows": 2, "stable_windows": 3},
    ),
    # At 0.001 practically any throttling makes the cores grow; above 1/3 none does, for three
    # times that is more than all periods. Two intervals are the fewest with a deviation.
    "throttle": Search(
        grid={
            "target": (0.001, 0.003, 0.01, 0.05, 0.1, 0.2, 0.3),
            "usage_windows": (2, 5, 15, 30, 60),
            **_SHARE,
        },
        natural={"target": (0.001, 0.3), "usage_windows": (2,), **_SHARE_ENDS},
        start={"target": 0.05, "usage_windows": 5, **_SHARE_START},
    ),
    # The largest usage is the 100th percentile. A margin below 1 would give less than was
    # used, and cores that are in use all the time would not grow.
    "vpa": Search(
        grid={
            "percentile": (0.5, 0.9, 0.98, 1.0),
            "margin": (1.0, 1.15, 1.5, 2.0, 3.0, 5.0),
            **_SHARE,
        },
        natural={"percentile": (1.0,), "margin": (1.0,), **_SHARE_ENDS},
        start={"percentile": 0.9, "margin": 1.15, **_SHARE_START},
    ),
}
"""By registered name."""
