import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.arrival_traces import CountTrace, EventTrace
from sponge_env.config import Arrivals, Network
from sponge_env.errors import TraceError
from sponge_env.network import make_network
from sponge_env.profile import load_profile
from sponge_env.scenario import Scenario, load_scenario
from sponge_env.seeding import stream
from sponge_env.workload import make_requests, rate_rps, send_times_s

PROFILE = load_profile("yolov5s")
RATE_RPS = 20.0
PROCESSES = {
    "poisson": Arrivals(kind="poisson", rate_rps=RATE_RPS),
    "constant": Arrivals(kind="constant", rate_rps=RATE_RPS),
    "bursty": Arrivals(kind="bursty", rate_rps=RATE_RPS),
    "on-off": Arrivals(kind="bursty", rate_rps=RATE_RPS, burst_factors=(0.0, 1.0)),
    "one state": Arrivals(kind="bursty", rate_rps=RATE_RPS, burst_factors=(3.0,)),
    "shipped events": Arrivals(kind="trace", file="arrivals-bursty-600s"),
    "shipped counts": Arrivals(kind="trace", file="arrivals-day-600s.csv"),
    "thinned events": Arrivals(kind="trace", file="arrivals-bursty-600s", rate_rps=7.0),
    "multiplied events": Arrivals(kind="trace", file="arrivals-bursty-600s", rate_rps=53.0),
    "scaled counts": Arrivals(kind="trace", file="arrivals-day-600s", rate_rps=31.5),
}


class Scripted(np.random.Generator):
    """A generator whose uniforms are given, and which counts those that are taken."""

    def __init__(self, *uniforms: float) -> None:
        super().__init__(np.random.SFC64(0))
        self.uniforms = list(uniforms)

    def random(self) -> float:
        return self.uniforms.pop(0)


def uniform_for(exponential: float) -> float:
    """The uniform that becomes this draw of the exponential distribution of mean 1."""
    return 1 - math.exp(-exponential)


def test_poisson_takes_one_uniform_per_gap():
    rng = Scripted(*map(uniform_for, (2.0, 1.0, 4.0, 9.0)), 0.5)
    times_s = send_times_s(PROCESSES["poisson"], 2.0, 5.0, rng)
    np.testing.assert_allclose(times_s, [1.0, 1.5, 3.5])
    assert rng.uniforms == [0.5]


def test_bursty_carries_a_gap_over_into_the_next_state():
    arrivals = Arrivals(kind="bursty", rate_rps=2.0, burst_factors=(0.0, 1.0, 2.0))  # 0, 2, 4
    rng = Scripted(
        0.5,  # second state: 2 requests/s
        uniform_for(0.1),  # for 1 s
        uniform_for(1.0),  # first request at 0.5 s
        uniform_for(5.0),  # one expected request by the state's end, four left
        0.0,  # the next state: 4 requests/s
        uniform_for(0.05),  # for 0.5 s, two left
        0.2,  # the next state: none at all
        uniform_for(0.3),  # for 3 s
        0.6,  # the one after the next: 4 requests/s, so the request is due at 5 s
        uniform_for(1.0),  # for 10 s
        uniform_for(8.0),  # at 7 s, past the end
        0.7,
    )
    times_s = send_times_s(arrivals, 2.0, 6.0, rng)
    np.testing.assert_allclose(times_s, [0.5, 5.0])
    assert rng.uniforms == [0.7]


@pytest.mark.parametrize("name", PROCESSES)
def test_same_seed_same_bytes(name):
    first, again, other = (
        send_times_s(PROCESSES[name], RATE_RPS, 100.0, stream(seed, "arrivals"))
        for seed in (1, 1, 2)
    )
    assert first.dtype == np.float64
    assert first.tobytes() == again.tobytes()
    recorded = name in ("constant", "shipped events")
    assert (first.tobytes() == other.tobytes()) == recorded


@pytest.mark.parametrize("name", PROCESSES)
def test_send_times_are_ascending_and_within_the_episode(name):
    times_s = send_times_s(PROCESSES[name], RATE_RPS, 99.5, stream(1, "arrivals"))
    assert times_s[0] >= 0
    assert times_s[-1] < 99.5
    assert np.all(np.diff(times_s) >= 0)


@pytest.mark.parametrize("name", ["poisson", "constant", "bursty", "on-off", "one state"])
def test_mean_rate_of_a_process(name):
    times_s = send_times_s(PROCESSES[name], RATE_RPS, 20_000.0, stream(1, "arrivals"))
    assert times_s.size / 20_000.0 == pytest.approx(RATE_RPS, rel=0.05)


@pytest.mark.parametrize("name", ["thinned events", "multiplied events", "scaled counts"])
def test_mean_rate_of_a_scaled_trace(name):
    arrivals = PROCESSES[name]
    times_s = send_times_s(arrivals, RATE_RPS, 500.0, stream(1, "arrivals"))
    assert times_s.size / 500.0 == pytest.approx(arrivals.rate_rps, rel=0.03)


def dispersion(times_s: np.ndarray) -> float:
    """Variance over mean of the requests per second: 1 for a Poisson process."""
    counts = np.bincount(times_s.astype(int))
    return float(np.var(counts) / np.mean(counts))


def test_burstiness():
    spread = {
        name: dispersion(send_times_s(PROCESSES[name], RATE_RPS, 5000.0, stream(1, "arrivals")))
        for name in ("constant", "poisson", "one state", "bursty")
    }
    assert spread["constant"] < 0.01
    assert spread["poisson"] == pytest.approx(1, abs=0.1)
    assert spread["one state"] == pytest.approx(1, abs=0.1)
    assert spread["bursty"] > 5


def test_constant_gaps():
    times_s = send_times_s(PROCESSES["constant"], 4.0, 1.0, stream(1, "arrivals"))
    assert times_s.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_events_repeat_after_the_last_and_a_mean_gap():
    trace = EventTrace(np.array([0.5, 1.0, 2.5]))
    assert trace.period_s == 3.5
    times_s = trace.send_times_s(8.0, None, Scripted())
    assert times_s.tolist() == [0.5, 1.0, 2.5, 4.0, 4.5, 6.0, 7.5]
    assert trace.mean_rps(8.0) == 7 / 8


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10).filter(any), st.integers(1, 40))
def test_counts_keep_to_their_second(per_second, seconds):
    trace = CountTrace(np.array(per_second, dtype=np.float64))
    times_s = trace.send_times_s(float(seconds), None, stream(1, "arrivals"))
    expected = [per_second[second % len(per_second)] for second in range(seconds)]
    counted = np.bincount(times_s.astype(int), minlength=seconds)
    assert counted.tolist() == expected
    assert trace.mean_rps(float(seconds)) == pytest.approx(times_s.size / seconds)


def test_thinning_leaves_recorded_times():
    recorded, thinned, multiplied = (
        send_times_s(PROCESSES[name], RATE_RPS, 60.0, stream(1, "arrivals"))
        for name in ("shipped events", "thinned events", "multiplied events")
    )
    assert set(thinned) < set(recorded)
    assert set(recorded) < set(multiplied)
    assert len(set(multiplied)) == multiplied.size


def test_a_trace_without_a_request_in_the_episode(tmp_path):
    path = tmp_path / "late.csv"
    path.write_text("arrival_s\n100\n101\n")
    arrivals = Arrivals(kind="trace", file=str(path))
    with pytest.raises(TraceError, match=r"late\.csv has no request in its first 60 s"):
        send_times_s(arrivals, RATE_RPS, 60.0, stream(1, "arrivals"))


def test_an_unknown_arrival_trace_lists_those_there_are():
    arrivals = Arrivals(kind="trace", file="arrivals-day")
    with pytest.raises(TraceError, match="choose from arrivals-bursty-600s, arrivals-day-600s"):
        send_times_s(arrivals, RATE_RPS, 60.0, stream(1, "arrivals"))


def scenario(arrivals: Arrivals, **changes: object) -> Scenario:
    return Scenario(name="test", **{"duration_s": 60.0, "arrivals": arrivals, **changes})


def test_rate():
    assert rate_rps(scenario(PROCESSES["poisson"]), PROFILE) == RATE_RPS
    loaded = scenario(Arrivals(load=0.4))
    limits = loaded.limits
    assert rate_rps(loaded, PROFILE) == 0.4 * PROFILE.capacity_rps(limits.batch, limits.cores)
    assert rate_rps(scenario(PROCESSES["scaled counts"]), PROFILE) == 31.5
    for name in ("shipped events", "shipped counts"):
        times_s = send_times_s(PROCESSES[name], 0.0, 60.0, stream(1, "arrivals"))
        assert rate_rps(scenario(PROCESSES[name]), PROFILE) == pytest.approx(times_s.size / 60)


def test_deadlines_and_arrivals():
    tested = scenario(
        PROCESSES["poisson"],
        slo_s=0.75,
        network=Network(trace="4g", payload_bytes=4e5, base_delay_s=0.02),
    )
    requests = make_requests(tested, PROFILE, seed=3)
    by_id = sorted(requests, key=lambda request: request.id)
    sent_s = send_times_s(tested.arrivals, RATE_RPS, 60.0, stream(3, "arrivals"))
    arrival_s = make_network(tested, 3).arrival_s(sent_s, 4e5) + 0.02
    assert [request.id for request in by_id] == list(range(sent_s.size))
    assert [request.sent_s for request in by_id] == sent_s.tolist()
    assert [request.arrival_s for request in by_id] == arrival_s.tolist()
    assert all(request.deadline_s == request.sent_s + 0.75 for request in requests)
    assert {request.payload_bytes for request in requests} == {4e5}


@given(st.integers(0, 50), st.sampled_from(["4g", "none"]))
def test_requests_come_in_the_order_of_their_arrival(seed, trace):
    tested = scenario(PROCESSES["bursty"], duration_s=10.0, network=Network(trace=trace))
    requests = make_requests(tested, PROFILE, seed)
    keys = [(request.arrival_s, request.id) for request in requests]
    assert keys == sorted(keys)
    assert all(request.delay_s >= 0.01 - 1e-9 for request in requests)


def test_without_a_network_only_the_base_delay_is_left():
    tested = scenario(PROCESSES["constant"], network=Network(trace="none", base_delay_s=0.25))
    requests = make_requests(tested, PROFILE, seed=1)
    assert all(request.arrival_s == request.sent_s + 0.25 for request in requests)


def test_requests_that_arrive_after_the_end_are_included():
    tested = scenario(PROCESSES["constant"], network=Network(trace="none", base_delay_s=5.0))
    requests = make_requests(tested, PROFILE, seed=1)
    assert len(requests) == 60 * RATE_RPS
    assert requests[-1].arrival_s > 60.0


@pytest.mark.parametrize("name", ["paper", "local", "bursty"])
def test_shipped_scenarios_make_requests(name):
    shipped = load_scenario(name)
    profile = PROFILE if name == "local" else load_profile(shipped.profile)
    requests = make_requests(shipped, profile, seed=1)
    expected = rate_rps(shipped, profile) * shipped.duration_s
    assert len(requests) == pytest.approx(expected, rel=0.3)
    assert rate_rps(shipped, profile) < profile.capacity_rps(16, 16)
    # The network makes budgets differ, and leaves most requests one that can be kept.
    budgets_s = np.array([request.budget_on_arrival_s for request in requests])
    assert np.std(budgets_s) > 0.03
    assert np.mean(budgets_s > profile.fastest_s(shipped.limits.cores)) > 0.99
