"""How long a decision takes: Sponge's program, the look-ahead, and the published search.

    python -m benchmarks.decisions

Every row is the median over random states with that many requests queued, under an SLO that
leaves some of them with an answer that misses nothing. ``kernel`` is one call of the compiled
solver from Python; ``decide`` is the whole way from view to allocation, forecast included;
``MPC decide`` is the same for sponge-mpc, which plays the queue out. The published search takes the
queue for its lambda, as one second's requests.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import timeit
from collections.abc import Callable

import numpy as np

from agents.enumeration import solve_pairs
from agents.lookahead import SpongeMPC
from agents.rates import forecast_arrivals
from agents.sponge_ip import SpongeIP
from agents.stages import StageProgram
from sponge_env.interfaces import (
    Allocation,
    RunningBatch,
    StageAllocation,
    StageSpec,
    StageView,
    SystemSpec,
    SystemView,
)
from sponge_env.results.layout import aligned
from sponge_env.scenario.profile import load_profile

QUEUED = (20, 100, 1_000, 10_000)
GRIDS = (16, 64)

COLUMNS = ("kernel", "decide", "MPC decide", "published")


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


def published_search(spec: SystemSpec, requests: int, delay_s: float) -> tuple[int, int] | None:
    """Search as the authors' code does: cores upward, batches upward, requests in batches."""
    limit_ms = (0.9 * spec.slo_s - delay_s) * 1e3
    fit = spec.first.latency
    for c in range(1, spec.first.cores_max + 1):
        for b in range(1, spec.first.batch_max + 1):
            latency_s = fit.gamma_s * b / c + fit.epsilon_s / c + fit.delta_s * b + fit.eta_s
            latency_ms = math.floor(latency_s * 1e3)
            queueing_ms, late = 0, False
            for _ in range(0, requests, b):
                late = late or queueing_ms + latency_ms > limit_ms
                queueing_ms += latency_ms
            if not late and b / latency_ms * 1e3 >= requests:
                return c, b
    return None


def median_s(repeats: int, function: Callable[..., object], *arguments: object) -> float:
    """Time calls; the first warms up and does not count unless it is the only one."""
    call = functools.partial(function, *arguments)
    times_s = timeit.repeat(call, "import gc; gc.enable()", repeat=repeats, number=1)
    return statistics.median(times_s[repeats > 1 :])


def controller(solver: str, spec: SystemSpec) -> SpongeIP:
    """Return Sponge's controller with a solver."""
    made = SpongeIP(solver=solver)
    made.reset(spec, seed=0)
    return made


def measure(grid: int, queued: int, states: int) -> list[str]:
    """Return one row: medians over the states in microseconds, and ratios."""
    spec = make_spec(grid, queued)
    rng = np.random.default_rng(queued)
    views = [make_view(rng, spec, queued) for _ in range(states)]
    exact, cbc, highs = (controller(solver, spec) for solver in ("exact", "pulp", "highs"))
    mpc, backend = SpongeMPC(), make_backend("pulp")
    mpc.reset(spec, seed=0)
    stages = StageProgram(exact.config, spec)
    tables, order = stages.model.tables[0], stages.pair_order
    assert order is not None
    times: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for number, view in enumerate(views):
        forecast = forecast_arrivals(spec, view)
        (state,) = stages.model.states(view, forecast, [1])
        times["kernel"].append(median_s(100, solve_pairs, tables, state, order))
        times["decide"].append(median_s(100, exact.decide, view))
        times["MPC decide"].append(median_s(20, mpc.decide, view))
        times["published"].append(median_s(1, published_search, spec, queued, 0.2))
        if number < 2:  # these take thousands of times longer
            stages.lay_out_stage(0, state, stages.chain.late_rows(False))
            times["CBC solve"].append(median_s(2, solve_chain, stages.chain, False, backend))
            times["CBC decide"].append(median_s(2, cbc.decide, view))
            times["HiGHS decide"].append(median_s(2, highs.decide, view))
    feasible = float(np.mean([exact.decide(view).feasible for view in views]))
    medians = {name: 1e6 * float(np.median(values)) for name, values in times.items()}
    return [
        f"{grid}x{grid}",
        str(queued),
        f"{feasible:.0%}",
        *(f"{median:.1f}" for median in medians.values()),
        f"{medians['CBC solve'] / medians['kernel']:.0f}",
        f"{medians['CBC decide'] / medians['decide']:.0f}",
    ]


def make_stages() -> SystemSpec:
    """Describe a chain of three equal stages, each variant a fifth slower than the one before."""
    one = make_spec(16, 0)
    variant = dataclasses.replace(
        one.first,
        latencies=tuple(one.first.latency.scaled(1.2**k) for k in range(3)),
        accuracies=(0.7, 0.72, 0.74),
    )
    chain = tuple(
        dataclasses.replace(variant, name=f"stage-{k}", after=(k - 1,) if k else ())
        for k in range(3)
    )
    initial = Allocation(stages=(StageAllocation(4, 4),) * 3)
    return dataclasses.replace(one, stages=chain, initial=initial, total_cores=3 * 16)


def make_staged_view(rng: np.random.Generator, spec: SystemSpec, queued: int) -> SystemView:
    """Return a state in which so many tasks wait in each stage."""
    view = make_view(rng, spec, queued)
    stages = []
    for k in range(len(spec.stages)):
        left = rng.uniform(0.3, 1.0, queued) * spec.slo_s * rng.uniform(1.0, 4.0)
        due_s = view.now_s + np.sort(left) * (1 - k / len(spec.stages) / 2)
        stages.append(dataclasses.replace(view.first, queued_deadlines_s=due_s))
    allocation = Allocation(stages=(StageAllocation(8, 8),) * len(stages))
    return dataclasses.replace(view, stages=tuple(stages), allocation=allocation)


def measure_stages(queued: int, states: int) -> list[str]:
    """Return one row: the program for three stages, 16 cores, batches of 16 and three variants."""
    spec, rng = make_stages(), np.random.default_rng(queued)
    program = StageProgram(controller("exact", spec).config, spec)
    replicas, times = [1] * len(spec.stages), dict[bool, list[float]]()
    for _ in range(states):
        view = make_staged_view(rng, spec, queued)
        asked = view, forecast_arrivals(spec, view), replicas
        feasible = program.choose(*asked).feasible
        times.setdefault(feasible, []).append(median_s(50, program.choose, *asked))
    return [
        str(queued),
        f"{len(times.get(True, [])) / states:.0%}",
        *(f"{1e6 * np.median(times[e]):.0f}" if e in times else "-" for e in (True, False)),
    ]


if __name__ == "__main__":
    rows = [measure(grid, queued, states=15) for grid, queued in itertools.product(GRIDS, QUEUED)]
    headings = ["grid", "queued", "feasible", *COLUMNS, "CBC/kernel", "CBC/decide"]
    print("\n".join(["Microseconds, and ratios:\n", *aligned([headings, *rows])]))
    print("\nThree stages with three variants each, microseconds of the program:\n")
    staged = [measure_stages(queued, states=40) for queued in QUEUED[:2]]
    headings = ["queued in each", "feasible", "if feasible", "if not"]
    print("\n".join(aligned([headings, *staged])))
