"""``sponge load``: a scenario sent to a server that a test holds in its hands."""

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from fake_oip import ABOUT, LITE0, FakeServer, serving

from sponge_env.__main__ import main
from sponge_env.models.model import TensorSpec
from sponge_env.scenario import profile as profiles
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.serve.load import open_loop, result
from sponge_env.serve.load.result import ANSWERED, EXPIRED, IN_TRANSFER, SILENT, summarise_load
from sponge_env.serve.load.target import ServerState, Target, sample_inputs
from sponge_env.serve.options import TOKEN
from sponge_env.simulation.workload import Workload, draw_workload

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = """
description = "One second, two classes"
duration_s = 1.0
slo_s = 0.5
profile = "yolov5n"
classes = [
  { share = 1.0, slo_s = 0.5, payload_bytes = 1000.0 },
  { share = 1.0, slo_s = 1.5, payload_bytes = 100000.0 },
]
[arrivals]
kind = "constant"
rate_rps = 40.0
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(own_folder, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    Path("two.toml").write_text(SCENARIO)


@pytest.fixture
def server():
    with serving(FakeServer()) as running:
        yield running


def line(server, options=""):
    return f"load --url {server.url} --scenario two.toml {options}"


def measured(server, options=""):
    assert main(line(server, f"--json summary.json {options}").split()) == 0
    (summary,) = json.loads(Path("summary.json").read_text())
    assert summary["offered"] == 40
    return summary


def test_every_request_is_sent_with_its_own_deadline(server):
    before_ms, summary = time.time() * 1000, measured(server)
    after_ms, taken = time.time() * 1000, server.taken
    workload = draw_workload(load_scenario("two.toml"), load_profile("yolov5n"), 0)
    assert len(taken) == workload.id.size == 40
    slos_ms = sorted(float(headers["x-slo-ms"]) for headers, *_ in taken)
    assert slos_ms == pytest.approx(sorted((workload.deadline_s - workload.sent_s) * 1000))
    sent_ms = np.sort([float(headers["x-sent-at-ms"]) for headers, *_ in taken])
    assert before_ms < sent_ms[0] < sent_ms[-1] < after_ms
    expected_ms = (np.sort(workload.sent_s) - workload.sent_s.min()) * 1000
    assert sent_ms - sent_ms[0] == pytest.approx(expected_ms, abs=0.01)
    for headers, head, tensor_bytes in taken:
        assert {"User-Agent", "Accept", "Accept-Encoding"}.isdisjoint(headers)
        assert tensor_bytes == 192
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 8, 8]}
        assert head["inputs"] == [tensor | {"parameters": {"binary_data_size": 192}}]
        assert head["parameters"] == {"binary_data_output": True}
    expected = {"on_time": 40, "violations": 0, "agent": "sponge-ip", "backend": "served"}
    assert summary.items() >= (expected | {"scenario": "two", "mean_cores": 4}).items()
    assert summary["latency_p50_s"] > 0
    assert summary["decision_p50_s"] is None


def test_requests_end_as_the_server_says(capsys):
    """A 503 that does not say when to try again is no refusal: a replica has died, for example."""
    statuses, ours = {0: 503, 1: 429, 2: 504, 3: 500, 4: 503}, ABOUT | {"name": "sponge"}
    with serving(FakeServer(status=lambda n: statuses.get(n, 200), about=ours)) as server:
        summary = measured(server)
    assert (summary["on_time"], summary["dropped"], summary["failed"]) == (35, 3, 2)
    assert summary["violation_rate"] == 5 / 40
    assert summary["latency_p99_s"] is None
    out = capsys.readouterr().out
    assert "35 on time, 0 late, 2 refused, 1 expired, 2 failed" in out
    assert 'status 503: {"error": "no"}' in out


def test_the_load_does_not_wait_for_a_slow_server_without_a_state():
    with serving(FakeServer(delay_s=0.8, held=None)) as server:
        summary = measured(server)
    assert (summary["agent"], summary["mean_cores"]) == ("fake", None)
    assert min(summary["on_time"], summary["late"]) > 0
    assert summary["dropped"] == summary["failed"] == 0


def test_a_server_that_says_nothing_does_not_hold_the_load_up(monkeypatch):
    monkeypatch.setattr(open_loop, "GRACE_S", 0.2)
    with serving(FakeServer(delay_s=60.0)) as server:
        began_s = time.monotonic()
        assert measured(server)["failed"] == 40
        assert time.monotonic() - began_s < 10


def test_an_option_chooses_how_the_deadline_is_stated():
    floats = LITE0 | {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]}
    with serving(FakeServer(metadata=floats)) as server:
        measured(server, "--deadlines timeout")
        for headers, head, size in server.taken:
            assert "x-slo-ms" not in headers
            assert 0 < head["parameters"]["timeout"] <= 1_500_000
            assert (head["inputs"][0]["datatype"], size) == ("FP32", 768)


def test_a_token_comes_from_the_environment(monkeypatch, capsys):
    with serving(FakeServer(token="secret")) as server:
        assert main(line(server).split()) == 2
        assert TOKEN in capsys.readouterr().err
        monkeypatch.setenv(TOKEN, "secret")
        measured(server)


def test_who_was_not_calibrated_needs_a_rate(server, monkeypatch, capsys):
    monkeypatch.setattr(profiles, "local_profile_path", lambda *_: Path("nowhere.json"))
    asked = ["load", "--url", server.url, "--scenario", "local", "--duration", "1"]
    assert main(asked) == 2
    assert "--rate" in capsys.readouterr().err
    assert main([*asked, "--rate", "15"]) == 0
    assert len(server.taken) > 5


def takes(*shape, datatype="FP32", count=1):
    inputs = [{"name": "t", "datatype": datatype, "shape": list(shape)}] * count
    return {"metadata": LITE0 | {"inputs": inputs}}


@pytest.mark.parametrize(
    ("changes", "options", "message"), [({}, "--model lit0", "choose from lite0"),
     ({"about": ["no"]}, "", "no server of the Open Inference Protocol"),
     *((each, "", "of its tensors all axes except the first (the batch) must be fixed")
       for each in (takes(count=0), takes(-1, 1, datatype="BF16"), takes(-1, 3, -1, -1))),
     ({}, "--rate 0", "above 0"), ({}, "--scenario two.toml", "only once"),
     ({}, "--deadlines x", "choose from headers, timeout"), ({}, "--json .", "cannot"),
     ({}, "--url http://127.0.0.1:1", "no server at http://127.0.0.1:1"),
     *(({}, f"--url {url}", "--url must have the form")
       for url in ("ftp://127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:99999", "http://",
                   "http://127.0.0.1/\N{EURO SIGN}", "http://user:word@127.0.0.1"))],
)  # fmt: skip
def test_bad_input_is_one_sentence(changes, options, message, refused):
    with serving(FakeServer(**changes)) as server:
        assert message in refused(main, line(server, options))
    assert not server.taken


# Without a server ---------------------------------------------------------------------------


def seen(ended, finished_s):
    """Return n requests, sent in seconds 0, 1, ..., under way for 0.1 s, due after 1 s."""
    ids = np.arange(len(ended))
    sent_s = ids.astype(float)
    workload = Workload(ids, sent_s, sent_s + 0.1, sent_s + 1.0, np.full(len(ids), 1e3), 0 * ids)
    where = Target("fake", "m", TensorSpec((3, 8, 8), "uint8"))
    scenario = dataclasses.replace(load_scenario("two.toml"), duration_s=10.0)
    found = result.LoadResult(scenario, where, workload, ServerState(None))
    found.ended[:], found.finished_s[:] = ended, finished_s
    sent = [kind != IN_TRANSFER for kind in ended]
    found.put_s[sent] = workload.arrival_s[sent] + 0.002
    return found


def test_a_clients_clock_decides_what_was_late():
    found = summarise_load(seen([ANSWERED] * 2 + [EXPIRED, SILENT], [1.0, 2.2, 3.0, 8.0]), 0, None)
    assert (found.offered, found.on_time, found.late) == (4, 1, 1)
    assert (found.dropped, found.failed) == (1, 1)
    assert (found.latency_mean_s, found.latency_p50_s) == (pytest.approx(1.1), math.inf)
    assert math.isnan(found.mean_cores)
    in_transfer = summarise_load(seen([ANSWERED, IN_TRANSFER], [0.5, math.nan]), 0, None)
    assert (in_transfer.offered, in_transfer.on_time, in_transfer.dropped) == (2, 1, 1)


def test_a_profile_tells_who_was_hopeless_and_a_warm_up_does_not_count():
    two = seen([EXPIRED, ANSWERED], [1.0, 1.5])
    two.workload.arrival_s[0] = 0.999
    found = summarise_load(two, 0, load_profile("yolov5s"))
    assert (found.hopeless, found.avoidable_violation_rate) == (1, 0)
    five = seen([EXPIRED] + [ANSWERED] * 4, [1.0, 1.5, 2.5, 3.5, 4.5])
    five.scenario = dataclasses.replace(five.scenario, start="warm", warmup_s=2.0)
    found = summarise_load(five, 0, None)
    assert (found.offered, found.violations, found.duration_s) == (3, 0, 8.0)


def test_cores_are_averaged_over_time():
    held = ServerState(None)
    assert math.isnan(held.mean_cores)
    held._began_s, held._cores = 10.0, {11.0: 4.0, 14.0: 8.0}
    assert held.mean_cores == 7


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64", "bool", "int8"])
@pytest.mark.parametrize("shape", [(3, 16, 20), (1, 8, 8), (7,), (2, 3, 4, 5)])
def test_there_are_inputs_for_whatever_a_model_takes(dtype, shape):
    shown = sample_inputs("model", TensorSpec(shape, dtype))
    assert len(shown) >= 4
    tensors = [tensor for row in shown for tensor in row.values()]
    for tensor in tensors:
        assert (tensor.shape, str(tensor.dtype)) == (shape, dtype)
    assert len({tensor.tobytes() for tensor in tensors}) > 1 or dtype == "bool"
