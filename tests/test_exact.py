"""The compiled solver against the program's definition and against PuLP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.program import per_request_program, published_program
from test_sponge_ip import choose, counted_program, exhaustive, same
from views import busy_view, make_spec, make_view, views

from agents.enumeration import solve_pairs
from agents.program import count_published, published_table_ms
from agents.rates import Forecast, forecast_arrivals
from agents.solvers import PublishedProgram
from agents.sponge_ip import SpongeIP
from sponge_env.errors import ProfileError
from sponge_env.interfaces import Allocation, RunningBatch, SystemSpec, SystemView
from sponge_env.latency import LatencyModel

ROOT = Path(__file__).resolve().parent.parent


def random_view(rng: np.random.Generator, spec: SystemSpec) -> SystemView:
    """Return a state from idle to overloaded, about half of them without a clean answer."""
    now_s, intervals = rng.uniform(0, 1000), int(rng.integers(1, 31))
    arrivals = rng.poisson(rng.choice([0, 0.5, 5, 12, 20, 60]), intervals).astype(np.float64)
    budgets_s = spec.slo_s - rng.uniform(0, rng.choice([0.1, 0.3, 1.5]), int(arrivals[-1]))
    queued = int(rng.choice([0, 1, 5, 30, 150]) * rng.uniform(0, 2))
    lowest_s = rng.choice([-2.0, 0.0, 0.2, 1.0])
    slacks_s = rng.uniform(lowest_s, lowest_s + rng.choice([0.2, 1.0, 30.0]), queued)
    means_s = rng.uniform(0, rng.choice([0.1, 0.9]), intervals)
    means_s[: rng.integers(0, intervals + 1)] = np.nan
    running = [
        RunningBatch(
            int(rng.integers(1, spec.first.batch_max + 1)),
            now_s - 0.1,
            now_s + rng.uniform(-0.1, 0.5),
        )
        for _ in range(rng.choice([0, 0, 1, 3]))
    ]
    return make_view(
        now_s=now_s,
        queued_deadlines_s=now_s + np.sort(slacks_s),
        running=tuple(running),
        allocation=Allocation(int(rng.integers(1, spec.first.cores_max + 1)), 1),
        replicas_ready=int(rng.integers(0, 3)),
        starting_s=tuple(np.sort(rng.uniform(0, 2, rng.integers(0, 3))).tolist()),
        arrivals=arrivals,
        delays_s=spec.slo_s - budgets_s,
        budgets_s=budgets_s,
        mean_delays_s=means_s,
        cores_in_force=int(rng.integers(1, spec.first.cores_max + 1)),
        pending=random_resizes(rng, spec),
    )


def random_resizes(rng: np.random.Generator, spec: SystemSpec) -> tuple[tuple[float, int], ...]:
    """Return earlier decisions that are on their way, one for each whole interval of the delay."""
    count = int(spec.resize_delay_s / spec.interval_s)
    starts_s = np.sort(rng.uniform(0, 1.1 * spec.resize_delay_s, count))
    cores = rng.integers(1, spec.first.cores_max + 1, count)
    return tuple(zip(starts_s.tolist(), cores.tolist(), strict=True))


def random_spec(rng: np.random.Generator, largest: int) -> SystemSpec:
    return make_spec(
        str(rng.choice(["yolov5s", "resnet18"])),
        slo_s=float(rng.choice([0.3, 1.0, 3.0])),
        interval_s=float(rng.choice([0.5, 1.0, 2.0])),
        resize_delay_s=float(rng.choice([0.0, 0.0, 0.16, 0.7, 2.5])),
        cores_max=int(rng.integers(1, largest + 1)),
        batch_max=int(rng.integers(1, largest + 1)),
    )


STATES = 300
"""Random states of each seed."""


@pytest.mark.parametrize("seed", range(4))
def test_equals_exhaustive_search_on_random_states(seed: int) -> None:
    rng = np.random.default_rng(seed)
    feasible = 0
    for number in range(STATES):
        spec = random_spec(rng, largest=20)
        view, margin = random_view(rng, spec), float(rng.choice([0.0, 0.1, 0.25]))
        forecast = forecast_arrivals(spec, view)
        answer = choose(spec, view, forecast, margin)
        program = per_request_program(spec, view, forecast, margin)
        assert same(answer, exhaustive(program))
        feasible += answer.feasible
        if number % 10 == 0:
            counted = counted_program(spec, view, forecast, margin)
            np.testing.assert_array_equal(counted.late, program.late)
            np.testing.assert_array_equal(counted.cost, program.cost)
    assert 0.3 * STATES < feasible < 0.7 * STATES


@pytest.mark.parametrize("formulation", ["per-request", "paper"])
def test_equals_pulp_on_random_states(formulation: str) -> None:
    rng = np.random.default_rng(10)
    exact = SpongeIP(formulation=formulation, solver="exact")
    pulp = SpongeIP(formulation=formulation, solver="pulp")
    for _ in range(150):
        spec = random_spec(rng, largest=8)
        view = random_view(rng, spec)
        exact.reset(spec, seed=0)
        pulp.reset(spec, seed=0)
        assert same(exact.decide(view), pulp.decide(view))


@settings(max_examples=100, deadline=None)
@given(
    view=views(max_queued=200),
    margin=st.floats(0, 0.5),
    rate_rps=st.floats(0, 120),
    noise=st.floats(0, 3),
    low_s=st.floats(-1, 1),
    more_s=st.floats(0, 1),
)
def test_equals_exhaustive_search_on_any_forecast(
    view: SystemView, margin: float, rate_rps: float, noise: float, low_s: float, more_s: float
) -> None:
    spec = make_spec()
    forecast = Forecast(rate_rps, noise, low_s, low_s + more_s)
    answer = choose(spec, view, forecast, margin)
    assert same(answer, exhaustive(per_request_program(spec, view, forecast, margin)))


@settings(max_examples=80, deadline=None)
@given(
    view=views(),
    gamma_s=st.floats(-0.3, 0.3),
    delta_s=st.floats(-0.1, 0.1),
    epsilon_s=st.floats(-0.3, 0.3),
    eta_s=st.floats(0.01, 10),
)
def test_equals_exhaustive_search_on_fits_that_go_the_wrong_way(
    view: SystemView, gamma_s: float, delta_s: float, epsilon_s: float, eta_s: float
) -> None:
    spec = make_spec(latency=LatencyModel(gamma_s, delta_s, epsilon_s, eta_s))
    try:
        spec.first.latency.table_s(16, 16)
    except ProfileError:
        assume(False)
    assume(view.first.arrivals.size)
    forecast = forecast_arrivals(spec, view)
    expected = exhaustive(per_request_program(spec, view, forecast, margin=0.1))
    assert same(choose(spec, view, forecast, margin=0.1), expected)


@given(
    profile=st.sampled_from(["yolov5s", "resnet18"]),
    rate_rps=st.floats(0, 300),
    delay_s=st.floats(0, 1.5),
    slo_fraction=st.floats(0.1, 1),
)
def test_published_form_equals_exhaustive_search(
    profile: str, rate_rps: float, delay_s: float, slo_fraction: float
) -> None:
    spec = make_spec(profile)
    answer = PublishedProgram(spec).choose(rate_rps, delay_s, slo_fraction)
    program = published_program(spec, rate_rps, delay_s, slo_fraction)
    assert same(answer, exhaustive(program))
    limit_ms = (slo_fraction * spec.slo_s - delay_s) * 1e3
    late = count_published(published_table_ms(spec), rate_rps, limit_ms)
    np.testing.assert_array_equal(late, program.late)


@pytest.mark.parametrize("queued", [0, 1, 16, 10_000])
@pytest.mark.parametrize("slack_s", [-1.0, 0.5, 1e4])
def test_long_and_empty_queues(queued: int, slack_s: float) -> None:
    spec = make_spec()
    view = busy_view(rate_rps=5, budgets_left_s=tuple(np.linspace(slack_s, slack_s + 1, queued)))
    forecast = forecast_arrivals(spec, view)
    expected = exhaustive(per_request_program(spec, view, forecast, margin=0.1))
    assert same(choose(spec, view, forecast, margin=0.1), expected)


def test_the_view_may_be_read_only() -> None:
    view = busy_view(rate_rps=10, budgets_left_s=(0.4, 0.8))
    frozen = view.first.queued_deadlines_s.copy()
    frozen.setflags(write=False)
    controller = SpongeIP()
    controller.reset(make_spec(), seed=0)
    expected = controller.decide(view)
    assert same(controller.decide(view.with_first(queued_deadlines_s=frozen)), expected)


def test_no_decision_waits_for_the_compiler() -> None:
    controller = SpongeIP()
    compiled = list(solve_pairs.signatures)  # type: ignore[attr-defined]
    controller.reset(make_spec(), seed=0)
    controller.decide(busy_view(running=(RunningBatch(2, 9.9, 10.1),)))
    assert solve_pairs.signatures == compiled  # type: ignore[attr-defined]


def test_the_exact_solver_does_not_load_pulp() -> None:
    code = (
        "import sys, evaluate\n"
        "from views import busy_view, make_spec\n"
        "from agents.sponge_ip import SpongeIP\n"
        "controller = SpongeIP(solver='exact')\n"
        "controller.reset(make_spec(), seed=0)\n"
        "controller.decide(busy_view())\n"
        "sys.exit('pulp' in sys.modules)"
    )
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=path, check=False)
    assert done.returncode == 0


def test_solver_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    import evaluate

    arguments = ["--agent", "static-8", "--solver", "pulp", "--run-dir", str(tmp_path / "run")]
    assert evaluate.main(arguments) == 2
    assert (
        "--solver is for one agent that takes the option 'solver'; none of static-8"
        in capsys.readouterr().err
    )
    arguments = ["--agent", "sponge-ip", "--solver", "cplex", "--run-dir", str(tmp_path / "run")]
    assert evaluate.main(arguments) == 2
    assert "choose from exact, highs, pulp" in capsys.readouterr().err
