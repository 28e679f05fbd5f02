"""Sponge's program, both formulations, and with one of its means left out."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference.program import count_late
from views import NOTHING, busy_view, make_spec, make_view, views, with_first

from agents.rates import Forecast, forecast_arrivals
from agents.sponge_ip import SpongeIP, SpongeIPConfig, solve_published
from agents.stages import StageProgram, lay_out
from sponge_env.errors import ProfileError
from sponge_env.interfaces import Allocation, RunningBatch
from sponge_env.latency import LatencyModel, MeasuredLatency

STATES = 300  # random states of each seed


def exhaustive(spec, view, forecast, margin):
    """Try every pair: fewest misses, then fewest cores and batch."""
    # If some miss, least work for a request comes before these, told apart by 2**-30 s.
    late = count_late(spec, view, forecast, margin)
    fewest, latency_s = late.min(), spec.first.latency.table_s(*late.shape)
    work_s = (1 + margin) * latency_s / np.arange(1, late.shape[0] + 1)[:, np.newaxis]
    work, best = np.round(2**30 * work_s), np.argwhere(late == fewest).tolist()
    _, column, row = min((work[r, c] if fewest else 0.0, c, r) for r, c in best)
    return Allocation(cores=column + 1, batch=row + 1, feasible=bool(fewest == 0))


def same(one, other):
    return (one, one.feasible) == (other, other.feasible)


def program_of(spec, margin):
    """Return the program of one stage with a margin in place of that of the profile's fit."""
    fit = dataclasses.replace(spec.first.latency, residual_quantiles=(margin,))
    return StageProgram(SpongeIPConfig(), with_first(spec, latencies=(fit,)))


def choose(spec, view, forecast, margin):
    return program_of(spec, margin).choose(view, forecast, [1])


def laid_out_late(spec, view, forecast, margin):
    """Return what every pair makes late as the program for several stages counts it."""
    program = program_of(spec, margin)
    (state,) = program.model.states(view, forecast, [1])
    program.lay_out_stage(0, state, program.chain.late)
    return program.chain.late[:, 0].reshape(spec.first.cores_max, spec.first.batch_max).T


def decide(view, spec=None, **options):
    controller = SpongeIP(**options)
    controller.reset(spec or make_spec(), seed=0)
    return controller.decide(view)


def random_view(rng, spec):
    now_s, intervals = rng.uniform(0, 1000), int(rng.integers(1, 31))
    arrivals = rng.poisson(rng.choice([0, 0.5, 5, 12, 20, 60]), intervals).astype(np.float64)
    budgets_s = spec.slo_s - rng.uniform(0, rng.choice([0.1, 0.3, 1.5]), int(arrivals[-1]))
    queued = int(rng.choice([0, 1, 5, 30, 150]) * rng.uniform(0, 2))
    lowest_s = rng.choice([-2.0, 0.0, 0.2, 1.0])
    slacks_s = rng.uniform(lowest_s, lowest_s + rng.choice([0.2, 1.0, 30.0]), queued)
    means_s = rng.uniform(0, rng.choice([0.1, 0.9]), intervals)
    means_s[: rng.integers(0, intervals + 1)] = np.nan
    running, most = [], spec.first.batch_max
    for _ in range(rng.choice([0, 0, 1, 3])):
        size, end_s = int(rng.integers(1, most + 1)), now_s + rng.uniform(-0.1, 0.5)
        running.append(RunningBatch(size, now_s - 0.1, end_s))
    return make_view(
        now_s=now_s, queued_deadlines_s=now_s + np.sort(slacks_s), running=tuple(running),
        allocation=Allocation(int(rng.integers(1, spec.first.cores_max + 1)), 1),
        replicas_ready=int(rng.integers(0, 3)),
        starting_s=tuple(np.sort(rng.uniform(0, 2, rng.integers(0, 3))).tolist()),
        arrivals=arrivals, delays_s=spec.slo_s - budgets_s, budgets_s=budgets_s,
        mean_delays_s=means_s, cores_in_force=int(rng.integers(1, spec.first.cores_max + 1)),
        pending=random_resizes(rng, spec),
    )  # fmt: skip


def random_resizes(rng, spec):
    """Return earlier decisions that are on their way, one for each whole interval of the delay."""
    count = int(spec.resize_delay_s / spec.interval_s)
    starts_s = np.sort(rng.uniform(0, 1.1 * spec.resize_delay_s, count))
    cores = rng.integers(1, spec.first.cores_max + 1, count)
    return tuple(zip(starts_s.tolist(), cores.tolist(), strict=True))


def random_spec(rng, largest):
    return make_spec(
        str(rng.choice(["yolov5s", "resnet18"])), slo_s=float(rng.choice([0.3, 1.0, 3.0])),
        interval_s=float(rng.choice([0.5, 1.0, 2.0])),
        resize_delay_s=float(rng.choice([0.0, 0.0, 0.16, 0.7, 2.5])),
        cores_max=int(rng.integers(1, largest + 1)), batch_max=int(rng.integers(1, largest + 1)),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_equals_exhaustive_search_on_random_states(seed):
    rng, feasible = np.random.default_rng(seed), 0
    for number in range(STATES):
        spec = random_spec(rng, largest=20)
        view, margin = random_view(rng, spec), float(rng.choice([0.0, 0.1, 0.25]))
        forecast = forecast_arrivals(spec, view)
        answer = choose(spec, view, forecast, margin)
        assert same(answer, exhaustive(spec, view, forecast, margin))
        feasible += answer.feasible
        if number % 10 == 0:
            late = laid_out_late(spec, view, forecast, margin)
            np.testing.assert_array_equal(late, count_late(spec, view, forecast, margin))
    assert 0.3 * STATES < feasible < 0.7 * STATES


def test_equals_pulp_on_random_states():
    rng, exact, pulp = np.random.default_rng(10), SpongeIP(), SpongeIP(solver="pulp")
    for _ in range(60):
        spec = random_spec(rng, largest=8)
        view = random_view(rng, spec)
        exact.reset(spec, seed=0)
        pulp.reset(spec, seed=0)
        assert same(exact.decide(view), pulp.decide(view))


@settings(max_examples=80, deadline=None)
@given(views(), *[st.floats(-end, end) for end in (0.3, 0.1, 0.3)], st.floats(0.01, 10))
@example(busy_view(), 0.0, 0.0, 1e-8, 1.0)
def test_equals_exhaustive_search_on_fits_that_go_wrong(view, gamma_s, delta_s, epsilon_s, eta_s):
    spec = make_spec(latency=LatencyModel(gamma_s, delta_s, epsilon_s, eta_s))
    try:
        spec.first.latency.table_s(16, 16)
    except ProfileError:
        assume(False)
    assume(view.first.arrivals.size)
    forecast = forecast_arrivals(spec, view)
    expected = exhaustive(spec, view, forecast, margin=0.1)
    assert same(choose(spec, view, forecast, margin=0.1), expected)


def search_as_published(spec, rate, delay_s, slo_fraction):
    limit_ms = (slo_fraction * spec.slo_s - delay_s) * 1e3
    for c in range(1, spec.first.cores_max + 1):
        for b in range(1, spec.first.batch_max + 1):
            latency_ms = max(1, math.floor(float(spec.first.latency.predict_s(b, c)) * 1e3))
            if latency_ms * math.ceil(rate / b) <= limit_ms + 1e-6 and b / latency_ms * 1e3 >= rate:
                return c, b
    return None


PROFILES = st.sampled_from(["yolov5s", "resnet18"])


class TestPaper:
    @pytest.mark.parametrize(("slo_fraction", "expected"), [(1.0, (5, 10)), (0.9, (6, 10))])
    def test_published_example(self, slo_fraction, expected):
        options = {"formulation": "paper", "slo_fraction": slo_fraction}
        answer = decide(busy_view(rate_rps=100, delay_s=0.05), make_spec("resnet18"), **options)
        assert (answer.cores, answer.batch) == expected
        assert answer.feasible

    @given(PROFILES, st.integers(1, 200), st.floats(0, 1.2), st.sampled_from([0.9, 1.0]))
    def test_equals_the_published_search(self, profile, rate, delay_s, slo_fraction):
        spec = make_spec(profile)
        answer = solve_published(spec, rate, delay_s, slo_fraction)
        expected = search_as_published(spec, rate, delay_s, slo_fraction)
        assert answer.feasible == (expected is not None)
        if expected is not None:
            assert (answer.cores, answer.batch) == expected


@pytest.mark.parametrize("formulation", ["paper", "per-request"])
def test_least_violations_or_hold_when_nothing_fits(formulation):
    held = Allocation(cores=3, batch=7)
    view = busy_view(rate_rps=200, allocation=held)
    hold = decide(view, formulation=formulation, on_infeasible="hold")
    best = decide(view, formulation=formulation)
    assert hold == held != best
    assert not hold.feasible
    assert not best.feasible


class TestPerRequest:
    def test_fewer_cores_than_the_published_form_while_budgets_are_mixed(self):
        view = busy_view(rate_rps=20, budgets_left_s=(0.5, 0.8), delays_s=np.array([0.1, 0.3]))
        assert decide(view).cores < decide(view, formulation="paper").cores

    def test_everything_while_the_load_is_unknown_and_little_while_idle(self):
        held = Allocation(cores=3, batch=7)
        assert decide(make_view(allocation=held)) == Allocation(cores=16, batch=16)
        assert decide(make_view(allocation=held), formulation="paper") == held
        assert decide(busy_view(rate_rps=0)) == Allocation(cores=1, batch=1)


class TestForecast:
    def forecast(self, view, **options):
        return forecast_arrivals(make_spec(), view, **options)

    def test_scatter_raises_the_rate(self):
        scattered = busy_view(arrivals=np.array([10.0, 30.0] * 5))
        assert self.forecast(scattered).rate_rps > 20
        assert self.forecast(scattered, sigmas=2.0).rate_rps > self.forecast(scattered).rate_rps
        assert self.forecast(scattered, sigmas=0.0).rate_rps == 20

    def test_scatter_is_neither_a_slow_swing_nor_a_delivery_that_was_held_back(self):
        swing = busy_view(arrivals=np.array([10.0] * 5 + [30.0] * 5))
        held_back = busy_view(arrivals=np.array([20.0] * 7 + [5.0, 35.0, 20.0]))
        assert self.forecast(swing).noise ** 2 == pytest.approx(400 / 2 / 9 / 20)
        assert self.forecast(held_back).noise ** 2 == pytest.approx(450 / 9 / 20)

    def test_a_step_up_is_followed_at_once(self):
        step = busy_view(arrivals=np.array([5.0] * 8 + [40.0] * 2))
        assert self.forecast(step, sigmas=0.0).rate_rps == 40

    def test_budgets_remember_the_worst_recent_delay(self):
        view = busy_view(delay_s=0.1, mean_delays_s=np.array([0.9, 0.5, 0.1, 0.1, 0.1, 0.1]))
        assert self.forecast(view).budget_low_s == pytest.approx(0.5)
        assert self.forecast(view).budget_high_s == pytest.approx(0.9)

    def test_nothing_has_arrived_yet(self):
        view = busy_view(rate_rps=0, mean_delays_s=np.full(10, np.nan), budgets_s=NOTHING)
        forecast = self.forecast(view)
        assert (forecast.rate_rps, forecast.budget_low_s) == (0.0, 1.0)


def test_where_the_fit_is_rejected_a_running_batch_has_the_margin_of_what_was_measured():
    fit = LatencyModel(9.0, 9.0, 9.0, 9.0, residual_quantiles=(0.5,))
    grid = MeasuredLatency(*dataclasses.astuple(fit), (1, 2), (1, 2), ((0.1, 0.05), (0.2, 0.1)))
    view = busy_view(running=(RunningBatch(2, 9.9, 10.1),), cores_in_force=2)
    program = StageProgram(SpongeIPConfig(), make_spec(latency=grid, cores_max=2, batch_max=2))
    (state,) = program.model.states(view, Forecast(1.0, 0.0, 0.9, 0.9), [1])
    assert state.running[0, 0] == pytest.approx(10.1 + 0.5 * 0.1 - view.now_s)


def test_the_view_may_be_read_only():
    view = busy_view(rate_rps=10, budgets_left_s=(0.4, 0.8))
    expected = decide(view)
    view.first.queued_deadlines_s.setflags(write=False)
    assert same(decide(view), expected)


def test_no_decision_waits_for_the_compiler():
    controller = SpongeIP()
    controller.reset(make_spec(), seed=0)
    compiled = list(lay_out.signatures)
    assert compiled
    controller.decide(busy_view(running=(RunningBatch(2, 9.9, 10.1),)))
    assert lay_out.signatures == compiled
