"""Search the best options of a grid, without finishing what cannot win any more.

The search tries the controller's defaults and all combinations of the first, middle and last
values of the grid. From the best of them it goes to the best of all that lie one step away in
some or all options, until none is better. At the end stands what is tuned of which controller.

Episodes only ever add violations and cores. Options are therefore given up as soon as those
that they have so far, in the midst of an episode, already rank behind what the best has after all
seeds: the outcome is that of running every seed, at less cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    """Ends of the grid beyond which there is nothing to look for."""
    start: Options = field(default_factory=dict)
    """The controller's defaults, which are tried first."""
    smallest: str = ""
    """Option that is made as small as possible in each combination: cores, by bisection,
    which takes violations to fall with them."""
    tolerance: float = RULE_TOLERANCE
    """Share of avoidable violations that is as good as none."""

    def combinations(self) -> list[Options]:
        """Return all combinations, the last option's values first."""
        return self._product(self.grid.values())

    def coarse(self) -> list[Options]:
        """Return all combinations of the options' first, middle and last values."""
        levels = (dict.fromkeys((v[0], v[(len(v) - 1) // 2], v[-1])) for v in self.grid.values())
        return self._product(tuple(values) for values in levels)

    def neighbours(self, options: Options) -> list[Options]:
        """Return all combinations that lie one step at most from another in each option."""
        places = ((v, v.index(options[name])) for name, v in self.grid.items())
        return self._product(v[max(0, at - 1) : at + 2] for v, at in places)

    def _product(self, axes: Iterable[tuple[Any, ...]]) -> list[Options]:
        chosen = itertools.product(*axes)
        return [dict(zip(self.grid, values, strict=True)) for values in chosen]


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
    """Options that gained at an end of their grid, beyond which there may be more."""
    percent_lost: float = 0.0
    """How much less accurate the answers were than the best model's, in percent of that."""

    def rank(self, allowed: float) -> tuple[float, float]:
        """Return what is to be small: violations beyond the allowed share, then cores.

        A percent of accuracy is worth :data:`ACCURACY_PRICE` of them.
        """
        cost_cores = self.mean_cores + ACCURACY_PRICE * self.percent_lost
        return max(0.0, self.avoidable_violation_rate - allowed), cost_cores


Attempt = Callable[[Options, Candidate | None], Candidate]
"""Tries options, and may give them up once they rank behind another trial."""


class Race:
    """Tries options one after another, each once, and remembers the best."""

    def __init__(self, search: Search, allowed: float, attempt: Attempt, first: Options) -> None:
        """Try the first options; ``allowed`` violations, as a share, count as none."""
        self.search, self.allowed, self._attempt = search, allowed, attempt
        self.best = attempt(first, None)
        self.trials = [self.best]

    def enter(self, options: Options) -> Candidate:
        """Try options; of equally good ones the first stay the best."""
        for trial in self.trials:
            if trial.options == options:
                return trial
        trial = self._attempt(options, self.best)
        self.trials.append(trial)
        if trial.rank(self.allowed) < self.best.rank(self.allowed):
            self.best = trial
        return trial

    def at_edge(self) -> tuple[str, ...]:
        """Return the options whose last step to an end of their grid has made things better."""
        best, natural = self.best.options, self.search.natural
        return tuple(
            name
            for name, values in self.search.grid.items()
            if best[name] in (values[0], values[-1])
            and best[name] not in natural.get(name, ())
            and self._gains(name, values[1] if best[name] == values[0] else values[-2])
        )

    def _gains(self, name: str, inner: Any) -> bool:
        """Return whether the best is better than with the value before an option's end."""
        wanted = {key: self.best.options[key] for key in self.search.grid} | {name: inner}
        return all(
            trial.rank(self.allowed) > self.best.rank(self.allowed)
            for trial in self.trials
            if wanted.items() <= trial.options.items()
        )


def find_best(search: Search, allowed: float, cores_max: int, attempt: Attempt) -> Candidate:
    """Return the best options that a search finds.

    ``cores_max`` is the largest value of the option to be made small.
    """
    if search.smallest:
        race = _bisect(search, allowed, cores_max, attempt)
    else:
        race = _climb(search, allowed, attempt)
    return replace(race.best, at_edge=race.at_edge())


def _climb(search: Search, allowed: float, attempt: Attempt) -> Race:
    """Go from the best of a coarse grid to ever better neighbours."""
    race = Race(search, allowed, attempt, search.start)
    for options in search.coarse():
        race.enter(options)
    # A new best moves the neighbourhood; a round without one ends the climb.
    centre = None
    while race.best is not centre:
        centre = race.best
        for options in search.neighbours(centre.options):
            race.enter(options)
    return race


def _bisect(search: Search, allowed: float, cores_max: int, attempt: Attempt) -> Race:
    """Make one option as small as possible in each combination of the others."""
    combinations = search.combinations()
    race = Race(search, allowed, attempt, {**combinations[0], search.smallest: cores_max})
    for options in combinations:
        low, high = 1, cores_max
        while low <= high:
            middle = (low + high) // 2
            trial = race.enter({**options, search.smallest: middle})
            # What was given up for its cores has few violations so far, and fewer come next.
            if trial.avoidable_violation_rate <= allowed:
                high = middle - 1
            else:
                low = middle + 1
    return race


YARDSTICK = "static"
"""With all cores and its best batch size it misses only what hardly anything could save."""

Axis = tuple[tuple[Any, ...], Any, tuple[Any, ...]]
"""Values of an option, its default, and the ends beyond which there is nothing to look for."""


def _search(axes: Mapping[str, Axis], smallest: str = "", **more: float) -> Search:
    grid, start, natural = ({name: axis[k] for name, axis in axes.items()} for k in range(3))
    return Search(grid, natural, {} if smallest else start, smallest, **more)


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
    "sponge-no-scaling": _search({}, smallest="cores_fixed"),
    YARDSTICK: _search(_BATCH, tolerance=0.0),
    "static-tuned": _search(_BATCH, smallest="cores"),
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
    "static-tuned": _search({**_BATCH, **_REPLICAS}, smallest="cores"),
}
"""Those that differ where a request goes through several stages."""
