"""How long a decision takes: exact, PuLP with CBC and HiGHS, and the published search.

    python benchmarks/decisions.py [--quick]

Every row is the median over random states with that many requests queued, under an SLO that
leaves some of them with an answer that misses nothing. ``kernel`` is one call of the compiled
solver from Python; ``decide`` is the whole way from view to allocation, forecast included;
``MPC decide`` is the same for sponge-mpc, which plays the queue out; ``solve`` is PuLP on a
program that is already built. The published search takes the queue
for its lambda, as one second's requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import statistics
import timeit
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from agents.enumeration import solve_pairs
from agents.lookahead import SpongeMPC
from agents.rates import forecast_arrivals
from agents.solvers import make_backend, solve_chain
from agents.sponge_ip import SpongeIP
from agents.stages import StageProgram
from sponge_env.errors import ConfigError
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

COLUMNS = ("kernel", "decide", "MPC decide", "CBC solve", "CBC decide", "HiGHS decide", "published")


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


def median_s(function: Callable[[], object], repeats: int) -> float:
    """Time a function; the first call warms up and does not count unless it is the only one."""
    times_s = timeit.repeat(function, "import gc; gc.enable()", repeat=repeats, number=1)
    return statistics.median(times_s[repeats > 1 :])


def controller(solver: str, spec: SystemSpec) -> SpongeIP | None:
    """Return the controller, or None where the solver is not installed."""
    with suppress(ConfigError):
        made = SpongeIP(solver=solver)
        made.reset(spec, seed=0)
        return made
    return None


def measure(grid: int, queued: int, states: int) -> list[str]:
    """Return one row: medians over the states in microseconds, and ratios."""
    spec = make_spec(grid, queued)
    rng = np.random.default_rng(queued)
    views = [make_view(rng, spec, queued) for _ in range(states)]
    exact, mpc = controller("exact", spec), SpongeMPC()
    assert exact is not None
    mpc.reset(spec, seed=0)
    cbc = make_backend("pulp")
    stages = StageProgram(exact.config, spec)
    tables, order = stages.model.tables[0], stages.pair_order
    assert order is not None
    times: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for number, view in enumerate(views):
        forecast = forecast_arrivals(spec, view)
        (state,) = stages.model.states(view, forecast, [1])
        calls: dict[str, tuple[int, Callable[[], object]]] = {
            "kernel": (100, functools.partial(solve_pairs, tables, state, order)),
            "decide": (100, functools.partial(exact.decide, view)),
            "MPC decide": (20, functools.partial(mpc.decide, view)),
            "published": (1, functools.partial(published_search, spec, queued, 0.2)),
        }
        # These take thousands of times longer: two states of each row are enough.
        if number < 2:
            stages.lay_out_stage(0, state, stages.chain.late_rows(False))
            calls["CBC solve"] = (2, functools.partial(solve_chain, stages.chain, False, cbc))
            for name, option in (("CBC decide", "pulp"), ("HiGHS decide", "highs")):
                if (reference := controller(option, spec)) is not None:
                    calls[name] = (2, functools.partial(reference.decide, view))
        for name, (repeats, call) in calls.items():
            times[name].append(median_s(call, repeats))
    feasible = float(np.mean([exact.decide(view).feasible for view in views]))
    medians = {name: 1e6 * float(np.median(values)) for name, values in times.items() if values}
    return [
        f"{grid}x{grid}",
        str(queued),
        f"{feasible:.0%}",
        *(f"{medians[name]:.1f}" if name in medians else "-" for name in COLUMNS),
        f"{medians['CBC solve'] / medians['kernel']:.0f}",
        f"{medians['CBC decide'] / medians['decide']:.0f}",
    ]


def make_stages(stages: int, grid: int, variants: int) -> SystemSpec:
    """Describe a chain of equal stages, each variant a fifth slower than the one before."""
    one = make_spec(grid, 0)
    (stage,) = one.stages
    latencies = tuple(one.first.latency.scaled(1.2**k) for k in range(variants))
    accuracies = tuple(0.7 + 0.02 * k for k in range(variants))
    chain = tuple(
        dataclasses.replace(
            stage, name=f"stage-{k}", latencies=latencies, accuracies=accuracies,
            after=(k - 1,) if k else (),
        )
        for k in range(stages)
    )  # fmt: skip
    initial = Allocation(stages=(StageAllocation(4, 4),) * stages)
    return dataclasses.replace(one, stages=chain, initial=initial, total_cores=stages * grid)


def make_staged_view(rng: np.random.Generator, spec: SystemSpec, queued: int) -> SystemView:
    """Return a state in which so many tasks wait in each stage."""
    view = make_view(rng, spec, queued)
    (stage,) = view.stages
    stages = []
    for k in range(len(spec.stages)):
        left = rng.uniform(0.3, 1.0, queued) * spec.slo_s * rng.uniform(1.0, 4.0)
        due_s = view.now_s + np.sort(left) * (1 - k / len(spec.stages) / 2)
        stages.append(dataclasses.replace(stage, queued_deadlines_s=due_s))
    allocation = Allocation(stages=(StageAllocation(8, 8),) * len(stages))
    return dataclasses.replace(view, stages=tuple(stages), allocation=allocation)


def measure_stages(queued: int, states: int) -> list[str]:
    """Return one row: the program for three stages, 16 cores, batches of 16 and three variants."""
    spec, rng = make_stages(3, 16, 3), np.random.default_rng(queued)
    exact = controller("exact", spec)
    assert exact is not None
    program = StageProgram(exact.config, spec)
    replicas, times = [1] * len(spec.stages), dict[bool, list[float]]()
    for _ in range(states):
        view = make_staged_view(rng, spec, queued)
        forecast = forecast_arrivals(spec, view)
        answer = program.choose(view, forecast, replicas)
        took_s = median_s(functools.partial(program.choose, view, forecast, replicas), 50)
        times.setdefault(answer.feasible, []).append(took_s)
    return [
        str(queued),
        f"{len(times.get(True, [])) / states:.0%}",
        *(f"{1e6 * np.median(times[e]):.0f}" if e in times else "-" for e in (True, False)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time decisions of Sponge's program.")
    parser.add_argument("--quick", action="store_true", help="two rows, a few seconds")
    quick = parser.parse_args(argv).quick
    cells = [(16, 20), (16, 100)] if quick else [(g, q) for g in GRIDS for q in QUEUED]
    rows = [measure(grid, queued, states=5 if quick else 15) for grid, queued in cells]
    headings = ["grid", "queued", "feasible", *COLUMNS, "CBC/kernel", "CBC/decide"]
    print("Microseconds, and ratios:\n")
    print("\n".join(aligned([headings, *rows])))
    print("\nThree stages with three variants each, microseconds of the program:\n")
    staged = [measure_stages(queued, states=5 if quick else 40) for queued in QUEUED[:2]]
    headings = ["queued in each", "feasible", "if feasible", "if not"]
    print("\n".join(aligned([headings, *staged])))


if __name__ == "__main__":
    main()
