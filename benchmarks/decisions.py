"""How long a decision takes: Sponge's program and the look-ahead.

    python -m benchmarks.decisions

Every row is the median over random states with that many requests queued, under an SLO that
leaves some of them with an answer that misses nothing. ``decide`` is the whole way of sponge-ip
from view to allocation, forecast included; ``MPC decide`` is the same for sponge-mpc, which plays
the queue out.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import timeit
from collections.abc import Callable

import numpy as np

from agents.lookahead import SpongeMPC
from agents.sponge_ip import SpongeIP
from sponge_env.interfaces import (
    Allocation,
    RunningBatch,
    StageSpec,
    StageView,
    SystemSpec,
    SystemView,
)
from sponge_env.results.layout import aligned
from sponge_env.scenario.profile import load_profile

QUEUED = (20, 100, 1_000, 10_000)
GRIDS = (16, 64)

COLUMNS = ("decide", "MPC decide")


def make_spec(grid: int, queued: int) -> SystemSpec:
    """Describe a system with ``grid`` cores and batch sizes."""
    fits = (load_profile("resnet18").latency,)
    only = StageSpec("model", grid, grid, 1, latencies=fits, cold_start_s=10.0)
    return SystemSpec(slo_s=max(1.0, queued / 80), interval_s=1.0, stages=(only,))


def make_view(rng: np.random.Generator, spec: SystemSpec, queued: int) -> SystemView:
    """Return a state with a queue, a batch in flight and thirty intervals of history."""
    now_s = 100.0
    arrivals = rng.poisson(20, 30).astype(np.float64)
    delays_s = rng.uniform(0.05, 0.2, int(arrivals[-1]))
    slacks_s = np.sort(rng.uniform(0.2, 1.0, queued)) * spec.slo_s * rng.uniform(0.3, 1.5)
    allocation = Allocation(cores=8, batch=8)
    only = StageView(
        queued_deadlines_s=now_s + slacks_s,
        running=(RunningBatch(4, now_s - 0.05, now_s + 0.05),),
        allocation=allocation.stages[0],
        replicas_ready=1,
        arrivals=arrivals,
        cores_in_force=8,
    )
    return SystemView(
        now_s=now_s,
        stages=(only,),
        allocation=allocation,
        delays_s=delays_s,
        budgets_s=spec.slo_s - delays_s,
        mean_delays_s=rng.uniform(0.05, 0.2, 30),
        bandwidths_bytes_per_s=np.full(30, 3e6),
    )


def median_s(repeats: int, function: Callable[..., object], *arguments: object) -> float:
    """Time calls; the first warms up and does not count."""
    call = functools.partial(function, *arguments)
    times_s = timeit.repeat(call, "import gc; gc.enable()", repeat=repeats, number=1)
    return statistics.median(times_s[1:])


def measure(grid: int, queued: int, states: int) -> list[str]:
    """Return one row: medians over the states in microseconds."""
    spec = make_spec(grid, queued)
    rng = np.random.default_rng(queued)
    views = [make_view(rng, spec, queued) for _ in range(states)]
    exact, mpc = SpongeIP(), SpongeMPC()
    exact.reset(spec, seed=0)
    mpc.reset(spec, seed=0)
    times: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for view in views:
        times["decide"].append(median_s(100, exact.decide, view))
        times["MPC decide"].append(median_s(20, mpc.decide, view))
    feasible = float(np.mean([exact.decide(view).feasible for view in views]))
    medians = (f"{1e6 * float(np.median(values)):.1f}" for values in times.values())
    return [f"{grid}x{grid}", str(queued), f"{feasible:.0%}", *medians]


if __name__ == "__main__":
    rows = [measure(grid, queued, states=15) for grid, queued in itertools.product(GRIDS, QUEUED)]
    headings = ["grid", "queued", "feasible", *COLUMNS]
    print("\n".join(["Microseconds:\n", *aligned([headings, *rows])]))
