import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sponge_env.errors import TraceError
from sponge_env.formats import FORMATS, EventTrace, content_of, read_arrivals, read_bandwidth
from sponge_env.formats.recorded import COUNTED
from sponge_env.formats.rows import read_lines
from sponge_env.scenario.config import Arrivals
from sponge_env.simulation.traffic import peak_factor

DATA = Path(__file__).parent / "data" / "traces"

# The files have the layout of the published ones, with their oddities, and made-up numbers.
MAHIMAHI_S = [0, 0.05, 0.45, 0.5, 0.55, 0.95, 1, 1.05, 1.2]
# name: starts in s, bytes per s, duration in s
BANDWIDTH = {
    "bandwidth.csv": ([0, 0.5, 2.5], [1e6, 2500000.5, 0], 3.75),
    "ghent.log": ([0, 1, 2.001, 3], [2493100, 2761000, 0, 1954600], 4.0),
    "hsdpa.log": ([0, 1.008, 2.088, 3.088], [250e3, 175e3, 280e3, 0], 4.208),
    "mahimahi.up": (MAHIMAHI_S, [90e3, 0, 30e3, 30e3, 0, 60e3, 30e3, 0, 30e3], 1.25),
    "pensieve": ([0, 0.512, 2.012], [535e3, 250e3, 62500], 3.512),
    "ucc-5g.csv": ([0, 1, 4], [1e6, 3e6, 0], 6.0),
}
EVENTS = {
    "arrivals.csv": [0.25, 0.25, 1.75, 3.25], "azure-functions.csv": [0, 0.25, 2.5000002],
    "azure-llm.csv": [0, 1e-6, 4.314579],
}  # fmt: skip
COUNTS = {
    "burstgpt.csv": [2, 0, 0, 1], "counts.csv": [1, 2, 2, 0, 0, 0, 1, 1, 2],
    "rps-lines.txt": [3, 0, 2, 5], "rps-one-line.txt": [3, 0, 2, 5],
}  # fmt: skip


def text(lines):
    return "\n".join(lines).encode()


def padded(lines):
    mark = "," if "," in lines[0] else " "
    return text(f" {line.replace(mark, f' {mark} ')}\t" for line in lines)


ANY_WRITER = {
    "intervals": lambda lines: b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode(),
    "compressed": lambda lines: gzip.compress(text(lines)),
    "commented": lambda own: text(["# made by x", "", own[0], "  # 1,2", *own[1:], " ", "# end"]),
    "padded": padded,
    "with_tabs": lambda lines: text(x if "," in x else x.replace(" ", "\t") for x in lines),
}
CSV_WRITERS = {
    "quoted": lambda lines: text('"' + line.replace(",", '", "') + '"' for line in lines),
    "with_trailing_commas": lambda lines: text([lines[0], *(line + "," for line in lines[1:])]),
}


def copies(name, folder):
    """The example and what other programs would make of it."""
    lines, paths = (DATA / name).read_text().splitlines(), [DATA / name]
    for kind, write in (ANY_WRITER | (CSV_WRITERS if name.endswith(".csv") else {})).items():
        paths.append(folder / kind)
        paths[-1].write_bytes(write(lines))
    return paths


@pytest.fixture
def written(tmp_path):
    """Return what writes a text into a file and returns its path."""

    def write(content):
        (tmp_path / "file").write_text(content)
        return tmp_path / "file"

    return write


@pytest.mark.parametrize("name", BANDWIDTH)
def test_bandwidth_format(name, tmp_path):
    for path in copies(name, tmp_path):
        trace = read_bandwidth(path)
        start_s, bandwidth, duration_s = BANDWIDTH[name]
        np.testing.assert_allclose(trace.start_s, start_s, rtol=1e-12)
        np.testing.assert_allclose(trace.bandwidth_bytes_per_s, bandwidth, rtol=1e-12)
        assert trace.duration_s == pytest.approx(duration_s)


@pytest.mark.parametrize("name", [*EVENTS, *COUNTS])
def test_format_of_arrivals(name, tmp_path):
    for trace in map(read_arrivals, copies(name, tmp_path)):
        assert isinstance(trace, EventTrace) == (name in EVENTS)
        if name in EVENTS:
            np.testing.assert_allclose(trace.time_s, EVENTS[name], rtol=1e-12)
        else:
            assert trace.per_second.tolist() == COUNTS[name]


@pytest.mark.parametrize("name", COUNTED)
def test_counts_may_be_called_what_they_are_and_times_may_be_seconds(name, written):
    path = written(f"id,timestamp,{name}\na,60,3\nb,62,1\n")
    assert read_arrivals(path).per_second.tolist() == [1, 2, 0, 1]


def test_numbers_that_only_rise_are_no_requests_per_second(written):
    path = written("".join(f"{ms}\n" for ms in range(1, 501)))
    with pytest.raises(TraceError, match=r"file: its 500 numbers rise .*mahimahi.*--trace"):
        read_arrivals(path)
    assert content_of(path) == "bandwidth"
    assert content_of(written(" ".join(map(str, range(1, 21))))) == "arrivals"
    assert content_of(written("20\n" * 20)) == "arrivals"
    path = written("".join(f"{count}\n" for count in range(10, 310, 5)))
    assert read_arrivals(path).per_second.size == 60
    said = r"file: numbers that only rise .* mahimahi .* needs 500 lines .* on one line"
    with pytest.raises(TraceError, match=said):
        content_of(path)


@pytest.mark.parametrize("name", [*BANDWIDTH, *EVENTS, *COUNTS])
def test_the_content_of_a_file_is_told_by_reading_it(name):
    if name == "mahimahi.up":
        with pytest.raises(TraceError, match="may be a mahimahi trace, which"):
            content_of(DATA / name)
    else:
        assert content_of(DATA / name) == ("bandwidth" if name in BANDWIDTH else "arrivals")


@pytest.mark.parametrize("zone", ["", "Z", "+00:00", "+0200", "-05:30"])
def test_azure_llm_times_may_name_their_zone_and_leave_out_the_fraction(zone, written):
    rows = f"2024-05-10 00:00:00.009930{zone},2162,5\n2024-05-10T00:00:01{zone},2399,6\n"
    trace = read_arrivals(written(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"))
    np.testing.assert_allclose(trace.time_s, [0, 0.99007], rtol=1e-12)


def test_a_ucc_log_without_a_reading_goes_on_with_the_last(written):
    lines = (DATA / "ucc-5g.csv").read_text().splitlines()
    unread = [UCC.format(f"2019.12.16_13.40.0{s}", "-") for s in (2, 5)]
    whole = [lines[0], unread[0], *lines[1:4], unread[1], *lines[4:]]
    trace = read_bandwidth(written("\n".join(whole)))
    start_s, bandwidth, duration_s = BANDWIDTH["ucc-5g.csv"]
    assert trace.start_s.tolist() == start_s
    assert (trace.bandwidth_bytes_per_s.tolist(), trace.duration_s) == (bandwidth, duration_s)
    with pytest.raises(TraceError, match="line 2: there is no DL_bitrate from here to the end"):
        read_bandwidth(written("\n".join([lines[0], *unread])))


UCC = "{},-8,51,0,B,1,5G,-96,-13,9,12,-,{}" + ",-" * 13

# file, line to replace (0 is a header), what to put there, what the message says of it
BAD_LINES = [
    ("bandwidth.csv", 2, "", "the line is empty"),
    ("bandwidth.csv", 2, "0.5", "1 instead of 2 columns"),
    ("bandwidth.csv", 2, "0.5,-1", "bandwidth_bytes_per_s is negative"),
    ("bandwidth.csv", 2, "0.5,1_000", "bandwidth_bytes_per_s cannot be '1_000'"),
    ("bandwidth.csv", 1, "1453121790312,5", "the time is too large for seconds"),
    ("ghent.log", 1, "1453121791690 1004 51 3 5 0", "interval is 0"),
    ("mahimahi.up", 4, "499", "milliseconds go back"),
    ("mahimahi.up", 4, "500.5", "milliseconds are not whole"),
    ("mahimahi.up", 8, "1453121790686", "do not count from the trace's start"),
    ("pensieve", 1, "0.512 2500000", "the bandwidth cannot be in Mbit/s"),
    ("ucc-5g.csv", 2, UCC.format("2019.12.16 13:40:04", 1), "Timestamp cannot be"),
    ("ucc-5g.csv", 2, UCC.format("2019.12.16_13.40.04", "--"), "DL_bitrate cannot be '--'"),
    ("arrivals.csv", 2, ",", "arrival_s cannot be ''"), ("arrivals.csv", 2, "abc",
     "arrival_s cannot be 'abc' (read as times of requests, in seconds (CSV arrival_s))"),
    ("burstgpt.csv", 2, "4,GPT-4,417,276,693,API log", "Timestamp goes back"),
    ("counts.csv", 3, "2014-04-10 11:39:07,4", "the time between two differs"),
    ("counts.csv", 2, "2014-04-10 11:39:03,0.5", "the number of requests is not whole"),
    ("burstgpt.csv", 3, "1700000000,GPT-4,417,276,693,API log", "is years after the first"),
    ("rps-lines.txt", 2, "2.5", "requests per second is not a whole number"),
    ("rps-one-line.txt", 0, "3 -1 2", "requests per second is negative"),
    ("azure-functions.csv", 2, "f00d,cafe,4.0,-1", "duration is negative"),
    ("azure-llm.csv", 3, "2023-11-16 18:15:46.0,1,2", "TIMESTAMP goes back"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "index", "line", "reason"), BAD_LINES)
def test_a_bad_line_is_named(name, index, line, reason, tmp_path):
    lines = (DATA / name).read_text().splitlines()
    lines[index] = line
    (path := tmp_path / name).write_text("\n".join(lines) + "\n")
    load = read_bandwidth if name in BANDWIDTH else read_arrivals
    with pytest.raises(TraceError) as caught:
        load(path)
    message = str(caught.value)
    assert f"{path}: line {index + 1}: " in message
    assert reason in message
    assert name == "rps-one-line.txt" or repr(line)[:80] in message
    assert "\n" not in message


def counted(times):
    """Return ten requests at the first of some multiples of 300 s, and one more at each later."""
    return "\n".join(["timestamp,value", *(f"{300 * t},{10 + k}" for k, t in enumerate(times)), ""])


def test_the_last_reading_goes_on_where_one_is_missing(written):
    trace = read_arrivals(written(counted([*range(11), *range(12, 20)])))
    by_reading = trace.per_second.reshape(20, 300).sum(axis=1)
    assert by_reading.tolist() == [*range(10, 21), 20, *range(21, 29)]


@pytest.mark.parametrize("times", [[0, 1, 3], [0, 2, 3, 4, 7, 8, 9], [*range(10), 12, 13]])
def test_counts_of_which_many_are_missing_are_refused(times, written):
    with pytest.raises(TraceError, match="the time between two differs"):
        read_arrivals(written(counted(times)))


@pytest.mark.parametrize("content", [
    "arrival_s\n2023-11-14 22:13:20\n2023-11-14T22:13:21.5Z\n", "Arrival_S\tid\n0\ta\n1.5\tb\n",
    "id;arrival_s\na;0\nb;1.5\n",
])  # fmt: skip
def test_times_of_requests_as_logs_have_them(content, written):
    assert read_arrivals(written(content)).time_s.tolist() == [0.0, 1.5]


def test_requests_recorded_by_the_second_lie_anywhere_in_it(written):
    trace = read_arrivals(written("arrival_s\n2\n2\n2\n4\n"))
    assert trace.per_second.tolist() == [0, 0, 3, 0, 1]
    assert read_arrivals(written("arrival_s\n2\n2\n3\n4\n5\n")).time_s.size == 5, "by chance"


def test_counts_of_minutes_are_scaled_up_without_bursts(written):
    trace = read_arrivals(path := written(counted([0, 1, 2])))
    assert trace.per_second.max() == 1
    factor = peak_factor(Arrivals("trace", rate_rps=1.0, file=str(path)), 300.0)
    assert factor == pytest.approx(1.0), "the first minutes are all alike"
    assert trace.scaled(300.0, 20.0) == pytest.approx(np.full(300, 20.0))
    assert trace.scaled(600.0, 21.0).reshape(2, 300).mean(axis=1) == pytest.approx([20.0, 22.0])


# A mahimahi trace cannot be told from requests per second.
@pytest.mark.parametrize(
    "name", sorted({*EVENTS, "rps-one-line.txt", *BANDWIDTH} - {"mahimahi.up"})
)
def test_a_trace_given_as_the_other_kind(name):
    said, read = r"holds arrivals, not bandwidth.*arrivals\.file", read_bandwidth
    if name in BANDWIDTH:
        said, read = r"holds bandwidth, not arrivals.*network\.trace", read_arrivals
    with pytest.raises(TraceError, match=said):
        read(DATA / name)


@pytest.mark.parametrize("load", [read_bandwidth, read_arrivals])
@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "it is empty"), (b"\n \n", "it is empty"),
     (b"# time_s,bandwidth_bytes_per_s\n", "it is empty"),
     (b"\x93NUMPY\xff\xfe", "it is not a text file"),
     (gzip.compress(b"0 1\n1 2\n" * 99, mtime=0)[:20], "it is not a text file"),
     (b"\x1f\x8bnot gzip", "it is not a text file"),
     (b"when,how much\n1,2\n", "no known format of {content}: line 1 is 'when,how much'"),
     (b"#\n\nwhen,how much\n", "no known format of {content}: line 3 is 'when,how much'")],
)  # fmt: skip
def test_a_file_in_no_known_format(load, data, reason, tmp_path):
    (path := tmp_path / "file").write_bytes(data)
    content = "bandwidth" if load is read_bandwidth else "arrivals"
    with pytest.raises(TraceError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert reason.format(content=content) in message
    if "known format" in reason:
        for other, formats in FORMATS.items():
            assert all((known.name in message) == (other == content) for known in formats)


@pytest.mark.parametrize("load", [read_bandwidth, read_arrivals])
def test_a_file_that_cannot_be_read(load, tmp_path):
    unknown = "unknown file or trace of .* 'missing.csv'; choose from"
    for name, reason in (("missing.csv", unknown), (tmp_path, "is a folder, not a file of ")):
        with pytest.raises(TraceError, match=reason):
            load(name)
    with pytest.raises(TraceError, match=r"cannot read the trace .*directory"):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    ("load", "content", "reason"),
    [(read_bandwidth, "0 0\n1 0\n", "must not have a bandwidth of 0 all the time"),
     (read_bandwidth, "3 1\n3 2\n", "line 2: the trace needs two lines at different s"),
     (read_bandwidth, "0\n0\n", "the trace ends at 0 ms"),
     (read_bandwidth, "5\n5\n5\n", "3 packets until 5 ms are no link: rates"),
     (read_bandwidth, "1000000\n2000000\n", "2 packets until 2000000 ms are no link: rates"),
     (read_bandwidth, "20\n" * 5 + "25\n" * 5, "10 packets until 25 ms are no link: rates"),
     (read_arrivals, "0\n0\n", "needs at least one request"),
     (read_arrivals, "1700000001\n1700000002\n", "too large (times need the header arrival_s)"),
     (read_arrivals, "arrival_s\n0\n1e-308\n", "needs at least two requests"),
     (read_bandwidth, "time_s,bandwidth_bytes_per_s\n0,1\n1,1e308\n", "must not be infinite"),
     (read_arrivals, "arrival_s\n2.5\n", "needs at least two requests")],
)  # fmt: skip
def test_a_trace_of_nothing(load, content, reason, written):
    path = written(content)
    with pytest.raises(TraceError, match=f"{re.escape(str(path))}.*{re.escape(reason)}"):
        load(path)


def test_a_changed_file_is_read_again(written):
    path = written("0 8\n1 8\n")
    assert read_bandwidth(path).mean_bytes_per_s == 1e6
    before_ns = path.stat().st_mtime_ns
    written("0 16\n1 16\n")
    os.utime(path, ns=(before_ns + 10**9, before_ns + 10**9))
    assert read_bandwidth(path).mean_bytes_per_s == 2e6


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=200).map(sorted))
def test_mahimahi_keeps_every_packet(tmp_path_factory, delivery_ms):
    delivery_ms = [0, *delivery_ms[:-1], delivery_ms[-1] + 1]
    path = tmp_path_factory.mktemp("mahimahi") / "trace"
    path.write_text("".join(f"{ms}\n" for ms in delivery_ms))
    trace = read_bandwidth(path)
    assert trace.duration_s == delivery_ms[-1] / 1000
    assert trace.cumulative_bytes[-1] == pytest.approx(1500 * len(delivery_ms))
