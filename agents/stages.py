"""Sponge's integer program for a chain of stages: one option for each stage.

An option is a variant, cores and a batch size; the number of replicas takes a cold start to change,
and is decided before (:mod:`.fleet`). IPA (Ghafouri et al., 2023) asks that the latencies of the
stages add up to no more than the SLO. Here each request is held to its own budget: it needs the
time until it leaves its stage, behind those that are due before it, and that of the later stages.
So each option has, for every latency of the later stages, the number of requests that it makes
late, and :mod:`sponge_env.control.chain` finds the cheapest options.

A stage's latency for requests that come later is the longer one of the waits for a replica and for
the backlog, plus the batches of all tasks of a request, each as large as what arrives during it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sponge_env.arrays import FloatArray, IntArray
from sponge_env.control import chain
from sponge_env.control.chain import BIG_M, INFEASIBLE, Chain, Choices, CostTables
from sponge_env.core.compiled import compiled, entry_point
from sponge_env.interfaces import Allocation, StageAllocation, SystemSpec, SystemView

from . import lateness
from .lateness import Service
from .program import TICKS, StageLoad, StageTables, SystemModel, idle_state
from .rates import ROUNDING, Forecast

_BUSIEST = 0.95  # Utilisation above which waiting times are taken to grow no more
_SECOND = 2**30  # Cost of a second of work when late requests count
_MAX_WORK_S = 2.0**8  # Longer work costs no more, so that one late request always outweighs it


class Steady(NamedTuple):
    """How a stage serves requests that come later, without a backlog."""

    size: int  # Size at which batches settle
    wait_s: float
    tasks_s: float  # Service of its tasks


@entry_point
def lay_out(
    tables: StageTables, state: StageLoad, choices: Choices, k: int, late: IntArray,
    costs: CostTables, chosen: IntArray, compete: bool,
) -> int:  # fmt: skip
    """Write the options of stage ``k``, in the order of variants, cores and batches.

    They are priced by cores if ``late`` has no rows, else by late requests, which are written
    there. If they ``compete``, they relax ``costs``, after the options of later stages, and nothing
    is written for those that cannot win; with the first stage, the cheapest options of all stages
    are ``chosen`` and their cost is returned.
    """
    variants, cores_max, batch_max = tables.service_s.shape
    lateness.write_arrivals(state)
    hopeless, rows = 0, variants * cores_max
    while hopeless < state.due_s.size and state.due_s[hopeless] < tables.left_s:
        hopeless += 1
    chain.begin_stage(costs, k)
    table = chain.stage_table(choices, late, costs, k, 0, 0)
    if compete and table.after[-1] >= INFEASIBLE:
        return INFEASIBLE
    for each in range(rows):
        # The likely winner first: fewest cores, or the most if late requests count.
        row = rows - 1 - each if late.shape[0] else each
        variant, cores = row // cores_max, row % cores_max + 1
        on, held = lateness.begin_cores(tables, state, variant, cores), cores * state.replicas
        service_s, steady = on.service_s, _steady(tables, state, on.service_s, on.settled)
        for other in range(batch_max):
            batch = batch_max - other if late.shape[0] else other + 1
            at = choices.first[k] + row * batch_max + batch - 1
            option = lateness.option_of(state, on, batch)
            if k:  # no stage before the first would need its latency
                if min(batch, on.settled) != steady.size:
                    steady = _steady(tables, state, service_s, min(batch, on.settled))
                choices.ticks[at] = _later_ticks(tables, state, option.new, steady)
            choices.cores[at] = held
            if late.shape[0]:
                work_s = service_s[batch - 1] / (batch * state.free_s.size) * tables.group
                choices.cost[at] = round(_SECOND * min(work_s, _MAX_WORK_S))
            else:
                choices.cost[at] = round(chain.CORE_COST * (held + tables.loss[variant])) + batch
            if compete:
                margin = chain.winning_margin(table, at)
                if margin < 0:
                    continue
                after = table.soonest if late.shape[0] else chain.min_room(table, at)
                limit = margin // BIG_M if late.shape[0] else 0
                if lateness.count_late(tables, state, option, hopeless, after, limit) > limit:
                    continue
            if late.shape[0]:
                lateness.write_late(tables, state, option, hopeless, late[at])
            else:
                choices.room[at] = lateness.room_of(tables, state, option, hopeless)
            if compete:
                chain.relax(table, at)
    return chain.read_back(choices, late, costs, chosen) if compete and k == 0 else INFEASIBLE


@compiled
def _steady(tables: StageTables, state: StageLoad, service_s: FloatArray, size: int) -> Steady:
    replicas, own_s = state.free_s.size, service_s[size - 1]
    rounds = math.ceil(tables.group / (size * replicas))
    # Random arrivals wait by Pollaczek and Khinchine's formula; by the noise, longer than average.
    busy = min(state.rate_rps * own_s / (size * replicas), _BUSIEST)
    queue_s = state.noise * busy / (2 * (1 - busy)) * own_s / replicas
    return Steady(size, max(own_s / replicas, queue_s), rounds * own_s)


@compiled
def _later_ticks(tables: StageTables, state: StageLoad, service: Service, steady: Steady) -> int:
    """Return the latency of this stage, with its backlog, for requests that are not here yet."""
    queued, wait_s = state.due_s.size, steady.wait_s
    if queued:
        last = (queued - 1) // service.batch
        wait_s = max(wait_s, lateness.done_s(service, last, queued) - tables.before_s)
    return int(min(math.ceil((wait_s + steady.tasks_s) / tables.tick_s - ROUNDING), TICKS))


class StageProgram:
    """Solves the program of one system for given replicas."""

    def __init__(self, config: Any, spec: SystemSpec) -> None:
        """Lay the system out, with the options of :class:`.sponge_ip.SpongeIPConfig`."""
        self.model = SystemModel(spec, config.variant, config.accuracy_price)
        self._spec = spec
        counts = [tables.service_s.size for tables in self.model.tables]
        self.chain = Chain(counts, TICKS, spec.total_cores)
        self._pulp = config.solver == "pulp"
        # Compile the kernels, or load them from disk, so that no decision waits for it.
        states = [idle_state(tables) for tables in self.model.tables]
        for late_too in (False, True):
            for k, state in reversed(list(enumerate(states))):
                self.lay_out_stage(k, state, self.chain.late_rows(late_too), compete=True)

    def choose(self, view: SystemView, forecast: Forecast, replicas: Sequence[int]) -> Allocation:
        """Choose variant, cores and batch of each stage, given the replicas that it holds."""
        states = self.model.states(view, forecast, replicas)
        feasible = self.solve(states, count_late=False)
        if not feasible:
            self.solve(states, count_late=True)
        chosen = []
        for k, option in enumerate(self.chain.options()):
            _, cores_max, batch_max = self.model.tables[k].service_s.shape
            (row, cores), batch = divmod(option // batch_max, cores_max), option % batch_max
            variant = self.model.variants[k][row]
            chosen.append(StageAllocation(cores + 1, batch + 1, replicas[k], variant))
        fitted = self._spec.fit_stages(chosen, "cores")
        return Allocation(stages=fitted, feasible=feasible and fitted == tuple(chosen))

    def solve(self, states: Sequence[StageLoad], count_late: bool) -> bool:
        """Choose options; return False if every choice makes some late.

        With ``count_late``, choose those that make the fewest late.
        """
        late = self.chain.late_rows(count_late)
        if not self._pulp:
            for k in reversed(range(len(states))):
                cost = self.lay_out_stage(k, states[k], late, compete=True)
            if cost >= INFEASIBLE or self.chain.fits():
                return cost < BIG_M
        for k, state in enumerate(states):
            self.lay_out_stage(k, state, late)
        if not self._pulp:
            return self.chain.cheapest(count_late) < BIG_M
        if options := solve_chain(self.chain, count_late):
            self.chain.chosen[:] = options
        return bool(options)

    def lay_out_stage(self, k: int, state: StageLoad, late: IntArray, compete: bool = False) -> int:
        """Write the options of a stage, see :func:`lay_out`."""
        into = self.chain.any_cores, self.chain.chosen
        return lay_out(self.model.tables[k], state, self.chain.choices, k, late, *into, compete)


def solve_chain(chain: Chain, count_late: bool) -> tuple[int, ...]:
    """Solve the program of a chain of stages as :meth:`Chain.cheapest` does; return the options.

    A chosen option bounds the ticks of the stages after it. With ``count_late``, the number of late
    requests is minimised first; costs are then minimised without exceeding it. Without, return ()
    if every choice makes some late. A RuntimeError if the optimum was not found.
    """
    import pulp  # takes a while, and only this solver needs it

    # COIN_CMD, since PuLP 3.3 deprecates its class for the bundled CBC. No gap: the weight of the
    # batch size is below the usual tolerances.
    solver = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0)
    choices, stages = chain.choices, list(itertools.pairwise(chain.choices.first.tolist()))
    model, count = pulp.LpProblem("stages", pulp.LpMinimize), int(choices.first[-1])
    chosen = [model.add_variable(f"option{k}", cat=pulp.LpBinary) for k in range(count)]
    for first, stop in stages:
        model += pulp.lpSum(chosen[first:stop]) == 1
    model += pulp.lpDot(choices.cores.tolist(), chosen) <= chain.total_cores
    big_m = int(choices.ticks.sum()) + 1
    late: list[Any] = []
    for first, stop in stages:
        after = pulp.lpDot(choices.ticks[stop:].tolist(), chosen[stop:])
        for option in range(first, stop):
            if not count_late and (room := int(choices.room[option])) < chain.horizon:
                model += after <= room + (big_m + 1) * (1 - chosen[option])
        if not count_late:
            continue
        late += [int(chain.late[option, 0]) * chosen[option] for option in range(first, stop)]
        for ticks in range(1, chain.horizon + 1) if stop < count else ():
            reached = model.add_variable(f"reached{first}_{ticks}", cat=pulp.LpBinary)
            model += after - (ticks - 1) <= big_m * reached
            for option in range(first, stop):
                if more := int(chain.late[option, ticks] - chain.late[option, ticks - 1]):
                    both = model.add_variable(f"late{option}_{ticks}", lowBound=0)
                    model += both >= chosen[option] + reached - 1
                    late.append(more * both)
    # A single stage's costs become ranks, since a solver's tolerance is relative to the costs.
    cost = choices.cost.argsort(kind="stable").argsort() if len(stages) == 1 else choices.cost
    goals = [pulp.lpSum(late)] if late else []
    for goal in (*goals, pulp.lpDot(cost.tolist(), chosen)):
        model.setObjective(goal)
        status = model.solve(solver)
        if status == pulp.LpStatusInfeasible and not count_late:
            return ()
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"{solver.name} ended as {pulp.LpStatus[status]}")
        model += goal <= round(pulp.value(goal) or 0)
    return tuple(k for k in range(count) if chosen[k].varValue > 0.5)
