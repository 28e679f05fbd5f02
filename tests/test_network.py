"""When transfers end, and the bandwidth of an episode."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from core_doors import arrival_s
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.core.network import _BANDWIDTHS, _PROBABILITIES
from sponge_env.errors import TraceError
from sponge_env.formats import BandwidthTrace, read_bandwidth
from sponge_env.scenario.config import Arrivals, Network
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import Scenario
from sponge_env.simulation.workload import draw_bandwidth
from traces import generate

PROFILE = load_profile("yolov5s")
TRACES = Path(generate.__file__).parent


def trace_of(*samples):
    """Return a trace of (length in s, bytes per s)."""
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
    """Integrate the bandwidth from 0, sample by sample."""
    laps = math.floor(until_s / trace.duration_s)
    ends_s = np.append(trace.start_s[1:], trace.duration_s)
    lengths_s = ends_s - trace.start_s
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
def test_walking_through_a_trace_ends_each_transfer_as_if_it_were_alone(
    trace, sent_s, payload_bytes
):
    alone_s = [arrival_s(trace, each_s, payload_bytes)[0] for each_s in sent_s]
    expected_s = np.maximum.accumulate(alone_s)
    assert arrival_s(trace, sent_s, payload_bytes).tolist() == expected_s.tolist()


@pytest.mark.parametrize(
    ("start_s", "bandwidth", "duration_s"),
    [
        ([], [], 1.0),
        ([0, 1], [5], 2.0),
        ([0, math.nan], [5, 5], 2.0),
        ([0, 1], [5, 5], math.inf),
        ([1, 2], [5, 5], 3.0),
        ([0, 2, 1], [5, 5, 5], 3.0),
        ([0, 1, 1], [5, 5, 5], 3.0),
        ([0, 1], [5, 5], 1.0),
        ([0, 1], [5, -5], 2.0),
        ([0, 1], [5, math.nan], 2.0),
        ([0, 1], [5, math.inf], 2.0),
        ([0, 1], [0, 0], 2.0),
    ],
)
def test_impossible_traces(start_s, bandwidth, duration_s):
    with pytest.raises(TraceError):
        BandwidthTrace(np.array(start_s), np.array(bandwidth), duration_s)


def draw(seed, duration_s=60.0, **network):
    """Return the bandwidth of an episode."""
    arrivals, link = Arrivals("constant", rate_rps=1.0), Network(**network)
    scenario = Scenario(name="test", duration_s=duration_s, network=link, arrivals=arrivals)
    return draw_bandwidth(scenario, PROFILE, seed)


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
    assert draw(1, **network).mean_bytes_per_s == math.inf


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
