"""Search the best options of a grid, without finishing what cannot win any more.

The search tries the controller's defaults and all combinations of the first, middle and last
values of the grid. From the best of them it goes to the best of all that lie one step away in
some or all options, until none is better.

Episodes only ever add violations and cores. Options are therefore given up as soon as those
that they have after some of the seeds already rank behind what the best so far has after all
of them: the outcome is that of running every seed, at less cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from baselines.searches import Search

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How options did on a cell, over all training seeds."""

    options: Options
    avoidable_violation_rate: float
    """Share of all requests; at least that, if they were given up."""
    mean_cores: float
    """Core units; at least that, if they were given up."""
    offered: int
    """Requests of all seeds, whatever is done with them."""
    at_edge: tuple[str, ...] = ()
    """Options that were worth taking to an end of their grid, beyond which there may be more."""

    def rank(self, allowed: float) -> tuple[float, float]:
        """Return what is to be small: violations beyond the allowed share, then cores."""
        return max(0.0, self.avoidable_violation_rate - allowed), self.mean_cores


Attempt = Callable[[Options, Outcome | None], Outcome]
"""Tries options, and may give them up once they rank behind an outcome."""


class Race:
    """Tries options one after another, each once, and remembers the best."""

    def __init__(self, allowed: float, attempt: Attempt, first: Options) -> None:
        """Try the first options.

        Args:
            allowed: Share of avoidable violations that counts as none.
            attempt: Tries options.
            first: They are the best so far.
        """
        self.allowed = allowed
        self._attempt = attempt
        self.best = attempt(first, None)
        self.outcomes = [self.best]

    def enter(self, options: Options) -> Outcome:
        """Try options; of equally good ones the first stay the best."""
        for outcome in self.outcomes:
            if outcome.options == options:
                return outcome
        outcome = self._attempt(options, self.best)
        self.outcomes.append(outcome)
        if outcome.rank(self.allowed) < self.best.rank(self.allowed):
            self.best = outcome
        return outcome


def find_best(search: Search, allowed: float, cores_max: int, attempt: Attempt) -> Outcome:
    """Return the best options that a search finds.

    Args:
        search: Where to look.
        allowed: Share of avoidable violations that counts as none.
        cores_max: Largest value of the option to be made small.
        attempt: Tries options.
    """
    if search.smallest:
        race = _bisect(search, allowed, cores_max, attempt)
    else:
        race = _climb(search, allowed, attempt)
    return replace(race.best, at_edge=_at_edge(race, search))


def _climb(search: Search, allowed: float, attempt: Attempt) -> Race:
    """Go from the best of a coarse grid to ever better neighbours."""
    race = Race(allowed, attempt, search.start)
    for options in search.coarse():
        race.enter(options)
    centre = None
    while race.best is not centre:
        centre = race.best
        for options in search.neighbours(centre.options):
            race.enter(options)
    return race


def _bisect(search: Search, allowed: float, cores_max: int, attempt: Attempt) -> Race:
    """Make one option as small as possible in each combination of the others."""
    combinations = search.combinations()
    race = Race(allowed, attempt, {**combinations[0], search.smallest: cores_max})
    for options in combinations:
        low, high = 1, cores_max
        while low <= high:
            middle = (low + high) // 2
            outcome = race.enter({**options, search.smallest: middle})
            # What was given up for its cores has few violations so far, and fewer come next.
            if outcome.avoidable_violation_rate <= allowed:
                high = middle - 1
            else:
                low = middle + 1
    return race


def _at_edge(race: Race, search: Search) -> tuple[str, ...]:
    """Return the options whose last step to an end of their grid has made things better."""
    best = race.best.options
    return tuple(
        name
        for name, values in search.grid.items()
        if best[name] in (values[0], values[-1])
        and best[name] not in search.natural.get(name, ())
        and _gains(race, search, name)
    )


def _gains(race: Race, search: Search, name: str) -> bool:
    """Return whether the best is better than with the value before an option's end."""
    best, values = race.best, search.grid[name]
    inner = values[1] if best.options[name] == values[0] else values[-2]
    wanted = {key: best.options[key] for key in search.grid} | {name: inner}
    return all(
        outcome.rank(race.allowed) > best.rank(race.allowed)
        for outcome in race.outcomes
        if wanted.items() <= outcome.options.items()
    )
