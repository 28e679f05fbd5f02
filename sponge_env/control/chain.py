"""The cheapest choice of one option for each stage of a chain, with one budget for all.

Each option has a cost, a latency and, for every latency of the later stages, the number of requests
that it makes late. The sum of the latencies ties the stages together. As it is counted in ticks,
dynamic programming from the last stage back solves the program exactly, as IPA (Ghafouri et al.,
2023) and FA2 (Razavi et al., RTAS 2022) do.

A caller may compute its options one by one, from the last stage back, and relax the tables with
each; it then need not compute options that can no longer win (:func:`winning_margin`,
:func:`min_room`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sponge_env.arrays import IntArray
from sponge_env.core.compiled import compiled, entry_point

BIG_M = 2**40  # cost above that of any plan; late requests count as multiples of it
CORE_COST = 2**20  # cost of a core where costs are cores and parts of them
INFEASIBLE = 2**61  # least cost of what is impossible
NEVER = -1  # room of an option that makes a request late whatever comes after


class Choices(NamedTuple):
    """The options of all stages, one stage after the other."""

    first: IntArray  # (stages + 1,) where each stage's options begin, and their number
    ticks: IntArray  # (options,) latency of a request that comes later, at most the horizon
    # (options,) longest latency of later stages with which nothing here is late, or :data:`NEVER`
    room: IntArray
    cores: IntArray  # (options,) cores held
    cost: IntArray  # (options,) at least 0; of all stages together below :data:`BIG_M`


class CostTables(NamedTuple):
    """What dynamic programming fills in."""

    # (stages + 1, levels, horizon + 1) least cost of a stage and all later ones with at most
    # ``level`` cores and so many ticks; with one level, any number of cores
    costs: IntArray
    option_at: IntArray  # (stages, levels, horizon + 1) their first option
    after: IntArray  # (horizon + 1,) cost of what comes after an option, late requests included
    soonest: IntArray  # (levels,) fewest ticks of the stages after the current one


class StageTable(NamedTuple):
    """One row of the tables, which the options of a stage relax."""

    choices: Choices
    late: IntArray  # (options, horizon + 1) as :func:`relax_all` takes it
    k: int  # The stage
    costs: IntArray  # (horizon + 1,) least cost so far; it never rises with the ticks
    option_at: IntArray  # (horizon + 1,) the option of that cost
    after: IntArray  # (horizon + 1,) least cost of the stages after it
    soonest: int  # Fewest ticks of those
    scratch: IntArray  # (horizon + 1,) overwritten


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
        """Choose the options of least cost within a budget; return whether there are any."""
        # It overwrites ``choices.room``.
        first, room = self.choices.first, self.choices.room
        room[:] = self.horizon
        # The others get what the first stage leaves.
        room[: first[1]] = np.maximum(budget_ticks - self.choices.ticks[: first[1]], NEVER)
        room[self.choices.ticks >= self.horizon] = NEVER
        return self.cheapest() < BIG_M

    def options(self) -> list[int]:
        """Return the place of each stage's choice among the options of that stage."""
        chosen: list[int] = (self.chosen - self.choices.first[:-1]).tolist()
        return chosen

    def cheapest(self, count_late: bool = False) -> int:
        """Write the options of least cost, within all cores, to ``chosen``; return their cost."""
        # Without ``count_late`` nothing may be late, and the cost is at least :data:`BIG_M` if that
        # is impossible. With it each late request costs :data:`BIG_M`, so that the fewest are.
        late = self.late_rows(count_late)
        relax_all(self.choices, late, self.any_cores)
        cost = read_back(self.choices, late, self.any_cores, self.chosen)
        if cost < INFEASIBLE and not self.fits():
            # Cores become a dimension only if the machine is too small for the cheapest.
            if self._by_cores is None:
                self._by_cores = _tables(self.chosen.size, self.horizon, self.total_cores + 1)
            relax_all(self.choices, late, self._by_cores)
            cost = read_back(self.choices, late, self._by_cores, self.chosen)
        return cost

    def fits(self) -> bool:
        """Return whether the machine has all cores that the chosen options hold."""
        return int(np.add.reduce(self.choices.cores[self.chosen])) <= self.total_cores

    def late_rows(self, count_late: bool) -> IntArray:
        """Return ``late``, or an array without rows if late requests do not count."""
        return self.late if count_late else self._none_late


def _tables(stages: int, horizon: int, levels: int) -> CostTables:
    each = levels, horizon + 1
    shapes = (stages + 1, *each), (stages, *each), (horizon + 1,), (levels,)
    return CostTables(*(np.zeros(shape, np.int64) for shape in shapes))


@entry_point
def relax_all(choices: Choices, late: IntArray, tables: CostTables) -> None:
    """Relax the tables with all options."""
    # If ``late`` has rows, (options, horizon + 1) say how many requests each option makes late
    # before latencies of 0, 1, ... ticks, the last of which stands for all beyond.
    stages, levels = tables.option_at.shape[:2]
    for k in range(stages - 1, -1, -1):
        begin_stage(tables, k)
        for option in range(choices.first[k], choices.first[k + 1]):
            held = choices.cores[option] if levels > 1 else 0
            for level in range(held, levels):
                table = stage_table(choices, late, tables, k, level, level - held)
                least = late[option, table.soonest] * BIG_M if late.shape[0] else 0
                if winning_margin(table, option) >= least:
                    relax(table, option)


@compiled
def begin_stage(tables: CostTables, k: int) -> None:
    """Begin a stage, after all options of the later ones."""
    tables.costs[k] = INFEASIBLE
    for level in range(tables.soonest.size):
        tables.soonest[level] = _fewest_ticks(tables.costs[k + 1, level], INFEASIBLE - 1)


@compiled
def stage_table(
    choices: Choices, late: IntArray, tables: CostTables, k: int, level: int, left: int
) -> StageTable:
    """Return the row for ``level`` cores, of which an option leaves ``left`` to later stages."""
    costs, option_at = tables.costs[k, level], tables.option_at[k, level]
    after, soonest = tables.costs[k + 1, left], tables.soonest[left]
    return StageTable(choices, late, k, costs, option_at, after, soonest, tables.after)


@compiled
def _fewest_ticks(costs: IntArray, limit: int) -> int:
    """Return the fewest ticks whose cost is at most ``limit``, else the horizon."""
    low, high = 0, costs.size - 1
    while low < high:
        middle = (low + high) // 2
        if costs[middle] <= limit:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def _ticks(table: StageTable, option: int) -> tuple[int, int]:
    """Return the ticks of an option, and the fewest with the stages after it, up to the horizon."""
    horizon = table.costs.size - 1
    own = table.choices.ticks[option] if table.k else horizon  # nothing comes before the first
    return own, min(own + table.soonest, horizon)


@compiled
def winning_margin(table: StageTable, option: int) -> int:
    """Return by how much an option may cost more and still win; negative if it wins nowhere."""
    costs, after = table.costs, table.after
    cost: int = table.choices.cost[option]
    horizon, (_, first) = costs.size - 1, _ticks(table, option)
    # The highest cost and the cheapest later stages: most options already lose here.
    if costs[first] - after[horizon] < cost:
        return -1
    # Slices, so that the loop becomes vector code.
    ahead, behind = costs[first:horizon], after[table.soonest :]
    limit: int = costs[horizon] - after[horizon]
    for ticks in range(ahead.size):
        limit = max(limit, ahead[ticks] - behind[ticks])
    return limit - cost


@compiled
def min_room(table: StageTable, option: int) -> int:
    """Return the room below which an option wins nowhere."""
    _, first = _ticks(table, option)
    return _fewest_ticks(table.after, table.costs[first] - table.choices.cost[option])


@compiled
def relax(table: StageTable, option: int) -> None:
    """Update the row where an option costs less; of equal ones the first wins."""
    costs, option_at, after = table.costs, table.option_at, table.after
    horizon, cost, late = costs.size - 1, table.choices.cost[option], table.late
    room = horizon if late.shape[0] else table.choices.room[option]
    if room == NEVER:
        return
    if late.shape[0]:
        _with_late(late[option], after, table.scratch)
        after = table.scratch
    own, ticks = _ticks(table, option)
    # Costs never rise with the ticks: stop where they are below the option's least.
    while ticks <= horizon and costs[ticks] >= cost + after[room]:
        # The last tick stands for all beyond.
        whole = cost + after[min(horizon if ticks == horizon else ticks - own, room)]
        if whole < costs[ticks] or (whole == costs[ticks] and option < option_at[ticks]):
            costs[ticks], option_at[ticks] = whole, option
        ticks += 1


@compiled
def _with_late(late: IntArray, after: IntArray, out: IntArray) -> int:
    """Add late requests to the cost of the later stages, which may take less time than allowed."""
    # The ticks that they take if all are allowed are returned.
    best, best_at = INFEASIBLE, 0
    for ticks in range(after.size):
        cost = after[ticks] + BIG_M * late[ticks]
        if cost < best:
            best, best_at = cost, ticks
        out[ticks] = best
    return best_at


@entry_point
def read_back(choices: Choices, late: IntArray, tables: CostTables, chosen: IntArray) -> int:
    """Write the cheapest options, if any, to (stages,) ``chosen``; return their cost."""
    horizon, level = tables.costs.shape[2] - 1, tables.costs.shape[1] - 1
    cost: int = tables.costs[0, level, horizon]
    if cost >= INFEASIBLE:
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
