"""The cheapest way through a chain of stages: one option for each, one budget for all.

What a stage may do is a list of options, each with a cost and a latency, and says of every latency
that may still come after it how many requests would be late then. The sum of the latencies is what
ties the stages together. As it is counted in ticks, dynamic programming from the last stage back
solves the program exactly, as IPA (Ghafouri et al., 2023) and FA2 (Razavi et al., RTAS 2022) do.

Who works the options out one by one, from the last stage back, lets each enter at once, and need
not work out what can no longer win (:func:`slack`, :func:`least_room`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import StageSpec

MANY = 2**40
"""Cost that no plan has."""
CORE = 2**20
"""Cost of a core for who counts in cores and parts of them."""
NO_WAY = 2**61
"""Cost, at least, of what cannot be."""
NEVER = -1
"""Room of an option with which a request is late whatever comes after."""


class Choices(NamedTuple):
    """The options of all stages, one stage after the other."""

    first: IntArray
    """(stages + 1,) where each stage's options begin, and their number."""
    ticks: IntArray
    """(options,) latency of a request that comes later, at most the horizon."""
    room: IntArray
    """(options,) longest latency of the stages after it with which nothing here is late, or
    :data:`NEVER`."""
    cores: IntArray
    """(options,) cores held."""
    cost: IntArray
    """(options,) at least 0; of all stages together below :data:`MANY`."""


class CostTables(NamedTuple):
    """What dynamic programming fills in."""

    costs: IntArray
    """(stages + 1, levels, horizon + 1) what the stages from one on cost if they hold so many cores
    and take so many ticks; with one level as many cores as they like."""
    option_at: IntArray
    """(stages, levels, horizon + 1) their first option."""
    after: IntArray
    """(horizon + 1,) what comes after an option, late requests included."""
    soonest: IntArray
    """(levels,) fewest ticks that the stages take which come after the one in turn."""


class Contest(NamedTuple):
    """What the options of a stage compete for: to cost least, with so many ticks from there on."""

    choices: Choices
    late: IntArray
    """(options, horizon + 1) as :func:`cheapest` takes it."""
    k: int
    """The stage."""
    costs: IntArray
    """(horizon + 1,) least cost so far; more ticks never cost more."""
    option_at: IntArray
    """(horizon + 1,) whose it is."""
    after: IntArray
    """(horizon + 1,) what the stages after it cost."""
    soonest: int
    """Fewest ticks that those take."""
    scratch: IntArray
    """(horizon + 1,) overwritten."""


class Chain:
    """Solves programs of one size."""

    def __init__(self, options: Sequence[int], horizon: int, total_cores: int) -> None:
        """Allocate all that programs need with so many options in each stage."""
        first = np.concatenate([[0], np.cumsum(options)]).astype(np.int64)
        self.horizon, self.total_cores, count = horizon, total_cores, int(first[-1])
        self.choices = Choices(first, *(np.zeros(count, np.int64) for _ in range(4)))
        self.late = np.zeros((count, horizon + 1), np.int64)
        self.chosen = np.zeros(len(options), np.int64)
        self._none_late = np.zeros((0, horizon + 1), np.int64)
        self.any_cores = _tables(len(options), horizon, 1)
        self._by_cores: CostTables | None = None

    def within(self, budget_ticks: int) -> bool:
        """Choose the options of least cost whose latencies add up to no more than a budget.

        Writes all rooms; returns whether there are such.
        """
        first, room = self.choices.first, self.choices.room
        room[:] = self.horizon
        # What the first stage leaves is for the others.
        room[: first[1]] = np.maximum(budget_ticks - self.choices.ticks[: first[1]], NEVER)
        room[self.choices.ticks >= self.horizon] = NEVER
        return self.cheapest() < MANY

    def options(self) -> list[int]:
        """Return the place of each stage's choice among the options of that stage."""
        chosen: list[int] = (self.chosen - self.choices.first[:-1]).tolist()
        return chosen

    def cheapest(self, count_late: bool = False) -> int:
        """Write the options of least cost to ``chosen``, and return what they cost.

        They hold no more than all cores. Either nothing is late, and the answer is at least
        :data:`MANY` where that cannot be; or as little as can be by ``late``, and
        each is :data:`MANY` of the answer.
        """
        late = self.late_rows(count_late)
        cost = cheapest(self.choices, late, self.any_cores, self.chosen)
        if cost < NO_WAY and not self.fits():
            # Only where the machine is too small for the cheapest are cores worth a dimension.
            if self._by_cores is None:
                self._by_cores = _tables(self.chosen.size, self.horizon, self.total_cores + 1)
            cost = cheapest(self.choices, late, self._by_cores, self.chosen)
        return cost

    def winners(self, count_late: bool) -> int:
        """Do the same with options that have entered ``any_cores``, whether they fit or not."""
        return winners(self.choices, self.late_rows(count_late), self.any_cores, self.chosen)

    def fits(self) -> bool:
        """Return whether the machine has all cores that the chosen options hold."""
        return bool(self.choices.cores[self.chosen].sum() <= self.total_cores)

    def late_rows(self, count_late: bool) -> IntArray:
        """Return ``late``, or an array without rows if late requests do not count."""
        return self.late if count_late else self._none_late


def _tables(stages: int, horizon: int, levels: int) -> CostTables:
    each = levels, horizon + 1
    shapes = (stages + 1, *each), (stages, *each), (horizon + 1,), (levels,)
    return CostTables(*(np.zeros(shape, np.int64) for shape in shapes))


def is_chain(stages: Sequence[StageSpec]) -> bool:
    """Return whether each stage follows the one before it and no other."""
    return all(stage.after == ((k - 1,) if k else ()) for k, stage in enumerate(stages))


@entry_point
def cheapest(choices: Choices, late: IntArray, tables: CostTables, chosen: IntArray) -> int:
    """Choose the options of least cost, overwriting (stages,) ``chosen``; return that.

    If ``late`` has rows, (options, horizon + 1) say how many requests each option makes late before
    latencies of 0, 1, ... ticks, the last of which stands for all beyond.
    """
    levels = tables.costs.shape[1]
    for k in range(chosen.size - 1, -1, -1):
        begin(tables, k)
        for option in range(choices.first[k], choices.first[k + 1]):
            held = choices.cores[option] if levels > 1 else 0
            for level in range(held, levels):
                contest = contest_of(choices, late, tables, k, level, level - held)
                least = late[option, contest.soonest] * MANY if late.shape[0] else 0
                if slack(contest, option) >= least:
                    enter(contest, option)
    return _read_back(choices, late, tables, chosen)


@entry_point
def winners(choices: Choices, late: IntArray, tables: CostTables, chosen: IntArray) -> int:
    """Do the same with options that have entered the tables."""
    return _read_back(choices, late, tables, chosen)


@compiled
def begin(tables: CostTables, k: int) -> None:
    """Begin with a stage, when the options of those after it have entered."""
    tables.costs[k] = NO_WAY
    for level in range(tables.soonest.size):
        tables.soonest[level] = _fewest_ticks(tables.costs[k + 1, level], NO_WAY - 1)


@compiled
def contest_of(
    choices: Choices, late: IntArray, tables: CostTables, k: int, level: int, left: int
) -> Contest:
    """Return the contest for so many cores of which an option leaves some to later stages."""
    costs, option_at = tables.costs[k, level], tables.option_at[k, level]
    after, soonest = tables.costs[k + 1, left], tables.soonest[left]
    return Contest(choices, late, k, costs, option_at, after, soonest, tables.after)


@compiled
def _fewest_ticks(costs: IntArray, most: int) -> int:
    """Return the fewest ticks with which the cost is at most that, or else the horizon."""
    low, high = 0, costs.size - 1
    while low < high:
        middle = (low + high) // 2
        if costs[middle] <= most:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def _ticks(contest: Contest, option: int) -> tuple[int, int]:
    """Return what an option takes, and at least with the stages after it, up to the horizon."""
    horizon = contest.costs.size - 1
    own = contest.choices.ticks[option] if contest.k else horizon  # nothing comes before the first
    return own, min(own + contest.soonest, horizon)


@compiled
def slack(contest: Contest, option: int) -> int:
    """Return what an option may cost more and win still; negative if it wins nowhere."""
    costs, after = contest.costs, contest.after
    cost: int = contest.choices.cost[option]
    horizon, (_, first) = costs.size - 1, _ticks(contest, option)
    # The highest price against the cheapest that may come after: most lose here already.
    if costs[first] - after[horizon] < cost:
        return -1
    # Slices, so that it becomes vector code.
    ahead, behind = costs[first:horizon], after[contest.soonest :]
    most: int = costs[horizon] - after[horizon]
    for ticks in range(ahead.size):
        most = max(most, ahead[ticks] - behind[ticks])
    return most - cost


@compiled
def least_room(contest: Contest, option: int) -> int:
    """Return a room without which an option wins nowhere."""
    _, first = _ticks(contest, option)
    return _fewest_ticks(contest.after, contest.costs[first] - contest.choices.cost[option])


@compiled
def enter(contest: Contest, option: int) -> None:
    """Let an option compete; of equal ones the first wins."""
    costs, option_at, after = contest.costs, contest.option_at, contest.after
    horizon, cost, late = costs.size - 1, contest.choices.cost[option], contest.late
    room = horizon if late.shape[0] else contest.choices.room[option]
    if room == NEVER:
        return
    if late.shape[0]:
        _with_late(late[option], after, contest.scratch)
        after = contest.scratch
    own, ticks = _ticks(contest, option)
    # More ticks never cost more: behind what costs less than the option ever may, it is over.
    while ticks <= horizon and costs[ticks] >= cost + after[room]:
        # What takes longest is late for all, so there it does not matter how long.
        rest = horizon if ticks == horizon else ticks - own
        whole = cost + after[min(rest, room)]
        if whole < costs[ticks] or (whole == costs[ticks] and option < option_at[ticks]):
            costs[ticks], option_at[ticks] = whole, option
        ticks += 1


@compiled
def _with_late(late: IntArray, after: IntArray, out: IntArray) -> int:
    """Add the late requests to what comes after an option, and let it take less time than it may.

    Returns how much it takes where there is all of it.
    """
    best, best_at = NO_WAY, 0
    for ticks in range(after.size):
        cost = after[ticks] + MANY * late[ticks]
        if cost < best:
            best, best_at = cost, ticks
        out[ticks] = best
    return best_at


@compiled
def _read_back(choices: Choices, late: IntArray, tables: CostTables, chosen: IntArray) -> int:
    """Follow the cheapest way, if there is one, from the first stage on; return what it costs."""
    horizon, level = tables.costs.shape[2] - 1, tables.costs.shape[1] - 1
    cost: int = tables.costs[0, level, horizon]
    if cost >= NO_WAY:
        return cost
    ticks = horizon
    for k in range(chosen.size):
        option = tables.option_at[k, level, ticks]
        chosen[k] = option
        level -= choices.cores[option] if tables.costs.shape[1] > 1 else 0
        rest = horizon if ticks == horizon else ticks - choices.ticks[option]
        if late.shape[0]:
            after = tables.costs[k + 1, level, : rest + 1]
            ticks = _with_late(late[option, : rest + 1], after, tables.after)
        else:
            ticks = min(rest, choices.room[option])
    return cost
