"""Which options are searched for each controller, and how good they are.

At the edge of a grid a better value may lie beyond, unless that is its natural end: there is
nothing to look for beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sponge_env.interfaces import ACCURACY_PRICE

Options = dict[str, Any]

RULE_TOLERANCE = 0.0005
"""Avoidable violations beyond the yardstick's, as a share of all requests, that count as none:
0.05 %, for every controller alike, fixed allocations too, so that each may save cores with as
many. The yardstick itself is chosen for the fewest."""


@dataclass(frozen=True, slots=True)
class Search:
    """Where to look for one controller's options."""

    grid: Mapping[str, tuple[Any, ...]]
    """Values of each option, ascending where they are numbers; two at least."""
    natural: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Natural ends of the grid."""
    start: Options = field(default_factory=dict)
    """The controller's defaults, which are tried first."""
    cores: str = ""
    """Option that is a number of cores: its values are all that the scenario allows, which is
    where the search starts."""
    tolerance: float = RULE_TOLERANCE
    """Share of avoidable violations that is as good as none."""

    def on(self, cores_max: int) -> Search:
        """Return the same with the cores of a scenario as one of the options."""
        if not self.cores:
            return self
        grid = {**self.grid, self.cores: tuple(range(1, cores_max + 1))}
        natural = {**self.natural, self.cores: (1, cores_max)}
        return Search(grid, natural, {**self.start, self.cores: cores_max}, "", self.tolerance)

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(map(len, self.grid.values()))

    def at_edge(self, options: Options) -> tuple[str, ...]:
        """Return the options whose values are at an end of their grid, but no natural one."""
        return tuple(
            name
            for name, values in self.grid.items()
            if options[name] in (values[0], values[-1])
            and options[name] not in self.natural.get(name, ())
        )


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
    at_edge: tuple[str, ...] = ()
    """See :meth:`Search.at_edge`."""
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

Axis = tuple[tuple[Any, ...], Any, tuple[Any, ...]]
"""Values of an option, its default, and the ends beyond which there is nothing to look for."""


def _search(axes: Mapping[str, Axis], cores: str = "", **more: float) -> Search:
    grid, start, natural = ({name: axis[k] for name, axis in axes.items()} for k in range(3))
    return Search(grid, natural, start, cores, **more)


# A batch of one, and the largest that the shipped scenarios allow.
_BATCH: dict[str, Axis] = {"batch": ((1, 2, 4, 8, 16), 16, (1, 16))}

# At 0.01 all batches are of one; of two batches in a row that are longer than 0.5, the second
# ends after the SLO.
_SHARE: dict[str, Axis] = {"batch_slo_share": ((0.01, 0.1, 0.2, 0.3, 0.5), 0.3, (0.01, 0.5))}


def _hpa(windows_s: tuple[float, ...], default_s: float) -> Search:
    """Search as for a horizontal pod autoscaler, whose window for scaling in has a default."""
    # Above 1 / (1 + tolerance) = 0.91, a busy replica is within the tolerance: no scaling out.
    target: Axis = ((0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), 0.8, (0.9,))
    window: Axis = (windows_s, default_s, (0.0, 600.0))  # none, and as long as an episode
    return _search({"target": target, "down_window_s": window, **_SHARE})


# 1 is the whole SLO; in 0.15 of it hardly anything fits on the shipped profiles, so that all
# there is is asked for. A view holds the last 30 intervals.
_SLO: dict[str, Axis] = {"slo_fraction": ((0.15, 0.3, 0.5, 0.7, 0.9, 1.0), 0.9, (0.15, 1.0))}
_RATE_ENDS = (1, 30)

# The fit of YOLOv5s is up to 28 % too fast. Less than nothing would plan to be late.
_HEADROOM: dict[str, Axis] = {"headroom": ((0.0, 0.1, 0.2, 0.3, 0.5), 0.0, (0.0,))}

# Planning with so much more than a batch takes is the only margin that the program has.
_IPA: dict[str, Axis] = {
    "cores": ((1, 2, 4), 2, (1, 4)),
    "slo_fraction": ((0.15, 0.3, 0.5, 0.8, 1.0), 0.8, (0.15, 1.0)),
    "headroom": ((0.0, 0.1, 0.3, 0.5, 1.0), 0.3, (0.0,)),
    "rate_windows": ((1, 3, 10, 20, 30), 20, _RATE_ENDS),
}

# Of the look-ahead programs what trades cores for late requests: how far before a deadline an
# answer counts as late, and whether an interval more is played.
_PROGRAM: dict[str, Axis] = {
    "guard": ((0.05, 0.15, 0.3), 0.15, ()),
    "look_ahead": ((0, 1), 1, (0,)),
}

SEARCHES: Mapping[str, Search] = {
    "fa2": _search(
        {
            **_SLO,
            **_HEADROOM,
            "rate_windows": ((1, 3, 10, 30), 1, _RATE_ENDS),
            "when_infeasible": (("keep", "largest"), "largest", ("keep", "largest")),
        }
    ),
    "hpa": _hpa((0.0, 30.0, 100.0, 300.0, 600.0), default_s=300.0),
    "hpa-fast": _hpa((0.0, 5.0, 20.0, 60.0, 300.0, 600.0), default_s=20.0),
    "ipa": _search(_IPA),
    # Below 1/16 request per core, of at most 16, any request that waits adds cores; after 100
    # calm intervals of 600 hardly any are released.
    "queue-rule": _search(
        {
            "up_queue": ((0.06, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), 1.0, (0.06,)),
            "down_after": ((1, 3, 10, 30, 100), 10, (1, 100)),
            **_SHARE,
        }
    ),
    # At 1.0 a replica is trusted with all that it serves.
    "sponge-joint": _search({**_PROGRAM, "utilisation": ((0.75, 0.9, 1.0), 0.9, (1.0,))}),
    "sponge-mpc": _search({**_PROGRAM, "late_price": ((5.0, 15.0, 45.0), 15.0, ())}),
    "sponge-no-scaling": _search({}, cores="cores_fixed"),
    YARDSTICK: _search(_BATCH, tolerance=0.0),
    "static-tuned": _search(_BATCH, cores="cores"),
    # A number of replicas wanted for 100 intervals is hardly ever met where the load moves.
    "themis": _search(
        {
            **_SLO,
            **_HEADROOM,
            "rate_windows": ((1, 2, 5, 10, 30), 2, _RATE_ENDS),
            "stable_windows": ((1, 3, 10, 30, 100), 3, (1, 100)),
        }
    ),
    # At 0.001 practically any throttling makes the cores grow; above 1/3 none does, for three
    # times that is more than all periods. Two intervals are the fewest with a deviation.
    "throttle": _search(
        {
            "target": ((0.001, 0.003, 0.01, 0.05, 0.1, 0.2, 0.3), 0.05, (0.001, 0.3)),
            "usage_windows": ((2, 5, 15, 30, 60), 5, (2,)),
            **_SHARE,
        }
    ),
    # The largest usage is the 100th percentile; hardly any is below the first. A margin below 1
    # would give less than was used, and cores that are in use all the time would not grow.
    "vpa": _search(
        {
            "percentile": ((0.01, 0.1, 0.25, 0.5, 0.9, 0.98, 1.0), 0.9, (0.01, 1.0)),
            "margin": ((1.0, 1.15, 1.5, 2.0, 3.0, 5.0), 1.15, (1.0,)),
            **_SHARE,
        }
    ),
}
"""By registered name."""

# As many replicas of four cores as the machine has room for, and fewer.
_REPLICAS: dict[str, Axis] = {"replicas": ((1, 2, 3, 4, 6, 8), 4, (1, 8))}

IN_PIPELINES: Mapping[str, Search] = {
    # Stages have to be quick rather than busy, so that the default is half of a single model's.
    "sponge-joint": _search({**_PROGRAM, "utilisation": ((0.3, 0.45, 0.6), 0.45, ())}),
    YARDSTICK: _search({**_BATCH, **_REPLICAS}, tolerance=0.0),
    "static-tuned": _search({**_BATCH, **_REPLICAS}, cores="cores"),
}
"""Those that differ where a request goes through several stages."""
