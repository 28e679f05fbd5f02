import dataclasses
import hashlib
import math
from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np
import pytest
from core_doors import arrival_s
from drawn_scenarios import SEEDS, networks, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import bandwidth as reference
from reference.bandwidth import fade_edges_s

from sponge_env.core.network import AUTOCORRELATION_4G, QUANTILES_4G
from sponge_env.errors import TraceError
from sponge_env.formats import BandwidthTrace, read_bandwidth
from sponge_env.scenario.config import Arrivals, Network
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.scenario.seeds import stream
from sponge_env.simulation.workload import draw_bandwidth
from traces import generate

PROFILE = load_profile("yolov5s")

TRACES = Path(generate.__file__).parent
RELATIVE = 1e-9


def trace_of(*samples: tuple[float, float]) -> BandwidthTrace:
    """A trace of (length in s, bytes per s)."""
    ends_s = np.cumsum([length_s for length_s, _ in samples])
    bandwidth = np.array([bytes_per_s for _, bytes_per_s in samples])
    return BandwidthTrace(np.append(0.0, ends_s[:-1]), bandwidth, float(ends_s[-1]))


def traces_of(
    lengths_s: st.SearchStrategy[float], bandwidths: st.SearchStrategy[float]
) -> st.SearchStrategy[BandwidthTrace]:
    samples = st.tuples(lengths_s, st.one_of(st.just(0.0), bandwidths))
    return (
        st.lists(samples, min_size=1, max_size=12)
        .filter(lambda drawn: any(bytes_per_s > 0 for _, bytes_per_s in drawn))
        .map(lambda drawn: trace_of(*drawn))
    )


bandwidth_traces = traces_of(st.integers(1, 5000).map(lambda ms: ms / 1000), st.floats(1e3, 1e7))
# Times and bytes without a rounding error, for what holds to the last byte only.
exact_s = st.integers(1, 5000).map(lambda ticks: ticks / 1024)
exact_traces = traces_of(exact_s, st.integers(1, 10_000).map(lambda kibi: kibi * 1024.0))
times_s = st.floats(0, 200)
payloads_bytes = st.floats(1, 1e7)


def delivered_bytes(trace: BandwidthTrace, until_s: float) -> float:
    """Integrate the bandwidth from 0, sample by sample."""
    laps = math.floor(until_s / trace.duration_s)
    rest_s = until_s - laps * trace.duration_s
    starts_s = trace.start_s.tolist()
    lap_bytes = rest_bytes = 0.0
    for start_s, end_s, bandwidth in zip(
        starts_s, [*starts_s[1:], trace.duration_s], trace.bandwidth_bytes_per_s, strict=True
    ):
        lap_bytes += (end_s - start_s) * bandwidth
        rest_bytes += max(0.0, min(end_s, rest_s) - start_s) * bandwidth
    return laps * lap_bytes + rest_bytes


def end_s(trace: BandwidthTrace, sent_s: float, payload_bytes: float) -> float:
    """When the core says that one transfer ends."""
    return float(arrival_s(trace, sent_s, payload_bytes)[0])


@given(bandwidth_traces, times_s, payloads_bytes)
def test_a_transfer_takes_until_its_bytes_are_delivered(trace, sent_s, payload_bytes):
    arrived_s = end_s(trace, sent_s, payload_bytes)
    before, after = delivered_bytes(trace, sent_s), delivered_bytes(trace, arrived_s)
    # A float64 time is exact to about 1e-16 of itself; at 1e7 bytes/s that is this many bytes.
    time_error_bytes = arrived_s * 1e-15 * 1e7
    assert after - before == pytest.approx(
        payload_bytes, rel=RELATIVE, abs=time_error_bytes + 1e-14 * after
    )
    assert arrived_s > sent_s


@given(exact_traces, exact_s, st.integers(1, 10**7))
def test_a_transfer_ends_as_soon_as_its_last_byte_is_delivered(trace, sent_s, payload_bytes):
    arrived_s = end_s(trace, sent_s, payload_bytes)
    just_before = delivered_bytes(trace, arrived_s - 1e-6 * (1 + arrived_s))
    assert just_before < delivered_bytes(trace, sent_s) + payload_bytes


@given(bandwidth_traces, st.lists(times_s, min_size=2, max_size=20).map(sorted), payloads_bytes)
def test_equal_payloads_arrive_in_the_order_they_were_sent(trace, sent_s, payload_bytes):
    assert np.all(np.diff(arrival_s(trace, sent_s, payload_bytes)) >= 0)


@given(bandwidth_traces, st.lists(times_s, min_size=1, max_size=20).map(sorted), payloads_bytes)
def test_walking_through_a_trace_finds_what_searching_does(trace, sent_s, payload_bytes):
    searched = reference.BandwidthTrace(
        trace.start_s, trace.bandwidth_bytes_per_s, trace.duration_s
    )
    expected_s = np.maximum.accumulate(searched.arrival_s(sent_s, payload_bytes))
    alone_s = [end_s(trace, each_s, payload_bytes) for each_s in sent_s]
    assert arrival_s(trace, sent_s, payload_bytes).tolist() == expected_s.tolist()
    assert np.maximum.accumulate(alone_s).tolist() == expected_s.tolist()


@given(bandwidth_traces, times_s, payloads_bytes)
def test_scalar_code_can_repeat_it_bit_for_bit(trace, sent_s, payload_bytes):
    start_s, bandwidth = trace.start_s.tolist(), trace.bandwidth_bytes_per_s.tolist()
    cumulative, duration_s = trace.cumulative_bytes.tolist(), trace.duration_s
    lap = math.floor(sent_s / duration_s)
    phase_s = max(sent_s - lap * duration_s, 0.0)
    i = bisect_right(start_s, phase_s) - 1
    target = cumulative[i] + (phase_s - start_s[i]) * bandwidth[i] + payload_bytes
    laps = math.ceil(target / cumulative[-1]) - 1
    rest = min(max(target - laps * cumulative[-1], np.finfo(float).tiny), cumulative[-1])
    j = bisect_left(cumulative, rest) - 1
    inside_s = start_s[j] + (rest - cumulative[j]) / bandwidth[j]
    expected_s = max((lap + laps) * duration_s + inside_s, sent_s)
    assert end_s(trace, sent_s, payload_bytes) == expected_s


@given(bandwidth_traces, st.floats(0, 50), times_s)
def test_a_shifted_trace_begins_later(trace, offset_s, until_s):
    whole = reference.BandwidthTrace(trace.start_s, trace.bandwidth_bytes_per_s, trace.duration_s)
    moved = delivered_bytes(trace, offset_s + until_s) - delivered_bytes(trace, offset_s)
    assert delivered_bytes(whole.shifted(offset_s), until_s) == pytest.approx(
        moved, rel=RELATIVE, abs=1e-3
    )


@given(bandwidth_traces, times_s)
def test_nothing_takes_no_time(trace, sent_s):
    assert end_s(trace, sent_s, 0.0) == sent_s


@pytest.mark.parametrize(
    ("sent_s", "payload_bytes", "arrived_s"),
    [
        (0.0, 50.0, 0.5),
        (0.0, 100.0, 1.0),  # all of the first sample: ends before the stall
        (0.5, 60.0, 3.2),  # stalls for two seconds
        (1.5, 10.0, 3.2),  # starts in the stall
        (3.5, 50.0, 4.25),  # goes on in the next lap
        (8.0, 100.0, 9.0),
        (0.0, 450.0, 12.0),  # three whole laps
    ],
)
def test_transfers_stall_and_wrap(sent_s, payload_bytes, arrived_s):
    trace = trace_of((1.0, 100.0), (2.0, 0.0), (1.0, 50.0))
    assert end_s(trace, sent_s, payload_bytes) == pytest.approx(arrived_s)


def test_unlimited_bandwidth_takes_no_time():
    unlimited = reference.UNLIMITED
    assert unlimited.arrival_s([0.0, 2.5], 3e5).tolist() == [0.0, 2.5]
    assert unlimited.shifted(0.3).arrival_s(1.25, 3e5) == 1.25


@pytest.mark.parametrize(
    ("start_s", "bandwidth", "duration_s", "rule"),
    [
        ([], [], 1.0, "at least one sample"),
        ([0, 1], [5], 2.0, "one bandwidth for each start"),
        ([0, math.nan], [5, 5], 2.0, "finite times"),
        ([0, 1], [5, 5], math.inf, "finite times"),
        ([1, 2], [5, 5], 3.0, "start at 0"),
        ([0, 2, 1], [5, 5, 5], 3.0, "ascending times"),
        ([0, 1, 1], [5, 5, 5], 3.0, "ascending times"),
        ([0, 1], [5, 5], 1.0, "ascending times"),
        ([0, 1], [5, -5], 2.0, "negative or undefined"),
        ([0, 1], [5, math.nan], 2.0, "negative or undefined"),
        ([0, 1], [5, math.inf], 2.0, "infinite at times"),
        ([0, 1], [0, 0], 2.0, "0 all the time"),
    ],
)
def test_impossible_traces(start_s, bandwidth, duration_s, rule):
    with pytest.raises(TraceError, match=rule):
        BandwidthTrace(np.array(start_s), np.array(bandwidth), duration_s)


def scenario(**network: object) -> Scenario:
    return Scenario(name="test", duration_s=60.0, network=Network(**network))


def draw(seed: int, **network: object) -> BandwidthTrace:
    """The bandwidth of an episode, as the core draws it."""
    return draw_bandwidth(scenario(**network), PROFILE, seed)


def long_4g(duration_s: float) -> BandwidthTrace:
    quiet = Arrivals("constant", rate_rps=1.0)
    episode = dataclasses.replace(scenario(trace="4g"), duration_s=duration_s, arrivals=quiet)
    return draw_bandwidth(episode, PROFILE, 1)


def test_synthetic_4g_has_the_published_statistics():
    bandwidth = long_4g(50_000).bandwidth_bytes_per_s
    for probability, target in QUANTILES_4G.items():
        assert np.quantile(bandwidth, probability) == pytest.approx(target, rel=0.05)
    for lag_s, target in AUTOCORRELATION_4G.items():
        made = np.corrcoef(bandwidth[:-lag_s], bandwidth[lag_s:])[0, 1]
        assert made == pytest.approx(target, abs=0.09)


def test_synthetic_4g_is_as_long_as_asked():
    trace = long_4g(9.5)
    assert trace.duration_s == 10.0
    assert trace.start_s.tolist() == list(range(10))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("network"))


@settings(deadline=None)
@given(data=st.data(), seed=SEEDS)
def test_the_core_draws_what_the_reference_does(files: Path, data: st.DataObject, seed: int):
    network = data.draw(networks(files).filter(lambda n: n.payload_bytes > 0))
    drawn = dataclasses.replace(scenario(), network=network)
    made, expected = draw_bandwidth(drawn, PROFILE, seed), reference.make_network(drawn, seed)
    for name in ("start_s", "bandwidth_bytes_per_s", "cumulative_bytes", "duration_s"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name), err_msg=name)


def test_4g_is_drawn_anew_for_each_seed():
    first, again, other = (draw(seed, trace="4g") for seed in (1, 1, 2))
    assert first.bandwidth_bytes_per_s.tobytes() == again.bandwidth_bytes_per_s.tobytes()
    assert first.bandwidth_bytes_per_s.tobytes() != other.bandwidth_bytes_per_s.tobytes()
    assert first.duration_s == 60.0


@pytest.mark.parametrize("network", [{"trace": "none"}, {"trace": "4g", "payload_bytes": 0.0}])
def test_no_network_takes_no_time(network):
    assert draw(1, **network).mean_bytes_per_s == math.inf


@pytest.mark.parametrize("name", ["4g-600s", "4g-600s.csv", str(TRACES / "4g-600s.csv")])
def test_a_trace_is_named_by_name_or_path(name):
    shipped = read_bandwidth(TRACES / "4g-600s.csv")
    trace = draw(1, trace=name)
    assert trace.bandwidth_bytes_per_s.tolist() == shipped.bandwidth_bytes_per_s.tolist()


def test_a_random_start_shifts_the_trace():
    from_start = draw(1, trace="4g-600s")
    shifted, again, other = (draw(seed, trace="4g-600s", start="random") for seed in (1, 1, 2))
    assert shifted.start_s.tolist() == again.start_s.tolist() != other.start_s.tolist()
    assert shifted.start_s[1] < 1.0
    assert shifted.mean_bytes_per_s == pytest.approx(from_start.mean_bytes_per_s)


def test_a_fade_leaves_its_share_of_the_bandwidth():
    trace = reference.BandwidthTrace(np.array([0.0, 1.0, 3.0]), np.array([100.0, 0.0, 50.0]), 4.0)
    faded = trace.faded(np.array([0.5, 1.5, 3.0, 3.25, 3.25, 3.5, 3.9, 4.2]), 0.1)
    assert faded.start_s.tolist() == [0.0, 0.5, 1.0, 1.5, 3.0, 3.25, 3.5, 3.9]
    expected = [100.0, 10.0, 0.0, 0.0, 5.0, 5.0, 50.0, 5.0]
    assert faded.bandwidth_bytes_per_s.tolist() == pytest.approx(expected)
    assert faded.duration_s == trace.duration_s


@given(st.floats(1.0, 50.0), st.floats(0.01, 1.0), st.floats(1.0, 300.0), st.integers(0, 99))
def test_each_stretch_has_one_fade(every_s, share, until_s, seed):
    length_s = share * every_s
    starts_s, ends_s = (
        fade_edges_s(every_s, length_s, until_s, stream(seed, "fades")).reshape(-1, 2).T
    )
    stretch_s = np.arange(math.ceil(until_s / every_s)) * every_s
    assert np.all((stretch_s <= starts_s) & (ends_s <= stretch_s + every_s * (1 + RELATIVE)))
    assert ends_s - starts_s == pytest.approx(length_s, abs=1e-9)


FADING = {"fade_every_s": 20.0, "fade_s": 4.0, "fade_depth": 0.02}


def test_fades_come_on_top_of_the_same_bandwidth():
    plain, faded = (draw(1, trace="4g", **kind) for kind in ({}, FADING))
    at_s = np.arange(0.0, 60.0, 0.01)
    before, after = (
        t.bandwidth_bytes_per_s[np.searchsorted(t.start_s, at_s, side="right") - 1]
        for t in (plain, faded)
    )
    in_fade = after < before
    assert in_fade.mean() == pytest.approx(0.2, abs=0.01)
    np.testing.assert_array_equal(after[in_fade], 0.02 * before[in_fade])
    np.testing.assert_array_equal(after[~in_fade], before[~in_fade])


def test_fades_fall_anew_on_each_lap_of_a_short_trace(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("time_s,bandwidth_bytes_per_s\n0,2e6\n1,3e6\n")
    made = draw(1, trace=str(path), **FADING)
    assert made.duration_s == 60.0
    assert np.count_nonzero(made.bandwidth_bytes_per_s < 1e6) >= 3 * 4


def test_an_unknown_trace_lists_those_there_are():
    with pytest.raises(TraceError) as caught:
        draw(1, trace="4g-60s")
    message = str(caught.value)
    assert "'4g-60s' (did you mean '4g-600s'?); choose from 4g, 4g-600s, none" in message


def test_shipped_traces_are_what_the_script_makes(tmp_path):
    assert generate.main(["--out", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {path.name for path in TRACES.glob("*.csv")} | {"CHECKSUMS"}
    for name, content in made.items():
        assert content == (TRACES / name).read_bytes(), name
    for line in (TRACES / "CHECKSUMS").read_text().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256(made[name]).hexdigest() == checksum


def test_the_readme_shows_how_good_the_synthetic_bandwidth_is(capsys):
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out in (TRACES / "README.md").read_text()
