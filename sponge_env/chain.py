"""The cheapest way through a chain of stages: one option for each, one budget for all.

What a stage may do is a list of options, each with a cost and a latency, and says of every latency
that may still come after it how many requests would be late then. The sum of the latencies is what
ties the stages together. As it is counted in ticks, dynamic programming from the last stage back
solves the program exactly, as IPA (Ghafouri et al., 2023) and FA2 (Razavi et al., RTAS 2022) do.
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
_NO_WAY = 2**61
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
        self._any_cores = _tables(len(options), horizon, 1)
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
        late = self.late if count_late else self._none_late
        cost = cheapest(self.choices, late, self._any_cores, self.chosen)
        if cost < _NO_WAY and self.choices.cores[self.chosen].sum() > self.total_cores:
            # Only where the machine is too small for the cheapest are cores worth a dimension.
            if self._by_cores is None:
                self._by_cores = _tables(self.chosen.size, self.horizon, self.total_cores + 1)
            cost = cheapest(self.choices, late, self._by_cores, self.chosen)
        return cost


def _tables(stages: int, horizon: int, levels: int) -> CostTables:
    shapes = (stages + 1, levels, horizon + 1), (stages, levels, horizon + 1), (horizon + 1,)
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
        tables.costs[k] = _NO_WAY
        for option in range(choices.first[k], choices.first[k + 1]):
            held = choices.cores[option] if levels > 1 else 0
            for level in range(held, levels):
                _add(choices, late, tables, k, option, level, level - held)
    cost: int = tables.costs[0, -1, -1]
    if cost < _NO_WAY:
        _read_back(choices, late, tables, chosen)
    return cost


@compiled
def _add(
    choices: Choices,
    late: IntArray,
    tables: CostTables,
    k: int,
    option: int,
    level: int,
    left: int,
) -> None:
    """Let an option, and ``left`` cores for the stages after it, compete for each latency."""
    costs, cost = tables.costs[k, level], choices.cost[option]
    after = tables.costs[k + 1, left]
    horizon = after.size - 1
    least = late[option, 0] * MANY if late.shape[0] else 0
    room = horizon if late.shape[0] else choices.room[option]
    own = choices.ticks[option] if k else horizon  # nothing comes before the first stage
    # More time never costs more: what does not win with the least of it wins nowhere.
    if room == NEVER or cost + least + after[room] >= costs[own]:
        return
    if late.shape[0]:
        _with_late(late[option], after, tables.after)
        after = tables.after
    option_at = tables.option_at[k, level]
    for ticks in range(own, horizon + 1):
        # What takes longest is late for all, so there it does not matter how long.
        rest = horizon if ticks == horizon else ticks - own
        whole = cost + after[min(rest, room)]
        if whole < costs[ticks]:
            costs[ticks], option_at[ticks] = whole, option


@compiled
def _with_late(late: IntArray, after: IntArray, out: IntArray) -> int:
    """Add the late requests to what comes after an option, and let it take less time than it may.

    Returns how much it takes where there is all of it.
    """
    best, best_at = _NO_WAY, 0
    for ticks in range(after.size):
        cost = after[ticks] + MANY * late[ticks]
        if cost < best:
            best, best_at = cost, ticks
        out[ticks] = best
    return best_at


@compiled
def _read_back(choices: Choices, late: IntArray, tables: CostTables, chosen: IntArray) -> None:
    """Follow the cheapest way from the first stage on."""
    horizon, level = tables.costs.shape[2] - 1, tables.costs.shape[1] - 1
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
