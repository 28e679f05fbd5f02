"""The published program, and PuLP as a second solver of all programs, with equal answers."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sponge_env.control.chain import Chain
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec

if TYPE_CHECKING:
    import pulp  # it takes a while to import, and only its own solver needs it

SolverName = Literal["exact", "pulp", "highs"]

ROUNDING_MS = 1e-6
"""Milliseconds that a published budget may be off by rounding."""


class PublishedProgram:
    """Solves the published form for a system of one stage, by enumeration or with PuLP.

    Of the pairs that miss the fewest deadlines, the one of the lowest ``c + b / (batch_max + 1)``
    wins, which is the published objective with its tie-break made exact. It is feasible if it
    misses none.
    """

    def __init__(self, spec: SystemSpec, solver: SolverName = "exact") -> None:
        latency_s = spec.first.latency.table_s(spec.first.batch_max, spec.first.cores_max)
        self._latency_ms = np.maximum(np.floor(latency_s.T * 1e3), 1)
        self._slo_s = spec.slo_s
        self._backend = None if solver == "exact" else make_backend(solver)

    def choose(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve it for an arrival rate, the published lambda, and the largest delay ``cl_max``.

        As published (Razavi et al., EuroMLSys 2024, and its code): the next second's requests count
        as queued at once and are served in batches of ``b`` one after another; each must end within
        ``slo_fraction * SLO - cl_max``, and the throughput must reach their rate.
        """
        limit_ms = (slo_fraction * self._slo_s - delay_max_s) * 1e3
        batches = np.arange(1, self._latency_ms.shape[1] + 1)
        in_time = batches * np.maximum(np.floor((limit_ms + ROUNDING_MS) / self._latency_ms), 0)
        unserved = np.maximum(np.ceil(rate_rps - batches / self._latency_ms * 1e3), 0)
        late = np.maximum(math.ceil(rate_rps) - in_time, 0) + unserved
        # The first of the fewest is the cheapest: fewest cores, then the smallest batch.
        pair = int(late.argmin())
        if self._backend is not None:
            chain = Chain([late.size], 1, total_cores=0)
            chain.choices.cost[:], chain.late[:, 0] = range(late.size), late.ravel()
            (pair,) = solve_chain(chain, True, self._backend)
        cores, batch = divmod(pair, batches.size)
        return Allocation(cores + 1, batch + 1, feasible=bool(late.min() == 0))


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
    # The costs of a single stage by their ranks, for a solver's tolerance is relative to them.
    cost = choices.cost.argsort(kind="stable").argsort() if len(stages) == 1 else choices.cost
    goals = [pulp.lpSum(late)] if late else []
    for goal in (*goals, pulp.lpDot(cost.tolist(), chosen)):
        model.setObjective(goal)
        status = model.solve(backend)
        if status == pulp.LpStatusInfeasible and not count_late:
            return ()
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"{backend.name} ended as {pulp.LpStatus[status]}")
        model += goal <= round(pulp.value(goal) or 0)
    return tuple(k for k in range(count) if chosen[k].varValue > 0.5)


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
