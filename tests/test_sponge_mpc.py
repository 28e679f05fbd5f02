"""sponge-mpc: its queue against the serving core, its forecasts, its price, its decisions."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.pipeline import Pipeline, StageModel
from views import busy_view, make_spec, make_view

from agents.lookahead import SpongeMPC, planner
from agents.lookahead.flow import Flow, FlowForecast, fit_rate
from agents.lookahead.paths import draw_paths, sample_path
from agents.lookahead.planner import drawn_tasks
from agents.lookahead.service_times import cost_curve, price_of
from agents.lookahead.tandem import COMING, SamplePath, advance, copy_queues, make_queues, resize
from sponge_env.core.compiled import entry_point
from sponge_env.interfaces import Allocation, StageAllocation
from sponge_env.latency import LatencyModel
from sponge_env.scenario.config import Serving

GUARD_S = 1e-9  # so short that only late requests count
SPEC = make_spec()
SERVICE_S = np.ascontiguousarray(SPEC.first.latency.table_s(16, 16).T)
UNIFORM = {"spread": 0.0, "scatter": 0.0, "swing": 0.0, "surge": 1.0}
CALM = FlowForecast(20.0, transfer_s=0.1, typical_s=0.1, **UNIFORM)
KINDS = np.array([[1.0, 1.0]])
DRAWS = draw_paths()
EXPECTED = DRAWS._replace(weight=np.ones(1), rate=np.zeros(1), bandwidth=np.zeros(1))
"""The path that has the expected rate and bandwidth, alone."""


@entry_point
def serve(queues, spare, future, service_s, cores, batch, edge_s):
    """Serve with some cores up to a moment and with others after it, through a copy."""
    late = 0.0
    for k in range(service_s.shape[0]):
        late += advance(queues, k, future, service_s[k, cores[0] - 1], batch, 0.0, edge_s)
    copy_queues(queues, spare)
    for k in range(service_s.shape[0]):
        resize(spare, k, edge_s, service_s[k, cores[0] - 1], service_s[k, cores[1] - 1])
    for k in range(service_s.shape[0]):
        late += advance(spare, k, future, service_s[k, cores[1] - 1], batch, edge_s, math.inf)
    return late


@entry_point
def play_path(forecast, draws, path, kinds, interval_s, speed, arrivals_s):
    return sample_path(forecast, draws, path, kinds, interval_s, interval_s, speed, arrivals_s)


def path_of(forecast, draws, path, kinds=KINDS, speed=None, interval_s=1.0):
    arrivals_s, speed = np.empty((500, 2)), np.empty(2) if speed is None else speed
    return arrivals_s[: play_path(forecast, draws, path, kinds, interval_s, speed, arrivals_s)]


def played(arrivals_s, service_s, tasks, replicas, cores, batch, edge_s):
    # Requests (requests, 2) go through stages whose batches take ``service_s`` (stages, cores,
    # batches), with some cores up to a moment and others after it; each answer leads to ``tasks``.
    stages, most = len(replicas), len(arrivals_s) * math.prod(max(n, 1) for n in tasks)
    fan_out, ids = np.array([[n] for n in (*tasks, 0)]), np.zeros((stages, most), np.int64)
    arrivals, kept = np.zeros((stages, most, 2)), np.zeros_like(replicas)
    future = SamplePath(arrivals, ids, 0, fan_out, GUARD_S, kept)
    future.arrivals_s[0, : len(arrivals_s)] = arrivals_s
    size = stages, most, max(replicas), len(arrivals_s)
    queues, spare = make_queues(*size), make_queues(*size)
    queues.marks[0, COMING] = len(arrivals_s)
    for k, count in enumerate(replicas):
        queues.free_s[k, count:] = math.inf
    return serve(queues, spare, future, service_s, cores, batch, edge_s)


def reference(arrivals_s, service_s, tasks, replicas, cores, batch, edge_s):
    models = [
        StageModel([table_s.T.tolist()], [1.0], (k - 1,) if k else (), count, 1.0, True)
        for k, (table_s, count) in enumerate(zip(service_s, replicas, strict=True))
    ]
    first, second = ([StageAllocation(c, batch)] * len(models) for c in cores)
    model = Pipeline(models, first, lambda row, stage, done: [*tasks, 0][stage], Serving("none"))
    arrivals = arrivals_s.tolist()
    model.serve([each for each in arrivals if each[0] <= edge_s], first, edge_s)
    model.serve([each for each in arrivals if each[0] > edge_s], second, 1e4)
    over_s = np.array([ticket.finished_s - ticket.deadline_s for ticket in model.tickets])
    return float(np.sum(1.0 + 0.2 * over_s[over_s > 0]))


@settings(max_examples=150, deadline=None)
# The second of two that come at once, for a replica idle since before.
@example(come=[(0.25, 0.0), (0.0, 0.0)], tasks=[], replicas=2, cores=(1, 1), batch=1, edge_s=1.0)
@given(
    come=st.lists(st.tuples(st.floats(0.0, 0.3), st.floats(0.0, 2.0)), min_size=1, max_size=40),
    tasks=st.lists(st.integers(0, 3), max_size=2), replicas=st.integers(1, 3),
    cores=st.tuples(st.integers(1, 16), st.integers(1, 16)), batch=st.integers(1, 16),
    edge_s=st.floats(0.1, 3.0),
)  # fmt: skip
def test_the_played_queues_count_as_a_plain_pipeline(come, tasks, replicas, cores, batch, edge_s):
    gaps_s, budgets_s = np.array(come).T
    arrivals_s = np.stack([np.cumsum(gaps_s), np.cumsum(gaps_s) + budgets_s], axis=1)
    held = [replicas] * (len(tasks) + 1)
    service_s = np.stack([SERVICE_S * share for share in (1.0, 0.3, 0.6)[: len(held)]])
    case = (arrivals_s, service_s, tasks, held, cores, batch, edge_s)
    assert played(*case) == pytest.approx(reference(*case), abs=1e-6)


def test_drawn_fan_outs_have_the_mean_of_their_distribution():
    shares = (0.15, 0.25, 0.2, 0.4)
    assert drawn_tasks(shares).mean() == pytest.approx(np.arange(4) @ shares, abs=0.01)
    assert set(drawn_tasks((0.0, 1.0)).tolist()) == {1}


def test_a_calm_path_is_the_steady_stream_with_what_is_on_the_way():
    arrivals_s = path_of(CALM, EXPECTED, 0)
    assert arrivals_s.shape[0] == pytest.approx(40, abs=1)
    np.testing.assert_allclose(np.diff(arrivals_s[:, 0]), 0.05, rtol=1e-6)
    np.testing.assert_allclose(arrivals_s[:, 1] - arrivals_s[:, 0], 0.9, rtol=1e-6)


def test_a_network_that_recovers_hands_over_a_clump_with_little_budget_left():
    arrivals_s = path_of(CALM._replace(transfer_s=2.0, swing=1.0), EXPECTED, 0)
    assert (arrivals_s[:, 1] < 1.0).sum() > 15
    assert np.all(np.diff(arrivals_s[:, 0]) >= 0)


def test_kinds_of_requests_overtake_each_other():
    arrivals_s = path_of(CALM, EXPECTED, 0, np.array([[0.1, 0.5], [5.0, 2.0]]))
    assert np.all(np.diff(arrivals_s[:, 0]) >= 0)
    assert np.any(np.diff(arrivals_s[:, 1]) < 0)


def test_the_bandwidth_remembers_for_so_many_seconds_however_long_an_interval_is():
    stalled, whole, halves = CALM._replace(transfer_s=0.8), np.empty(2), np.empty(4)
    path_of(stalled, EXPECTED, 0, KINDS, whole, 1.0)
    path_of(stalled, EXPECTED, 0, KINDS, halves, 0.5)
    np.testing.assert_allclose(halves[1::2], whole)


def test_paths_bring_the_expected_number_of_requests_on_average():
    random = CALM._replace(scatter=1.0, spread=0.05)
    counts = [np.sum(path_of(random, DRAWS, path)[:, 0] < 1.0) for path in range(DRAWS.weight.size)]
    assert DRAWS.weight.sum() == pytest.approx(1.0)
    assert float(DRAWS.weight @ np.array(counts)) == pytest.approx(20, rel=0.15)
    assert max(counts) > 27
    assert min(counts) < 18


def test_the_busiest_path_brings_the_surge_and_no_other():
    surging, paths = CALM._replace(surge=3.0), range(DRAWS.weight.size)
    more = [len(path_of(surging, DRAWS, k)) - len(path_of(CALM, DRAWS, k)) for k in paths]
    assert more[0] == pytest.approx(44, abs=2)  # until the next decision, and on the way
    assert more[1:] == [0] * (len(more) - 1)


def test_a_rate_is_averaged_over_the_intervals_that_agree():
    ones = np.ones(12)
    steady, watched_s = fit_rate(20 * ones, ones, 1.0)
    assert (steady, watched_s) == (20.0, 12.0)
    stepped, watched_s = fit_rate(np.array([10.0] * 8 + [50.0] * 4), ones, 1.0)
    assert (stepped, watched_s) == (50.0, 4.0)


def test_a_stall_in_the_network_does_not_change_the_rate():
    """The second interval from the end tells that the one before was cut short, too."""
    counts = np.array([20.0, 20.0, 20.0, 8.0, 0.0, 0.0])
    rate_rps, _ = fit_rate(counts, np.array([1.0, 1.0, 1.0, 1.0, -0.6, 0.0]), 1.0)
    assert rate_rps == pytest.approx(20.0)


def interval_view(intervals, delays_s, counts, bandwidth=3e6):
    """Return a view after intervals with so many arrivals each, the last ones with such delays."""
    mean_s = delays_s.mean() if delays_s.size else 0.1
    return make_view(
        now_s=float(intervals), arrivals=counts, mean_delays_s=np.full(intervals, mean_s),
        bandwidths_bytes_per_s=np.full(intervals, bandwidth), delays_s=delays_s,
        budgets_s=1.0 - delays_s,
    )  # fmt: skip


def test_an_interval_without_arrivals_means_that_they_are_on_the_way():
    flow = Flow(SPEC)
    flow.observe(interval_view(10, np.full(20, 0.1), np.full(10, 20.0)))
    forecast = flow.observe(interval_view(11, np.full(0, 0.1), np.array([20.0] * 10 + [0.0])))
    assert (forecast.rate_rps, forecast.transfer_s) == (pytest.approx(20.0), pytest.approx(1.1))
    rare = Flow(SPEC)
    rare.observe(interval_view(10, np.full(1, 0.1), np.ones(10)))
    forecast = rare.observe(interval_view(11, np.full(0, 0.1), np.array([1.0] * 10 + [0.0])))
    assert forecast.transfer_s == pytest.approx(0.1)


def network_view(interval, bandwidth, payloads_bytes, base_s=0.01):
    delays_s = base_s + np.array(payloads_bytes) / bandwidth
    counts = np.full(interval, float(len(payloads_bytes)))
    return interval_view(interval, delays_s, counts, bandwidth)


@pytest.mark.parametrize("base_s", [0.0, 0.01, 0.2])
def test_a_changing_bandwidth_does_not_look_like_requests_of_several_sizes(base_s):
    flow = Flow(SPEC)
    for interval, bandwidth in enumerate((3e6, 1e6, 1e6, 4.1e6, 2e4, 7e6, 3e6), start=1):
        flow.observe(network_view(interval, bandwidth, [3e5] * 20, base_s))
        assert flow.kinds.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("bandwidths", [(3e6, 3.0001e6), (3e6, 1e6, 4e6, 2e6)])
def test_requests_with_one_slo_and_two_sizes_are_told_apart(bandwidths):
    flow = Flow(SPEC)
    for interval, bandwidth in enumerate(bandwidths, start=1):
        large = 3 + interval % 3
        flow.observe(network_view(interval, bandwidth, [6e5] * large + [5e4] * (20 - large)))
    assert flow.kinds.shape == (20, 2)
    assert flow.kinds[0, 0] > 3 * flow.kinds[-1, 0]
    np.testing.assert_allclose(flow.kinds[:, 1], 1.0)


def test_the_price_of_a_request_rises_with_the_rate():
    curve = cost_curve(SERVICE_S)
    prices = [price_of(curve, rate_rps) for rate_rps in np.linspace(0, 60, 200)]
    assert prices[0] == 0.0
    assert np.all(np.diff(prices) >= 0)
    at_20, more_rps = price_of(curve, 20.0), np.diff((np.arange(1, 17) / SERVICE_S).max(axis=1))
    assert 1 / more_rps[4] <= at_20 <= 1 / more_rps[6]


def decide(view, spec=SPEC, **options):
    controller = SpongeMPC(**options)
    controller.reset(spec, seed=0)
    return controller.decide(view)


def test_urgent_requests_get_cores_at_once():
    calm = decide(busy_view(budgets_left_s=(0.7, 0.8, 0.9)))
    assert decide(busy_view(budgets_left_s=tuple(np.linspace(0.2, 0.5, 12)))).cores > calm.cores
    assert calm.feasible


def test_a_high_load_is_played_in_groups_as_it_is_one_by_one(monkeypatch):
    fast = LatencyModel(gamma_s=0.005, delta_s=1e-4, epsilon_s=0.0, eta_s=1e-3)
    view, answers = busy_view(rate_rps=400, allocation=Allocation(8, 8)), []
    for played in (10_000, 200):
        monkeypatch.setattr(planner, "_PLAYED", played)
        answers.append(decide(view, make_spec(latency=fast)))
    exact, grouped = answers
    assert exact.feasible
    assert grouped.feasible
    assert 1 < exact.cores < 16
    assert abs(grouped.cores - exact.cores) <= 1
