"""The requests of an episode: when they are sent, when transfers end, and their deadlines."""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from core_doors import arrival_s
from hypothesis import assume, given
from hypothesis import strategies as st

from sponge_env.core.network import _BANDWIDTHS, _PROBABILITIES
from sponge_env.errors import ConfigError, TraceError
from sponge_env.formats import BandwidthTrace, EventTrace, read_arrivals, read_bandwidth
from sponge_env.scenario.config import Arrivals, Network, RequestClass
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import SCENARIO_DIR, Scenario, load_scenario
from sponge_env.simulation.traffic import rate_rps
from sponge_env.simulation.workload import draw_bandwidth, draw_workload
from traces import generate

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


def scenario(arrivals, **changes):
    return Scenario(name="test", **{"duration_s": 60.0, "arrivals": arrivals, **changes})


def draw_times_s(arrivals, duration_s, seed=1):
    return draw_workload(scenario(arrivals, duration_s=duration_s), PROFILE, seed).sent_s


@pytest.mark.parametrize("name", PROCESSES)
def test_send_times_ascend_within_the_episode_and_are_those_of_the_seed(name):
    first, again, other = (draw_times_s(PROCESSES[name], 99.5, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert (first.tobytes() == other.tobytes()) == (name in ("constant", "shipped events"))
    assert first[0] >= 0
    assert first[-1] < 99.5
    assert np.all(np.diff(first) >= 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mean_rate_is_what_was_asked_for(name):
    arrivals = PROCESSES[name]
    duration_s = 500.0 if arrivals.kind == "trace" else 8000.0
    mean_rps = draw_times_s(arrivals, duration_s).size / duration_s
    tested = scenario(arrivals, duration_s=duration_s)
    assert mean_rps == pytest.approx(rate_rps(tested, PROFILE), rel=0.05)
    if arrivals.rate_rps is not None:
        assert rate_rps(tested, PROFILE) == arrivals.rate_rps
    if arrivals.load is not None:
        capacity_rps = PROFILE.capacity_rps(tested.limits.batch, tested.limits.cores)
        assert rate_rps(tested, PROFILE) == arrivals.load * capacity_rps


def test_states_of_a_burst_last_equally_long_on_average():
    arrivals = dataclasses.replace(PROCESSES["on-off"], burst_dwell_s=20.0)
    counts = np.bincount(draw_times_s(arrivals, 40_000.0).astype(int), minlength=40_000)
    assert np.mean(counts == 0) == pytest.approx(0.5, abs=0.05)
    assert np.median(counts[counts > 0]) == pytest.approx(2 * RATE_RPS, rel=0.05)
    assert np.count_nonzero(np.diff(counts == 0)) == pytest.approx(40_000 / 20.0, rel=0.15)


def test_each_stretch_has_one_flash_crowd():
    arrivals = Arrivals(kind="flash-crowd", rate_rps=90.0, flash_s=5.0, flash_every_s=30.0)
    counts = np.bincount(draw_times_s(arrivals, 300.0).astype(int), minlength=300).reshape(10, 30)
    busy = counts > 150  # 54 outside, 270 within; its first and last second lie across the edge
    assert np.all((busy.sum(axis=1) >= 4) & (busy.sum(axis=1) <= 6))
    assert np.all(np.abs(np.diff(busy, axis=1)).sum(axis=1) <= 2)
    assert len(set(np.argmax(busy, axis=1))) > 5
    assert np.median(counts[busy]) / np.median(counts[~busy]) == pytest.approx(5.0, rel=0.05)


def test_diurnal_arrivals_follow_a_sine():
    arrivals = dataclasses.replace(PROCESSES["night"], diurnal_amplitude=0.6, diurnal_period_s=100)
    times_s = draw_times_s(arrivals, 20_000.0)
    # The first harmonic of a rate 1 + a sin is a / 2, whatever the hour at which it begins.
    assert np.abs(np.mean(np.exp(2j * np.pi * times_s / 100.0))) == pytest.approx(0.3, abs=0.01)


def test_events_repeat_after_the_last_and_a_mean_gap():
    trace = EventTrace(np.array([0.5, 1.0, 2.5]))
    assert trace.period_s == 3.5
    assert trace.recorded_s(8.0).tolist() == [0.5, 1.0, 2.5, 4.0, 4.5, 6.0, 7.5]
    for duration_s in (0.5, 0.75, 2.5, 3.5, 3.75, 7.0, 9.25, 70.0):
        assert trace.mean_rps(duration_s) == trace.recorded_s(duration_s).size / duration_s


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10).filter(any), st.integers(1, 40))
def test_counts_keep_to_their_second(tmp_path_factory, per_second, seconds):
    expected = [per_second[second % len(per_second)] for second in range(seconds)]
    assume(any(expected))
    path = tmp_path_factory.getbasetemp() / "drawn-counts.txt"
    path.write_text("".join(f"{count}\n" for count in per_second))
    times_s = draw_times_s(Arrivals("trace", file=str(path)), float(seconds))
    assert np.bincount(times_s.astype(int), minlength=seconds).tolist() == expected
    assert read_arrivals(path).mean_rps(float(seconds)) == pytest.approx(times_s.size / seconds)


def test_scaling_keeps_recorded_times():
    kinds = (PROCESSES[f"{kind} events"] for kind in ("shipped", "thinned", "multiplied"))
    recorded, thinned, multiplied = (draw_times_s(each, 60.0) for each in kinds)
    assert set(thinned) < set(recorded) < set(multiplied)
    assert len(set(multiplied)) == multiplied.size


def test_a_trace_that_cannot_be_played_is_named(tmp_path):
    path = tmp_path / "late.csv"
    path.write_text("arrival_s\n100\n101\n")
    with pytest.raises(TraceError, match=r"late\.csv has no request in its first 60 s"):
        draw_times_s(Arrivals(kind="trace", file=str(path)), 60.0)
    with pytest.raises(TraceError, match="arrivals-bursty-600s, arrivals-day-600s"):
        draw_times_s(Arrivals(kind="trace", file="arrivals-day"), 60.0)


def test_more_requests_than_fit_into_memory(tmp_path):
    counts, events = tmp_path / "counts", tmp_path / "events"
    counts.write_text("9000000\n9e7\n")
    events.write_text("arrival_s\n0\n1e-7\n")
    floods = [Arrivals(kind="trace", file=str(path)) for path in (counts, events)]
    for flood in (*floods, Arrivals(rate_rps=1e9)):
        with pytest.raises(ConfigError, match=r"at most 1e\+06 requests/s"):
            rate_rps(scenario(flood), PROFILE)
    counts.write_text("8000000\n16000000\n9e7\n")
    thinned = draw_times_s(dataclasses.replace(floods[0], rate_rps=30.0), 2.0)
    assert np.bincount(thinned.astype(int)).tolist() == [20, 40]


def test_deadlines_and_arrivals():
    network = Network(trace="4g", payload_bytes=4e5, base_delay_s=5.0)
    tested = scenario(PROCESSES["bursty"], slo_s=0.75, network=network)
    workload = draw_workload(tested, PROFILE, 3)
    ends_s = arrival_s(draw_bandwidth(tested, PROFILE, 3), workload.sent_s, 4e5)
    np.testing.assert_allclose(workload.arrival_s, ends_s + 5.0, rtol=1e-12)
    assert workload.deadline_s.tolist() == (workload.sent_s + 0.75).tolist()
    assert set(workload.payload_bytes.tolist()) == {4e5}
    assert workload.arrival_s[-1] > 60.0, "those after the end, too"


CLASSES = RequestClass(share=3.0, slo_s=0.5, payload_bytes=5e4), RequestClass(1.0, 2.0, 9e5)


def test_each_request_has_the_deadline_and_the_size_of_its_class():
    tested = scenario(PROCESSES["poisson"], slo_s=0.5, classes=CLASSES, duration_s=300.0)
    workload = draw_workload(tested, PROFILE, 3)
    slo_s = workload.deadline_s - workload.sent_s
    small, large = (
        np.isclose(slo_s, kind.slo_s) & (workload.payload_bytes == kind.payload_bytes)
        for kind in CLASSES
    )
    assert np.all(small | large)
    assert small.mean() == pytest.approx(0.75, abs=0.02)
    # They are sent at the same moments as without classes, and small ones overtake.
    plain = draw_workload(scenario(PROCESSES["poisson"], duration_s=300.0), PROFILE, 3)
    assert np.array_equal(np.sort(workload.sent_s), plain.sent_s)
    assert np.all(np.diff(workload.arrival_s) >= 0)
    assert not np.all(np.diff(workload.id) > 0)
    bandwidth = draw_bandwidth(tested, PROFILE, 3)
    for alike, kind in zip((small, large), CLASSES, strict=True):
        assert np.all(np.diff(workload.id[alike]) > 0)
        ends_s = arrival_s(bandwidth, workload.sent_s[alike], kind.payload_bytes)
        expected_s = ends_s + tested.network.base_delay_s
        np.testing.assert_allclose(workload.arrival_s[alike], expected_s, rtol=1e-12)


SHIPPED = map(load_scenario, sorted(path.stem for path in SCENARIO_DIR.glob("*.toml")))
ONE_MODEL = [pytest.param(each, id=each.name) for each in SHIPPED if not each.stages]


@pytest.mark.parametrize("shipped", ONE_MODEL)
def test_shipped_scenarios_fit_every_profile(shipped):
    shipped = dataclasses.replace(shipped, duration_s=300.0)
    for profile in map(load_profile, ("yolov5s", "resnet18", "lite0")):
        workload, rate = draw_workload(shipped, profile, 1), rate_rps(shipped, profile)
        assert workload.id.size == pytest.approx(rate * shipped.duration_s, rel=0.3)
        assert rate < 0.7 * profile.capacity_rps(16, 16)
        # The network makes budgets differ, and leaves most requests one that can be kept.
        budget_s = workload.deadline_s - workload.arrival_s
        assert np.std(budget_s) > 0.01
        kept = 0.9 if shipped.network.fade_every_s else 0.99
        assert np.mean(budget_s > profile.fastest_s(shipped.limits.cores)) > kept


TRACES = Path(generate.__file__).parent


def trace_of(*samples):
    ends_s = np.cumsum([length_s for length_s, _ in samples])
    bandwidth = np.array([bytes_per_s for _, bytes_per_s in samples])
    return BandwidthTrace(np.append(0.0, ends_s[:-1]), bandwidth, float(ends_s[-1]))


# Times and bytes without a rounding error, so that what holds to the last byte can be checked.
times_s = st.integers(1, 5000).map(lambda ticks: ticks / 1024)
rates = st.just(0.0) | st.integers(1, 10_000).map(lambda kibi: kibi * 1024.0)
traces = (
    st.lists(st.tuples(times_s, rates), min_size=1, max_size=12)
    .filter(lambda drawn: any(bytes_per_s > 0 for _, bytes_per_s in drawn))
    .map(lambda drawn: trace_of(*drawn))
)
payloads_bytes = st.integers(1, 10**7).map(float)


def delivered_bytes(trace, until_s):
    laps = math.floor(until_s / trace.duration_s)
    lengths_s = np.append(trace.start_s[1:], trace.duration_s) - trace.start_s
    inside_s = np.clip(until_s - laps * trace.duration_s - trace.start_s, 0.0, lengths_s)
    return float((laps * lengths_s + inside_s) @ trace.bandwidth_bytes_per_s)


@given(traces, times_s, payloads_bytes)
def test_a_transfer_ends_as_soon_as_its_last_byte_is_delivered(trace, sent_s, payload_bytes):
    arrived_s = float(arrival_s(trace, sent_s, payload_bytes)[0])
    end_bytes = delivered_bytes(trace, sent_s) + payload_bytes
    # A float64 time is exact to about 1e-16 of itself; at 1e7 bytes/s that is this many bytes.
    error_bytes = arrived_s * 1e-8
    assert delivered_bytes(trace, arrived_s) == pytest.approx(end_bytes, rel=1e-9, abs=error_bytes)
    assert delivered_bytes(trace, arrived_s - 1e-6 * (1 + arrived_s)) < end_bytes
    assert arrival_s(trace, sent_s, 0.0) == [sent_s]


@given(traces, st.lists(times_s, min_size=2, max_size=20).map(sorted), payloads_bytes)
def test_walking_through_a_trace_ends_each_transfer_as_if_alone(trace, sent_s, payload_bytes):
    alone_s = [arrival_s(trace, each_s, payload_bytes)[0] for each_s in sent_s]
    expected_s = np.maximum.accumulate(alone_s)
    assert arrival_s(trace, sent_s, payload_bytes).tolist() == expected_s.tolist()


@pytest.mark.parametrize(
    ("start_s", "bandwidth", "duration_s"),
    [([], [], 1.0), ([0, 1], [5], 2.0), ([0, math.nan], [5, 5], 2.0), ([0, 1], [5, 5], math.inf),
     ([1, 2], [5, 5], 3.0), ([0, 2, 1], [5, 5, 5], 3.0), ([0, 1, 1], [5, 5, 5], 3.0),
     ([0, 1], [5, 5], 1.0), ([0, 1], [5, -5], 2.0), ([0, 1], [5, math.nan], 2.0),
     ([0, 1], [5, math.inf], 2.0), ([0, 1], [0, 0], 2.0)],
)  # fmt: skip
def test_impossible_traces(start_s, bandwidth, duration_s):
    with pytest.raises(TraceError):
        BandwidthTrace(np.array(start_s), np.array(bandwidth), duration_s)


def draw(seed, duration_s=60.0, **network):
    own = {"duration_s": duration_s, "network": Network(**network)}
    return draw_bandwidth(scenario(Arrivals("constant", rate_rps=1.0), **own), PROFILE, seed)


def test_synthetic_4g_has_the_published_statistics():
    trace = draw(1, 50_000.5, trace="4g")
    assert trace.duration_s == trace.start_s.size == 50_001
    bandwidth = trace.bandwidth_bytes_per_s
    for probability, target in zip(_PROBABILITIES, _BANDWIDTHS, strict=True):
        assert np.quantile(bandwidth, probability) == pytest.approx(target, rel=0.05)
    for lag_s, target in {1: 0.75, 2: 0.63, 5: 0.44, 10: 0.16, 30: 0.07}.items():
        made = np.corrcoef(bandwidth[:-lag_s], bandwidth[lag_s:])[0, 1]
        assert made == pytest.approx(target, abs=0.09)


def test_4g_is_drawn_anew_for_each_seed():
    first, again, other = (draw(seed, trace="4g").bandwidth_bytes_per_s for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("network", [{"trace": "none"}, {"trace": "4g", "payload_bytes": 0.0}])
def test_no_network_takes_no_time(network):
    tested = scenario(Arrivals(rate_rps=9.0), network=Network(**network, base_delay_s=0.25))
    workload = draw_workload(tested, PROFILE, 1)
    assert np.array_equal(workload.arrival_s, workload.sent_s + 0.25)


def test_a_trace_is_named_by_name_or_path():
    shipped = read_bandwidth(TRACES / "4g-600s.csv").bandwidth_bytes_per_s
    for name in ("4g-600s", "4g-600s.csv", str(TRACES / "4g-600s.csv")):
        assert np.array_equal(draw(1, trace=name).bandwidth_bytes_per_s, shipped)
    with pytest.raises(TraceError, match="did you mean '4g-600s'"):
        draw(1, trace="4g-60s")


def test_a_random_start_rotates_the_trace():
    whole = draw(1, trace="4g-600s").bandwidth_bytes_per_s
    shifted, again, other = (draw(seed, trace="4g-600s", start="random") for seed in (1, 1, 2))
    assert shifted.start_s.tolist() == again.start_s.tolist() != other.start_s.tolist()
    ((first,),) = np.nonzero(whole == shifted.bandwidth_bytes_per_s[0])
    np.testing.assert_array_equal(shifted.bandwidth_bytes_per_s[:600], np.roll(whole, -first))
    # What is left of the first sample, and at the end what was cut from it.
    lengths_s = np.diff(shifted.start_s, append=shifted.duration_s)
    assert 0 < lengths_s[0] == pytest.approx(1.0 - lengths_s[600])
    assert lengths_s[1:600] == pytest.approx(1.0)
    assert shifted.bandwidth_bytes_per_s[600] == whole[first]


FADING = {"fade_every_s": 20.0, "fade_s": 4.0, "fade_depth": 0.02}


def test_fades_come_on_top_of_the_same_bandwidth_one_in_each_stretch():
    plain, faded = (draw(1, trace="4g", **kind) for kind in ({}, FADING))
    at_s = np.arange(0.005, 60.0, 0.01)
    before, after = (
        t.bandwidth_bytes_per_s[np.searchsorted(t.start_s, at_s, side="right") - 1]
        for t in (plain, faded)
    )
    fading = after < before
    assert fading.reshape(3, -1).sum(axis=1) == pytest.approx([400] * 3, abs=1)
    assert np.count_nonzero(np.diff(fading)) <= 6
    np.testing.assert_array_equal(after, np.where(fading, 0.02 * before, before))


def test_shipped_traces_are_what_the_script_makes(tmp_path, capsys):
    assert generate.main(["--out", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {path.name for path in TRACES.glob("*.csv")} | {"CHECKSUMS"}
    for name, content in made.items():
        assert content == (TRACES / name).read_bytes(), name
    for line in made["CHECKSUMS"].decode().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256(made[name]).hexdigest() == checksum
