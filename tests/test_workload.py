import dataclasses
import math

import numpy as np
import pytest
from drawn_scenarios import SEEDS, scenarios, write_files
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.arrivals import send_times_s
from reference.bandwidth import make_network
from reference.workload import make_requests
from reference.workload import rate_rps as reference_rate_rps

from sponge_env.arrays import FloatArray
from sponge_env.errors import ConfigError, TraceError
from sponge_env.formats import EventTrace, read_arrivals
from sponge_env.scenario.config import Arrivals, Network, RequestClass
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import SCENARIO_DIR, Scenario, load_scenario
from sponge_env.scenario.seeds import stream
from sponge_env.scenario.spec import scenario_profile
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import Workload, draw_workload

PROFILE = load_profile("yolov5s")
RATE_RPS = 20.0
PROCESSES = {
    "poisson": Arrivals(kind="poisson", rate_rps=RATE_RPS),
    "constant": Arrivals(kind="constant", rate_rps=RATE_RPS),
    "bursty": Arrivals(kind="bursty", rate_rps=RATE_RPS),
    "on-off": Arrivals(kind="bursty", rate_rps=RATE_RPS, burst_factors=(0.0, 1.0)),
    "one state": Arrivals(kind="bursty", rate_rps=RATE_RPS, burst_factors=(3.0,)),
    "flash crowd": Arrivals(kind="flash-crowd", rate_rps=RATE_RPS, flash_s=4, flash_every_s=20),
    "diurnal": Arrivals(kind="diurnal", rate_rps=RATE_RPS, diurnal_period_s=50.0),
    "night": Arrivals(kind="diurnal", rate_rps=RATE_RPS, diurnal_amplitude=1.0),
    "shipped events": Arrivals(kind="trace", file="arrivals-bursty-600s"),
    "shipped counts": Arrivals(kind="trace", file="arrivals-day-600s.csv"),
    "thinned events": Arrivals(kind="trace", file="arrivals-bursty-600s", rate_rps=7.0),
    "multiplied events": Arrivals(kind="trace", file="arrivals-bursty-600s", rate_rps=53.0),
    "scaled counts": Arrivals(kind="trace", file="arrivals-day-600s", rate_rps=31.5),
    "loaded counts": Arrivals(kind="trace", file="arrivals-day-600s", load=0.9),
}


def scenario(arrivals: Arrivals, **changes: object) -> Scenario:
    return Scenario(name="test", **{"duration_s": 60.0, "arrivals": arrivals, **changes})


def draw_times_s(arrivals: Arrivals, duration_s: float, seed: int = 1) -> FloatArray:
    """When the core sends the requests of an episode."""
    return draw_workload(scenario(arrivals, duration_s=duration_s), PROFILE, seed).sent_s


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("workload"))


def check_drawn(drawn: Workload, expected: tuple[object, ...]) -> None:
    """Check the core's requests against the reference's, bit for bit."""
    assert drawn.id.size == len(expected)
    for field in dataclasses.fields(drawn):
        wanted = [getattr(request, field.name) for request in expected]
        assert getattr(drawn, field.name).tolist() == wanted, field.name


@settings(deadline=None, max_examples=200)
@given(data=st.data(), seed=SEEDS)
def test_the_core_draws_the_requests_of_the_reference(files, data, seed):
    drawn = data.draw(scenarios(files))
    profile = scenario_profile(drawn)
    assert rate_rps(drawn, profile) == reference_rate_rps(drawn, profile)
    check_drawn(draw_workload(drawn, profile, seed), make_requests(drawn, profile, seed))


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_draws_the_requests_of_the_reference(name):
    drawn = scenario(PROCESSES[name], duration_s=99.5)
    check_drawn(draw_workload(drawn, PROFILE, 3), make_requests(drawn, PROFILE, 3))


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


def test_a_gap_carries_over_into_a_flash_crowd_and_out_of_it():
    # A share of 1/5 of the time at 5 times the rate: 1 request/s outside, 5 within.
    arrivals = Arrivals(kind="flash-crowd", rate_rps=1.8, flash_s=2.0, flash_every_s=10.0)
    rng = Scripted(
        0.5,  # the first flash crowd lasts from 4 s to 6 s
        uniform_for(3.0),  # first request at 3 s
        uniform_for(3.5),  # one expected until 4 s, the other two and a half within 0.5 s
        uniform_for(8.5),  # seven and a half within, one outside: at 7 s
        uniform_for(4.0),  # three until the stretch ends at 10 s, one left
        0.0,  # the next flash crowd begins at once: at 10.2 s
        uniform_for(30.0),  # past the end, and even past the end of the stretch
        0.9,  # so the flash crowd of the one after it is drawn, too
        0.7,
    )
    times_s = send_times_s(arrivals, 1.8, 11.0, rng)
    np.testing.assert_allclose(times_s, [3.0, 4.5, 7.0, 10.2])
    assert rng.uniforms == [0.7]


def test_each_stretch_has_one_flash_crowd():
    arrivals = Arrivals(kind="flash-crowd", rate_rps=90.0, flash_s=5.0, flash_every_s=30.0)
    times_s = draw_times_s(arrivals, 300.0)
    counts = np.bincount(times_s.astype(int), minlength=300).reshape(10, 30)
    busy = counts > 150  # 54 outside, 270 within; its first and last second lie across the edge
    assert np.all((busy.sum(axis=1) >= 4) & (busy.sum(axis=1) <= 6))
    assert np.all(np.abs(np.diff(busy, axis=1)).sum(axis=1) <= 2)
    assert len(set(np.argmax(busy, axis=1))) > 5


def test_thinning_keeps_a_candidate_with_the_probability_of_its_hour():
    arrivals = Arrivals(
        kind="diurnal", rate_rps=2.0, diurnal_amplitude=0.5, diurnal_period_s=8.0
    )  # candidates at 3 requests/s
    rng = Scripted(
        0.25,  # begins at noon, with 3 requests/s
        uniform_for(0.3),
        0.98,  # at 0.1 s: stays with probability 0.999
        uniform_for(11.7),
        0.34,  # at 4 s, midnight: stays with probability 1/3
        uniform_for(3.0),
        0.0,  # at 5 s: stays in any case
        uniform_for(6.0),  # past the end
        0.7,
    )
    times_s = send_times_s(arrivals, 2.0, 6.0, rng)
    np.testing.assert_allclose(times_s, [0.1, 5.0])
    assert rng.uniforms == [0.7]


def test_diurnal_arrivals_follow_a_sine():
    arrivals = Arrivals(
        kind="diurnal", rate_rps=RATE_RPS, diurnal_amplitude=0.6, diurnal_period_s=100.0
    )
    times_s = draw_times_s(arrivals, 20_000.0)
    # The first harmonic of a rate 1 + a sin is a / 2, whatever the hour at which it begins.
    harmonic = np.abs(np.mean(np.exp(2j * np.pi * times_s / 100.0)))
    assert harmonic == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_same_seed_same_bytes(name):
    first, again, other = (draw_times_s(PROCESSES[name], 100.0, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float64
    assert first.tobytes() == again.tobytes()
    recorded = name in ("constant", "shipped events")
    assert (first.tobytes() == other.tobytes()) == recorded


@pytest.mark.parametrize("name", PROCESSES)
def test_send_times_are_ascending_and_within_the_episode(name):
    times_s = draw_times_s(PROCESSES[name], 99.5)
    assert times_s[0] >= 0
    assert times_s[-1] < 99.5
    assert np.all(np.diff(times_s) >= 0)


@pytest.mark.parametrize("name", [name for name, a in PROCESSES.items() if a.kind != "trace"])
def test_mean_rate_of_a_process(name):
    times_s = draw_times_s(PROCESSES[name], 8000.0)
    assert times_s.size / 8000.0 == pytest.approx(RATE_RPS, rel=0.05)


@pytest.mark.parametrize("name", ["thinned events", "multiplied events", "scaled counts"])
def test_mean_rate_of_a_scaled_trace(name):
    arrivals = PROCESSES[name]
    times_s = draw_times_s(arrivals, 500.0)
    assert times_s.size / 500.0 == pytest.approx(arrivals.rate_rps, rel=0.03)


def dispersion(times_s: np.ndarray) -> float:
    """Variance over mean of the requests per second: 1 for a Poisson process."""
    counts = np.bincount(times_s.astype(int))
    return float(np.var(counts) / np.mean(counts))


def test_burstiness():
    spread = {
        name: dispersion(draw_times_s(PROCESSES[name], 5000.0))
        for name in ("constant", "poisson", "one state", "bursty")
    }
    assert spread["constant"] < 0.01
    assert spread["poisson"] == pytest.approx(1, abs=0.1)
    assert spread["one state"] == pytest.approx(1, abs=0.1)
    assert spread["bursty"] > 5


def test_constant_gaps():
    times_s = draw_times_s(Arrivals("constant", 4.0), 1.0)
    assert times_s.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_events_repeat_after_the_last_and_a_mean_gap():
    trace = EventTrace(np.array([0.5, 1.0, 2.5]))
    assert trace.period_s == 3.5
    times_s = trace.recorded_s(8.0)
    assert times_s.tolist() == [0.5, 1.0, 2.5, 4.0, 4.5, 6.0, 7.5]
    assert trace.mean_rps(8.0) == 7 / 8


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10).filter(any), st.integers(1, 40))
def test_counts_keep_to_their_second(files, per_second, seconds):
    expected = [per_second[second % len(per_second)] for second in range(seconds)]
    assume(any(expected))
    path = files / "drawn-counts.txt"
    path.write_text("".join(f"{count}\n" for count in per_second))
    trace = read_arrivals(path)
    times_s = draw_times_s(Arrivals("trace", file=str(path)), float(seconds))
    counted = np.bincount(times_s.astype(int), minlength=seconds)
    assert counted.tolist() == expected
    assert trace.mean_rps(float(seconds)) == pytest.approx(times_s.size / seconds)


def test_thinning_leaves_recorded_times():
    recorded, thinned, multiplied = (
        draw_times_s(PROCESSES[name], 60.0)
        for name in ("shipped events", "thinned events", "multiplied events")
    )
    assert set(thinned) < set(recorded)
    assert set(recorded) < set(multiplied)
    assert len(set(multiplied)) == multiplied.size


@pytest.mark.parametrize(
    ("arrivals", "start", "same"),
    [
        ("shipped events", "beginning", True),
        ("shipped events", "random", False),
        ("shipped counts", "beginning", False),
        ("thinned events", "beginning", False),
    ],
)
def test_seeds_have_the_same_requests_where_all_is_recorded(arrivals, start, same):
    network = Network(trace="4g-600s", start=start)
    recorded = scenario(PROCESSES[arrivals], network=network)
    one, other = (draw_workload(recorded, PROFILE, seed).arrival_s for seed in (0, 1))
    assert np.array_equal(one, other) == same


def test_a_trace_without_a_request_in_the_episode(tmp_path):
    path = tmp_path / "late.csv"
    path.write_text("arrival_s\n100\n101\n")
    arrivals = Arrivals(kind="trace", file=str(path))
    with pytest.raises(TraceError, match=r"late\.csv has no request in its first 60 s"):
        draw_times_s(arrivals, 60.0)


def test_an_unknown_arrival_trace_lists_those_there_are():
    arrivals = Arrivals(kind="trace", file="arrivals-day")
    with pytest.raises(TraceError, match="choose from arrivals-bursty-600s, arrivals-day-600s"):
        draw_times_s(arrivals, 60.0)


def test_rate():
    assert rate_rps(scenario(PROCESSES["poisson"]), PROFILE) == RATE_RPS
    loaded = scenario(Arrivals(load=0.4))
    limits = loaded.limits
    assert rate_rps(loaded, PROFILE) == 0.4 * PROFILE.capacity_rps(limits.batch, limits.cores)
    assert rate_rps(scenario(PROCESSES["scaled counts"]), PROFILE) == 31.5
    loaded = scenario(PROCESSES["loaded counts"])
    assert rate_rps(loaded, PROFILE) == 0.9 * PROFILE.capacity_rps(limits.batch, limits.cores)
    sent = draw_times_s(PROCESSES["loaded counts"], 500.0).size
    assert sent / 500.0 == pytest.approx(rate_rps(loaded, PROFILE), rel=0.03)
    for name in ("shipped events", "shipped counts"):
        times_s = draw_times_s(PROCESSES[name], 60.0)
        assert rate_rps(scenario(PROCESSES[name]), PROFILE) == pytest.approx(times_s.size / 60)


def test_the_rate_of_a_trace_is_that_of_what_is_played():
    trace = EventTrace(np.array([0.5, 1.0, 2.5]))
    for duration_s in (0.5, 0.75, 2.5, 3.5, 3.75, 7.0, 9.25, 70.0):
        played = trace.recorded_s(duration_s)
        assert trace.mean_rps(duration_s) == played.size / duration_s


@pytest.mark.parametrize(
    ("name", "text"), [("counts", "9000000\n1e300\n"), ("events", "arrival_s\n0\n1e-7\n")]
)
def test_more_requests_than_fit_into_memory(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    flood = scenario(Arrivals(kind="trace", file=str(path)))
    with pytest.raises(ConfigError, match=rf"{name} has .*e\+\d+ requests in 60 s, more than"):
        rate_rps(flood, PROFILE)
    with pytest.raises(ConfigError, match=r"^test has 6e\+10 requests in 60 s"):
        rate_rps(scenario(Arrivals(rate_rps=1e9)), PROFILE)


def test_a_trace_of_many_requests_can_be_thinned(tmp_path):
    path = tmp_path / "hourly"
    path.write_text("8000000\n16000000\n1e300\n")
    thinned = Arrivals(kind="trace", file=str(path), rate_rps=30.0)
    times_s = draw_times_s(thinned, 2.0)
    assert np.bincount(times_s.astype(int)).tolist() == [20, 40]


def test_deadlines_and_arrivals():
    tested = scenario(
        PROCESSES["poisson"],
        slo_s=0.75,
        network=Network(trace="4g", payload_bytes=4e5, base_delay_s=0.02),
    )
    workload = draw_workload(tested, PROFILE, 3)
    by_id = np.argsort(workload.id)
    sent_s = send_times_s(tested.arrivals, RATE_RPS, 60.0, stream(3, "arrivals"))
    arrival_s = make_network(tested, 3).arrival_s(sent_s, 4e5) + 0.02
    assert workload.id[by_id].tolist() == list(range(sent_s.size))
    assert workload.sent_s[by_id].tolist() == sent_s.tolist()
    assert workload.arrival_s[by_id].tolist() == arrival_s.tolist()
    assert workload.deadline_s.tolist() == (workload.sent_s + 0.75).tolist()
    assert set(workload.payload_bytes.tolist()) == {4e5}


@given(st.integers(0, 50), st.sampled_from(["4g", "none"]))
def test_requests_come_in_the_order_of_their_arrival(seed, trace):
    tested = scenario(PROCESSES["bursty"], duration_s=10.0, network=Network(trace=trace))
    workload = draw_workload(tested, PROFILE, seed)
    keys = list(zip(workload.arrival_s.tolist(), workload.id.tolist(), strict=True))
    assert keys == sorted(keys)
    assert np.all(workload.arrival_s - workload.sent_s >= 0.01 - 1e-9)


def test_without_a_network_only_the_base_delay_is_left():
    tested = scenario(PROCESSES["constant"], network=Network(trace="none", base_delay_s=0.25))
    workload = draw_workload(tested, PROFILE, 1)
    assert workload.arrival_s.tolist() == (workload.sent_s + 0.25).tolist()


def test_requests_that_arrive_after_the_end_are_included():
    tested = scenario(PROCESSES["constant"], network=Network(trace="none", base_delay_s=5.0))
    workload = draw_workload(tested, PROFILE, 1)
    assert workload.id.size == 60 * RATE_RPS
    assert workload.arrival_s[-1] > 60.0


CLASSES = (
    RequestClass(share=3.0, slo_s=0.5, payload_bytes=5e4),
    RequestClass(share=1.0, slo_s=2.0, payload_bytes=9e5),
)


def test_each_request_has_the_deadline_and_the_size_of_its_class():
    tested = scenario(PROCESSES["poisson"], slo_s=0.5, classes=CLASSES, duration_s=300.0)
    workload = draw_workload(tested, PROFILE, 3)
    pairs = np.column_stack((workload.deadline_s - workload.sent_s, workload.payload_bytes))
    small = np.isclose(pairs, (0.5, 5e4)).all(axis=1)
    large = np.isclose(pairs, (2.0, 9e5)).all(axis=1)
    assert np.all(small | large)
    assert small.mean() == pytest.approx(0.75, abs=0.02)
    assert rate_rps(tested, PROFILE) * 300.0 == pytest.approx(small.size, rel=0.05)
    # They are sent at the same moments as without classes, and small ones overtake.
    plain = draw_workload(scenario(PROCESSES["poisson"], duration_s=300.0), PROFILE, 3)
    assert np.array_equal(np.sort(workload.sent_s), plain.sent_s)
    assert np.all(np.diff(workload.arrival_s) >= 0)
    assert not np.all(np.diff(workload.id) > 0)
    for alike in (small, large):
        assert np.all(np.diff(workload.id[alike]) > 0)


SHIPPED = sorted(
    path.stem
    for path in SCENARIO_DIR.glob("*.toml")
    if not load_scenario(path.stem).stages  # which have profiles of their own
)


@pytest.mark.parametrize("profile_name", ["yolov5s", "resnet18", "lite0"])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_fit_every_profile(name, profile_name):
    shipped = dataclasses.replace(load_scenario(name), duration_s=300.0)
    profile = load_profile(profile_name)
    workload = draw_workload(shipped, profile, 1)
    rate = rate_rps(shipped, profile)
    assert workload.id.size == pytest.approx(rate * shipped.duration_s, rel=0.3)
    assert rate < 0.7 * profile.capacity_rps(16, 16)
    # The network makes budgets differ, and leaves most requests one that can be kept.
    budget_s = workload.deadline_s - workload.arrival_s
    assert np.std(budget_s) > 0.01
    kept = 0.9 if shipped.network.fade_every_s else 0.99
    assert np.mean(budget_s > profile.fastest_s(shipped.limits.cores)) > kept


def test_the_published_rate_is_a_load_on_its_profile():
    check_drawn(
        draw_workload(load_scenario("paper"), PROFILE, 1),
        make_requests(load_scenario("paper-300kb"), PROFILE, 1),
    )
