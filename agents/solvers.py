"""The published program, and PuLP as a second solver of all programs, with equal answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sponge_env.control.chain import Chain
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec

from .enumeration import count_pairs
from .program import (
    Program,
    StageState,
    StageTables,
    cost_table,
    count_published,
    published_table_ms,
    recovery_table,
)

if TYPE_CHECKING:
    import pulp  # it takes a while to import, and only its own solver needs it

SolverName = Literal["exact", "pulp", "highs"]


class PublishedProgram:
    """Solves the published form for a system of one stage, by enumeration or with PuLP.

    Of the pairs that miss the fewest deadlines, the one of the lowest cost wins; it is feasible
    if it misses none.
    """

    def __init__(self, spec: SystemSpec, solver: SolverName = "exact") -> None:
        self._slo_s, self._latency_ms = spec.slo_s, published_table_ms(spec)
        self._cost = cost_table(spec)
        self._backend = None if solver == "exact" else make_backend(solver)

    def choose(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve it for an arrival rate and the largest delay; see :func:`count_published`."""
        limit_ms = (slo_fraction * self._slo_s - delay_max_s) * 1e3
        late = count_published(self._latency_ms, rate_rps, limit_ms)
        if self._backend is not None:
            return solve(Program(self._cost, late), self._backend)
        # The first of the fewest is the cheapest: fewest cores, then the smallest batch.
        cores, batch = divmod(int(late.T.argmin()), len(late))
        return Allocation(cores + 1, batch + 1, feasible=bool(late.min() == 0))


def pairs_program(spec: SystemSpec, tables: StageTables, state: StageState) -> Program:
    """Return our form for one stage and variant; the backlog counts where each pair misses some."""
    late = np.empty((spec.first.batch_max, spec.first.cores_max), np.int64)
    count_pairs(tables, state, late)
    return Program(recovery_table(spec) if late.min() else cost_table(spec), late)


def solve(program: Program, backend: pulp.LpSolver) -> Allocation:
    """Solve a program; of the pairs that miss the fewest deadlines, the cheapest wins.

    Where none meets every budget, the bound on violations rises from 0 to the fewest, which the
    table shows without another solve. A RuntimeError if the optimum was not found.
    """
    import pulp

    fewest = int(program.late.min())
    pairs = list(np.ndindex(program.cost.shape))
    model = pulp.LpProblem("sponge", pulp.LpMinimize)
    chosen = [model.add_variable(f"b{b + 1}_c{c + 1}", cat=pulp.LpBinary) for b, c in pairs]
    model += pulp.lpDot(program.cost.ravel().tolist(), chosen)
    model += pulp.lpSum(chosen) == 1
    model += pulp.lpDot(program.late.ravel().tolist(), chosen) <= fewest
    if model.solve(backend) != pulp.LpStatusOptimal:
        raise RuntimeError(f"{backend.name} ended as {pulp.LpStatus[model.status]}")
    row, column = next(pair for pair, x in zip(pairs, chosen, strict=True) if x.varValue > 0.5)
    return Allocation(cores=column + 1, batch=row + 1, feasible=fewest == 0)


def solve_chain(chain: Chain, count_late: bool, backend: pulp.LpSolver) -> tuple[int, ...]:
    """Solve the program of a chain of stages as :meth:`Chain.cheapest` does; return the options.

    A chosen option bounds the ticks of the stages after it. Where late requests count, their
    number is minimised first, and bounded then. There are no options where nothing may be late and
    each choice makes some late; a RuntimeError if the optimum was not found.
    """
    import pulp

    choices, stages = chain.choices, list(itertools.pairwise(chain.choices.first.tolist()))
    model = pulp.LpProblem("stages", pulp.LpMinimize)
    count = int(choices.first[-1])
    chosen = [model.add_variable(f"option{k}", cat=pulp.LpBinary) for k in range(count)]
    for first, stop in stages:
        model += pulp.lpSum(chosen[first:stop]) == 1
    model += pulp.lpDot(choices.cores.tolist(), chosen) <= chain.total_cores
    big_m = int(choices.ticks.sum()) + 1
    late: list[Any] = []
    for first, stop in stages:
        after = pulp.lpDot(choices.ticks[stop:].tolist(), chosen[stop:])
        if count_late:
            late += _late_terms(model, chain, chosen, (first, stop), after, big_m)
            continue
        for option in range(first, stop):
            if (room := int(choices.room[option])) < chain.horizon:
                model += after <= room + (big_m + 1) * (1 - chosen[option])
    goals = [pulp.lpSum(late)] if late else []
    for goal in (*goals, pulp.lpDot(choices.cost.tolist(), chosen)):
        model.setObjective(goal)
        status = model.solve(backend)
        if status == pulp.LpStatusInfeasible and not count_late:
            return ()
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"{backend.name} ended as {pulp.LpStatus[status]}")
        model += goal <= round(pulp.value(goal) or 0)
    return tuple(k for k in range(count) if chosen[k].varValue > 0.5)


def _late_terms(
    model: pulp.LpProblem,
    chain: Chain,
    chosen: Sequence[pulp.LpVariable],
    stage: tuple[int, int],
    after: Any,
    big_m: int,
) -> list[Any]:
    """Return the terms whose sum is the late requests of a stage, by the ticks after it."""
    import pulp

    late, options = chain.late, range(*stage)
    terms = [int(late[option, 0]) * chosen[option] for option in options]
    for ticks in range(1, chain.horizon + 1):
        reached = model.add_variable(f"reached{stage[0]}_{ticks}", cat=pulp.LpBinary)
        model += after - (ticks - 1) <= big_m * reached
        for option in options:
            if more := int(late[option, ticks] - late[option, ticks - 1]):
                both = model.add_variable(f"late{option}_{ticks}", lowBound=0)
                model += both >= chosen[option] + reached - 1
                terms.append(more * both)
    return terms


def make_backend(name: SolverName) -> pulp.LpSolver:
    """Make the solver behind PuLP, or raise a ConfigError if it is not installed.

    The relative gap is 0, for the weight of the batch size is below the usual tolerances.
    """
    import pulp

    if name == "pulp":
        # PuLP 3.3 warns that its class for the bundled CBC will go; the binary is the same.
        backend = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0)
    else:
        backend = pulp.HiGHS(msg=False, gapRel=0.0)
    if not backend.available():
        raise ConfigError(
            f"the solver {name!r} is not installed; choose another (exact, pulp, highs) or "
            f"install {'PuLP with its bundled CBC' if name == 'pulp' else 'the package highspy'}"
        )
    return backend
