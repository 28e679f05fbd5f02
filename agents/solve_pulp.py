"""The reference solver: Sponge's program as an integer program, solved through PuLP."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pulp

from agents.forecast import Forecast
from agents.program import Program, per_request_program, published_program
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, SystemSpec, SystemView

Backend = Literal["pulp", "highs"]


class PulpSolver:
    """Solves both formulations for one system."""

    def __init__(self, spec: SystemSpec, margin: float, backend: pulp.LpSolver) -> None:
        """Keep what stays the same for an episode.

        Args:
            spec: The system.
            margin: Relative allowance on every latency that the per-request form predicts.
            backend: From :func:`make_backend`.
        """
        self._spec = spec
        self._margin = margin
        self._backend = backend

    def published(self, rate_rps: float, delay_max_s: float, slo_fraction: float) -> Allocation:
        """Solve the published form."""
        program = published_program(self._spec, rate_rps, delay_max_s, slo_fraction)
        return solve(program, self._backend)

    def per_request(self, view: SystemView, forecast: Forecast) -> Allocation:
        """Solve the per-request form."""
        program = per_request_program(self._spec, view, forecast, self._margin)
        return solve(program, self._backend)


def solve(program: Program, backend: pulp.LpSolver) -> Allocation:
    """Solve a program; of the pairs that miss the fewest deadlines, the cheapest wins.

    Where a pair meets every budget, that is the published program. Where none does, the
    bound on violations rises from 0 to the least there are, which the table of a one-hot
    choice shows without another solve.

    Raises:
        RuntimeError: The solver did not find the optimum.
    """
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


def make_backend(name: Backend) -> pulp.LpSolver:
    """Make the solver behind PuLP; the only place that knows which there are.

    The relative gap is 0, for the weight of the batch size is below the usual tolerances.

    Raises:
        ConfigError: The solver is not installed.
    """
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
