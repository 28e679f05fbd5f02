"""Which options are searched for each controller, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sponge_env.interfaces import ACCURACY_PRICE

Options = dict[str, Any]
Grid = dict[str, tuple[Any, ...]]
"""Values of each option, ascending where they are numbers."""

TOLERANCE = 0.0005
"""Avoidable violations beyond the yardstick's, as a share of all requests, that count as none:
0.05 %, for every controller alike, fixed allocations too, so that each may save cores with as
many. The yardstick itself is chosen for the fewest."""
ALL_CORES: tuple[int, ...] = ()
"""Stands for all numbers of cores that a scenario allows."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """How options did on a cell, over all training seeds."""

    options: Options
    avoidable_violation_rate: float
    """Share of all requests; at least that, if they were given up."""
    mean_cores: float
    """Core units; at least that, if they were given up."""
    offered: int
    """Requests of all seeds, whatever is done with them."""
    percent_lost: float = 0.0
    """How much less accurate the answers were than the best model's, in percent of that."""

    def rank(self, allowed: float) -> tuple[float, float]:
        """Return what is to be small: violations beyond the allowed share, then cores.

        A percent of accuracy is worth :data:`ACCURACY_PRICE` of them.
        """
        cost_cores = self.mean_cores + ACCURACY_PRICE * self.percent_lost
        return max(0.0, self.avoidable_violation_rate - allowed), cost_cores


YARDSTICK = "static"
"""With all cores and its best batch size it misses only what hardly anything could save."""

# A batch of one, and the largest that the shipped scenarios allow.
_BATCH: Grid = {"batch": (1, 2, 4, 8, 16)}

# At 0.01 all batches are of one; of two batches in a row that are longer than 0.5, the second
# ends after the SLO.
_SHARE: Grid = {"batch_slo_share": (0.01, 0.1, 0.2, 0.3, 0.5)}


def _hpa(*windows_s: float) -> Grid:
    """Return the grid of a horizontal pod autoscaler, with such windows for scaling in."""
    # Above 1 / (1 + tolerance) = 0.91, a busy replica is within the tolerance: no scaling out.
    target = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
    return {"target": target, "down_window_s": windows_s, **_SHARE}


# 1 is the whole SLO; in 0.15 of it hardly anything fits on the shipped profiles, so that all
# there is is asked for. A view holds the last 30 intervals.
_SLO: Grid = {"slo_fraction": (0.15, 0.3, 0.5, 0.7, 0.9, 1.0)}

# The fit of YOLOv5s is up to 28 % too fast. Less than nothing would plan to be late.
_HEADROOM: Grid = {"headroom": (0.0, 0.1, 0.2, 0.3, 0.5)}

# Planning with so much more than a batch takes is the only margin that the program has.
_IPA: Grid = {
    "cores": (1, 2, 4),
    "slo_fraction": (0.15, 0.3, 0.5, 0.8, 1.0),
    "headroom": (0.0, 0.1, 0.3, 0.5, 1.0),
    "rate_windows": (1, 3, 10, 20, 30),
}

# Of the look-ahead programs what trades cores for late requests: how far before a deadline an
# answer counts as late, and whether an interval more is played.
_PROGRAM: Grid = {"guard": (0.05, 0.15, 0.3), "look_ahead": (0, 1)}

SEARCHES: Mapping[str, Grid] = {
    "fa2": {
        **_SLO,
        **_HEADROOM,
        "rate_windows": (1, 3, 10, 30),
        "when_infeasible": ("keep", "largest"),
    },
    "hpa": _hpa(0.0, 30.0, 100.0, 300.0, 600.0),
    "hpa-fast": _hpa(0.0, 5.0, 20.0, 60.0, 300.0, 600.0),
    "ipa": _IPA,
    # Below 1/16 request per core, of at most 16, any request that waits adds cores; after 100
    # calm intervals of 600 hardly any are released.
    "queue-rule": {
        "up_queue": (0.06, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        "down_after": (1, 3, 10, 30, 100),
        **_SHARE,
    },
    # At 1.0 a replica is trusted with all that it serves.
    "sponge-joint": {**_PROGRAM, "utilisation": (0.75, 0.9, 1.0)},
    "sponge-mpc": {**_PROGRAM, "late_price": (5.0, 15.0, 45.0)},
    "sponge-no-scaling": {"cores_fixed": ALL_CORES},
    YARDSTICK: _BATCH,
    "static-tuned": {**_BATCH, "cores": ALL_CORES},
    # A number of replicas wanted for 100 intervals is hardly ever met where the load moves.
    "themis": {
        **_SLO,
        **_HEADROOM,
        "rate_windows": (1, 2, 5, 10, 30),
        "stable_windows": (1, 3, 10, 30, 100),
    },
    # At 0.001 practically any throttling makes the cores grow; above 1/3 none does, for three
    # times that is more than all periods. Two intervals are the fewest with a deviation.
    "throttle": {
        "target": (0.001, 0.003, 0.01, 0.05, 0.1, 0.2, 0.3),
        "usage_windows": (2, 5, 15, 30, 60),
        **_SHARE,
    },
    # The largest usage is the 100th percentile; hardly any is below the first. A margin below 1
    # would give less than was used, and cores that are in use all the time would not grow.
    "vpa": {
        "percentile": (0.01, 0.1, 0.25, 0.5, 0.9, 0.98, 1.0),
        "margin": (1.0, 1.15, 1.5, 2.0, 3.0, 5.0),
        **_SHARE,
    },
}
"""By registered name."""

# As many replicas of four cores as the machine has room for, and fewer.
_REPLICAS: Grid = {"replicas": (1, 2, 3, 4, 6, 8)}

IN_PIPELINES: Mapping[str, Grid] = {
    # Stages have to be quick rather than busy, so that the default is half of a single model's.
    "sponge-joint": {**_PROGRAM, "utilisation": (0.3, 0.45, 0.6)},
    YARDSTICK: {**_BATCH, **_REPLICAS},
    "static-tuned": {**_BATCH, **_REPLICAS, "cores": ALL_CORES},
}
"""Those that differ where a request goes through several stages."""
