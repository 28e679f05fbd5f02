"""PuLP as a second solver of Sponge's program, whose answers equal those of dynamic programming."""

import itertools
from typing import Any

from sponge_env.control.chain import Chain


def solve_chain(chain: Chain, count_late: bool) -> tuple[int, ...]:
    """Solve the program of a chain of stages as :meth:`Chain.cheapest` does; return the options.

    A chosen option bounds the ticks of the stages after it. Where late requests count, their
    number is minimised first, and bounded then. There are no options where nothing may be late and
    each choice makes some late; a RuntimeError if the optimum was not found.
    """
    import pulp  # takes a while, and only this solver needs it

    # PuLP 3.3 warns that its class for the bundled CBC will go; the binary is the same. The gap is
    # 0, for the weight of the batch size is below the usual tolerances.
    solver = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0)
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
        status = model.solve(solver)
        if status == pulp.LpStatusInfeasible and not count_late:
            return ()
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"{solver.name} ended as {pulp.LpStatus[status]}")
        model += goal <= round(pulp.value(goal) or 0)
    return tuple(k for k in range(count) if chosen[k].varValue > 0.5)
