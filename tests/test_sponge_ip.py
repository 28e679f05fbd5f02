"""Sponge's program, both formulations, and its solvers against exhaustive search."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.program import published_program
from views import NOTHING, busy_view, make_spec, make_view, views

from agents.program import Program, cost_table, recovery_table
from agents.rates import Forecast, forecast_arrivals
from agents.solvers import make_backend, pairs_program, solve
from agents.sponge_ip import SpongeIP, SpongeIPConfig
from agents.stages import StageProgram
from sponge_env.errors import ConfigError
from sponge_env.interfaces import Allocation, RunningBatch, SystemSpec, SystemView

QUIET = Forecast(rate_rps=0.0, noise=0.0, budget_low_s=1.0, budget_high_s=1.0)
CBC = make_backend("pulp")


def exhaustive(program: Program) -> Allocation:
    """Try every pair: fewest misses first, then the lowest cost."""
    fewest = min(program.late.flat)
    _, row, column = min(
        (program.cost[row, column], row, column)
        for row, column in np.ndindex(program.cost.shape)
        if program.late[row, column] == fewest
    )
    return Allocation(cores=column + 1, batch=row + 1, feasible=bool(fewest == 0))


def same(one: Allocation, other: Allocation) -> bool:
    return (one, one.feasible) == (other, other.feasible)


def program_of(spec: SystemSpec, margin: float) -> StageProgram:
    """Return the program of one stage with a margin in place of that of the profile's fit."""
    fit = dataclasses.replace(spec.first.latency, residual_quantiles=(margin,))
    return StageProgram(SpongeIPConfig(), spec.with_first(latencies=(fit,)))


def choose(spec: SystemSpec, view: SystemView, forecast: Forecast, margin: float) -> Allocation:
    return program_of(spec, margin).choose(view, forecast, [1])


def counted_program(
    spec: SystemSpec, view: SystemView, forecast: Forecast, margin: float
) -> Program:
    model = program_of(spec, margin).model
    return pairs_program(spec, model.tables[0], model.states(view, forecast, [1])[0])


def decide(view: SystemView, spec: SystemSpec | None = None, **options: Any) -> Allocation:
    controller = SpongeIP(**options)
    controller.reset(spec or make_spec(), seed=0)
    return controller.decide(view)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs of any shape; about half of them have no pair without a miss."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    least = draw(st.sampled_from([0, 0, 1, 50]))
    counts = st.integers(least, least + draw(st.sampled_from([1, 5, 10_000])))
    late = draw(st.lists(counts, min_size=rows * columns, max_size=rows * columns))
    cost = cost_table(make_spec(batch_max=rows, cores_max=columns))
    return Program(cost, np.array(late).reshape(rows, columns))


@settings(max_examples=60, deadline=None)
@given(program=programs())
def test_cbc_equals_exhaustive_search(program: Program) -> None:
    assert same(solve(program, CBC), exhaustive(program))


@settings(max_examples=50, deadline=None)
@given(view=views(), margin=st.sampled_from([0.0, 0.1]))
def test_cbc_equals_exhaustive_search_on_views(view: SystemView, margin: float) -> None:
    assume(view.first.arrivals.size)
    forecast = forecast_arrivals(make_spec(), view)
    program = counted_program(make_spec(), view, forecast, margin)
    assert same(solve(program, CBC), exhaustive(program))


@settings(max_examples=40, deadline=None)
@given(program=programs())
def test_highs_equals_exhaustive_search(program: Program) -> None:
    pytest.importorskip("highspy", reason="the optional solver HiGHS is not installed")
    assert same(solve(program, make_backend("highs")), exhaustive(program))


@given(batch_max=st.integers(1, 64), cores_max=st.integers(1, 64))
def test_cost_orders_cores_before_batch_without_ties(batch_max: int, cores_max: int) -> None:
    cost = cost_table(make_spec(batch_max=batch_max, cores_max=cores_max))
    by_cores_then_batch = cost.T.ravel()
    assert np.all(np.diff(by_cores_then_batch) > 0)


def search_as_published(
    spec: SystemSpec, rate: float, delay_s: float, slo_fraction: float
) -> tuple[int, int] | None:
    """Return the first (cores, batch) that fits, by the published nested loops."""
    limit_ms = (slo_fraction * spec.slo_s - delay_s) * 1e3
    for c in range(1, spec.first.cores_max + 1):
        for b in range(1, spec.first.batch_max + 1):
            latency_ms = max(1, math.floor(float(spec.first.latency.predict_s(b, c)) * 1e3))
            if latency_ms * math.ceil(rate / b) <= limit_ms + 1e-6 and b / latency_ms * 1e3 >= rate:
                return c, b
    return None


class TestPaper:
    @pytest.mark.parametrize(("slo_fraction", "expected"), [(1.0, (5, 10)), (0.9, (6, 10))])
    def test_published_example(self, slo_fraction: float, expected: tuple[int, int]) -> None:
        answer = decide(
            busy_view(rate_rps=100, delay_s=0.05),
            make_spec("resnet18"),
            formulation="paper",
            slo_fraction=slo_fraction,
        )
        assert (answer.cores, answer.batch) == expected
        assert answer.feasible

    @given(
        profile=st.sampled_from(["yolov5s", "resnet18"]),
        rate=st.integers(1, 200),
        delay_s=st.floats(0, 1.2),
        slo_fraction=st.sampled_from([0.9, 1.0]),
    )
    def test_equals_the_published_search(
        self, profile: str, rate: int, delay_s: float, slo_fraction: float
    ) -> None:
        spec = make_spec(profile)
        answer = exhaustive(published_program(spec, rate, delay_s, slo_fraction))
        expected = search_as_published(spec, rate, delay_s, slo_fraction)
        assert answer.feasible == (expected is not None)
        if expected is not None:
            assert (answer.cores, answer.batch) == expected

    def test_least_violations_or_hold_when_nothing_fits(self) -> None:
        held = Allocation(cores=3, batch=7)
        view = busy_view(rate_rps=200, allocation=held)
        hold = decide(view, formulation="paper", on_infeasible="hold")
        best = decide(view, formulation="paper")
        assert hold == held
        assert best != held
        assert not hold.feasible
        assert not best.feasible

    def test_keeps_the_allocation_while_the_load_is_unknown(self) -> None:
        held = Allocation(cores=3, batch=7)
        assert decide(make_view(allocation=held), formulation="paper") == held


def late_one_by_one(spec: SystemSpec, view: SystemView, cores: int, batch: int) -> int:
    """Serve the queue batch by batch and count the misses."""
    time_s, late = view.now_s, 0
    waiting = list(view.first.queued_deadlines_s)
    while waiting:
        served, waiting = waiting[:batch], waiting[batch:]
        time_s += float(spec.first.latency.predict_s(len(served), cores))
        late += sum(deadline_s < time_s for deadline_s in served)
    return late


class TestPerRequest:
    @given(
        slacks_s=st.lists(st.floats(0.1, 3), max_size=60),
        cores=st.integers(1, 16),
        batch=st.integers(1, 16),
    )
    def test_counts_the_queue_as_a_server_would_serve_it(
        self, slacks_s: list[float], cores: int, batch: int
    ) -> None:
        spec = make_spec()
        view = busy_view(rate_rps=0, budgets_left_s=tuple(slacks_s))
        assume(np.all(np.array(slacks_s) > float(spec.first.latency.predict_s(1, 16))))
        late = counted_program(spec, view, QUIET, margin=0.0).late
        assert late[batch - 1, cores - 1] == late_one_by_one(spec, view, cores, batch)

    @given(view=views(), more_s=st.floats(0, 2), margin=st.floats(0, 0.5))
    def test_more_budget_is_never_more_late(
        self, view: SystemView, more_s: float, margin: float
    ) -> None:
        # Kept above hopeless, whose requests are not counted.
        fastest_s = 0.06
        patient = view.with_first(
            queued_deadlines_s=np.maximum(view.first.queued_deadlines_s, view.now_s + fastest_s)
        )
        richer = patient.with_first(queued_deadlines_s=patient.first.queued_deadlines_s + more_s)
        forecast = Forecast(10.0, 1.0, 0.3, 0.6)
        rich_forecast = Forecast(10.0, 1.0, 0.3 + more_s, 0.6 + more_s)
        late = counted_program(make_spec(), patient, forecast, margin).late
        fewer = counted_program(make_spec(), richer, rich_forecast, margin).late
        assert np.all(fewer <= late)

    @given(view=views(), rate=st.floats(0.5, 40))
    def test_a_larger_margin_is_never_less_late(self, view: SystemView, rate: float) -> None:
        patient = view.with_first(
            queued_deadlines_s=np.maximum(view.first.queued_deadlines_s, view.now_s + 0.06)
        )
        forecast = Forecast(rate, 0.0, 0.3, 0.6)
        tight = counted_program(make_spec(), patient, forecast, 0.0).late
        loose = counted_program(make_spec(), patient, forecast, 0.2).late
        assert loose.min() >= tight.min()

    def test_hopeless_requests_do_not_make_it_infeasible(self) -> None:
        waiting = busy_view(rate_rps=10, budgets_left_s=(-3.0, -0.1, 0.01, 0.8))
        assert decide(waiting).feasible

    def test_a_queue_of_hopeless_requests_is_worked_off_for_those_behind_it(self) -> None:
        hopeless = (-1.0,) * 200
        alone = decide(busy_view(rate_rps=0, budgets_left_s=hopeless))
        awaited = decide(busy_view(rate_rps=10, budgets_left_s=hopeless))
        assert alone.feasible
        assert (awaited.cores, awaited.batch) == (16, 16)
        assert not awaited.feasible

    def test_throughput_breaks_ties_where_requests_are_late_anyway(self) -> None:
        spec = make_spec()
        doomed = busy_view(rate_rps=0, budgets_left_s=(0.06,) * 40)
        program = counted_program(spec, doomed, QUIET, margin=0.0)
        answer = exhaustive(program)
        tied = program.late == program.late.min()
        throughput = np.arange(1, 17)[:, None] / spec.first.latency.table_s(16, 16)
        assert not answer.feasible
        assert throughput[answer.batch - 1, answer.cores - 1] == throughput[tied].max()

    def test_recovery_ranks_by_throughput(self) -> None:
        spec = make_spec()
        throughput = np.arange(1, 17)[:, None] / spec.first.latency.table_s(16, 16)
        by_rank = throughput.ravel()[np.argsort(recovery_table(spec), axis=None)]
        assert np.all(np.diff(by_rank) <= 0)

    def test_an_overloaded_queue_is_not_given_up(self) -> None:
        view = busy_view(rate_rps=20, budgets_left_s=tuple(np.linspace(-5, 0.2, 300)))
        assert decide(view).cores == 16

    def test_a_tight_queue_takes_more_cores(self) -> None:
        relaxed = decide(busy_view(rate_rps=10, budgets_left_s=(0.8, 0.8, 0.9)))
        tight = decide(busy_view(rate_rps=10, budgets_left_s=(0.07, 0.8, 0.9)))
        assert relaxed.feasible
        assert tight.feasible
        assert tight.cores > relaxed.cores

    def test_fewer_cores_than_the_published_form_while_budgets_are_mixed(self) -> None:
        view = busy_view(rate_rps=20, budgets_left_s=(0.5, 0.8), delays_s=np.array([0.1, 0.3]))
        assert decide(view).cores < decide(view, formulation="paper").cores

    def test_a_running_batch_speeds_up_with_the_cores(self) -> None:
        spec = make_spec()
        left_s = 0.4
        running = (RunningBatch(8, 0.0, 10.0 + left_s),)
        view = busy_view(
            rate_rps=0,
            budgets_left_s=(0.5,),
            running=running,
            allocation=Allocation(cores=4, batch=8),
        )
        late = counted_program(spec, view, QUIET, margin=0.0).late
        speed_up = spec.first.latency.predict_s(8, np.arange(1, 17)) / spec.first.latency.predict_s(
            8, 4
        )
        done_s = left_s * speed_up + spec.first.latency.predict_s(1, np.arange(1, 17))
        np.testing.assert_array_equal(late[0] > 0, done_s > 0.5)
        assert 0 < np.count_nonzero(late[0]) < 16

    def test_a_starting_replica_is_waited_for(self) -> None:
        view = busy_view(rate_rps=0, budgets_left_s=(0.9,))
        starting = view.with_first(replicas_ready=0, starting_s=(2.0,))
        assert counted_program(make_spec(), view, QUIET, 0.0).late.min() == 0
        assert counted_program(make_spec(), starting, QUIET, 0.0).late.min() == 1

    def test_throughput_must_reach_the_rate(self) -> None:
        spec = make_spec()
        endless = Forecast(rate_rps=20.0, noise=0.0, budget_low_s=99.0, budget_high_s=99.0)
        late = counted_program(spec, busy_view(), endless, margin=0.0).late
        batches = np.arange(1, 17)[:, None]
        np.testing.assert_array_equal(late == 0, batches / spec.first.latency.table_s(16, 16) >= 20)

    def test_everything_while_the_load_is_unknown(self) -> None:
        assert decide(make_view()) == Allocation(cores=16, batch=16)

    def test_little_while_idle(self) -> None:
        assert decide(busy_view(rate_rps=0)) == Allocation(cores=1, batch=1)

    def test_hold_keeps_the_allocation(self) -> None:
        held = Allocation(cores=3, batch=7)
        view = busy_view(rate_rps=200, allocation=held)
        answer = decide(view, on_infeasible="hold")
        assert answer == held
        assert not answer.feasible


class TestForecast:
    def forecast(self, view: SystemView, **options: Any) -> Forecast:
        return forecast_arrivals(make_spec(), view, **options)

    def test_equal_gaps_need_no_allowance(self) -> None:
        forecast = self.forecast(busy_view(rate_rps=20))
        assert forecast.rate_rps == 20
        assert forecast.noise == 0

    def test_scatter_raises_the_rate(self) -> None:
        scattered = busy_view(arrivals=np.array([10.0, 30.0] * 5))
        assert self.forecast(scattered).rate_rps > 20
        assert self.forecast(scattered, sigmas=2.0).rate_rps > self.forecast(scattered).rate_rps
        assert self.forecast(scattered, sigmas=0.0).rate_rps == 20

    def test_scatter_is_neither_a_slow_swing_nor_a_delivery_that_was_held_back(self) -> None:
        swing = busy_view(arrivals=np.array([10.0] * 5 + [30.0] * 5))
        held_back = busy_view(arrivals=np.array([20.0] * 7 + [5.0, 35.0, 20.0]))
        assert self.forecast(swing).noise ** 2 == pytest.approx(400 / 2 / 9 / 20)
        assert self.forecast(held_back).noise ** 2 == pytest.approx(450 / 9 / 20)

    def test_a_step_up_is_followed_at_once(self) -> None:
        step = busy_view(arrivals=np.array([5.0] * 8 + [40.0] * 2))
        assert self.forecast(step, sigmas=0.0).rate_rps == 40

    def test_rate_is_per_second(self) -> None:
        spec = make_spec(interval_s=0.5)
        assert forecast_arrivals(spec, busy_view(rate_rps=20)).rate_rps == 40

    def test_budgets_remember_the_worst_recent_delay(self) -> None:
        delays_s = np.array([0.9, 0.5, 0.1, 0.1, 0.1, 0.1])
        view = busy_view(delay_s=0.1, mean_delays_s=delays_s)
        assert self.forecast(view).budget_low_s == pytest.approx(0.5)
        assert self.forecast(view).budget_high_s == pytest.approx(0.9)

    def test_nothing_has_arrived_yet(self) -> None:
        view = busy_view(rate_rps=0, mean_delays_s=np.full(10, np.nan), budgets_s=NOTHING)
        forecast = self.forecast(view)
        assert (forecast.rate_rps, forecast.budget_low_s) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formulation": "papers"}, "did you mean 'paper'"),
        ({"solver": "gurobi"}, "choose from exact, highs, pulp"),
        ({"slo_fraction": 0.0}, "slo_fraction must be"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpongeIP(**options)


def test_missing_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulp.COIN_CMD.available", lambda self: False)
    with pytest.raises(ConfigError, match="'pulp' is not installed"):
        make_backend("pulp")
