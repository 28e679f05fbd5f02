"""Which options are searched for each controller."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Values = dict[str, Any]  # Of options, by name


@dataclass(frozen=True, slots=True)
class Range:
    """Where a number is searched."""

    low: float
    high: float
    log: bool = False  # Whether it is searched by its logarithm
    least: float = -math.inf  # The range is never widened below this
    most: float = math.inf  # Nor above this

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are searched."""
        return isinstance(self.low, int)

    def widened(self, value: float) -> "Range":
        """Return the range with more room at the end where a value lies, if there may be more."""
        scale, back = (math.log, math.exp) if self.log else (float, float)
        first, last, at = map(scale, (self.low, self.high, value))
        near = 0.0 if self.whole else 0.02 * (last - first)
        more = math.log(4) if self.log else last - first
        low, high = self.low, self.high
        if at <= first + near:
            low = max(back(first - more), self.least)
        if at >= last - near:
            high = min(back(last + more), self.most)
        if self.whole:
            low, high = round(low), round(high)
        return replace(self, low=low, high=high)


Space = Mapping[str, Range | tuple[Any, ...]]  # Range of each option, or the words that it may be

# Two batches in a row that are longer than half the SLO: the second ends after it.
_BATCH: Space = {"batch_slo_share": Range(0.02, 0.5, log=True, least=0.001, most=1.0)}

_WINDOWS = Range(1, 30, log=True, least=1, most=30)  # Past intervals; a view holds no more

_PLAN: Space = {
    "slo_fraction": Range(0.5, 1.0, least=0.5, most=1.0),
    "headroom": Range(0.0, 0.5, least=0.0),
    "rate_windows": _WINDOWS,
}

_PROGRAM: Space = {
    "guard": Range(0.005, 0.3, log=True, least=0.001, most=0.9),
    "late_price": Range(3.0, 100.0, log=True),
    "look_ahead": Range(0, 2, least=0, most=5),
    "headroom": Range(0.0, 0.5, least=0.0),
}

SEARCHES: Mapping[str, Space] = {
    "fa2": {**_PLAN, "when_infeasible": ("keep", "largest")},
    "hpa": {
        "target": Range(0.3, 0.9, least=0.05, most=0.95),
        "down_window_s": Range(0.0, 600.0, least=0.0),
        "min_replicas": Range(1, 8, log=True, least=1),
        "cores": Range(1, 4, log=True, least=1, most=8),
        **_BATCH,
    },
    "ipa": {**_PLAN, "cores": Range(1, 4, least=1, most=4)},
    "queue-rule": {
        "up_queue": Range(0.06, 16.0, log=True),
        "down_after": Range(1, 100, log=True, least=1),
        **_BATCH,
    },
    "sponge-ip": {"headroom": Range(0.0, 0.5, least=0.0)},
    "sponge-joint": {**_PROGRAM, "utilisation": Range(0.5, 1.0, least=0.05, most=1.0)},
    "sponge-mpc": _PROGRAM,
    "themis": {**_PLAN, "stable_windows": Range(1, 100, log=True, least=1)},
}  # By registered name
