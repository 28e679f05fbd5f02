"""``sponge load``: a scenario sent to a server that a test holds in its hands."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from fake_oip import HEAD, LITE0, FakeServer, serving

from sponge_env.__main__ import main
from sponge_env.models.model import TensorSpec
from sponge_env.scenario import profile as profiles
from sponge_env.scenario.profile import load_profile
from sponge_env.scenario.scenario import load_scenario
from sponge_env.serve.load import open_loop, target
from sponge_env.serve.load.__main__ import TOKEN
from sponge_env.serve.load.client import infer_head, infer_path
from sponge_env.serve.load.open_loop import ANSWERED, EXPIRED, IN_TRANSFER, PENDING, SILENT, Record
from sponge_env.serve.load.result import LoadResult, ServerState, report_lines, summarise_load
from sponge_env.serve.load.target import Target, sample_inputs
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
FLOATS = LITE0 | {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN, raising=False)
    Path("two.toml").write_text(SCENARIO)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


def load(server: FakeServer, options: str = "") -> int:
    return main(["load", "--url", server.url, "--scenario", "two.toml", *options.split()])


def drawn() -> Workload:
    scenario = load_scenario("two.toml")
    return draw_workload(scenario, load_profile(scenario.profile), 0)


def test_every_request_is_sent_with_its_own_deadline(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before_ms = time.time() * 1000
    assert load(server, "--json summary.json --requests requests.parquet") == 0
    after_ms = time.time() * 1000
    workload, (first, *taken) = drawn(), server.taken
    assert len(taken) == workload.id.size == 40
    assert first[0]["x-slo-ms"] == "10000"
    slos_ms = sorted(float(headers["x-slo-ms"]) for headers, *_ in taken)
    assert slos_ms == pytest.approx(sorted((workload.deadline_s - workload.sent_s) * 1000))
    sent_ms = np.sort([float(headers["x-sent-at-ms"]) for headers, *_ in taken])
    assert before_ms < sent_ms[0] < sent_ms[-1] < after_ms
    assert sent_ms - sent_ms[0] == pytest.approx(
        (np.sort(workload.sent_s) - workload.sent_s.min()) * 1000, abs=0.01
    )
    for headers, head, tensor_bytes in taken:
        assert {"User-Agent", "Accept", "Accept-Encoding"}.isdisjoint(headers)
        (tensor,) = head["inputs"]
        assert (tensor["name"], tensor["datatype"]) == ("images", "UINT8")
        assert tensor["shape"] == [1, 3, 8, 8]
        assert tensor["parameters"] == {"binary_data_size": tensor_bytes}
        assert tensor_bytes == 192
        assert head["parameters"] == {"binary_data_output": True}
    (summary,) = json.loads(Path("summary.json").read_text())
    assert (summary["offered"], summary["on_time"], summary["violations"]) == (40, 40, 0)
    assert (summary["agent"], summary["backend"]) == ("sponge-ip", "served")
    assert summary["scenario"] == "two"
    assert summary["mean_cores"] == 4
    assert summary["latency_p50_s"] > 0
    assert summary["decision_p50_s"] is None
    out = capsys.readouterr().out
    assert "40 on time, 0 late, 0 refused, 0 expired, 0 failed\n" in out
    kept = pyarrow.parquet.read_table("requests.parquet").to_pandas()
    assert len(kept) == 40
    assert set(kept["ended"]) == {"answered"}
    assert (kept["put_s"] >= kept["arrival_s"] - 1e-3).all()
    assert (kept["finished_s"] > kept["put_s"]).all()
    assert (kept["queue_s"] == 0.01).all()
    assert (kept["on_time"] == (kept["finished_s"] <= kept["deadline_s"])).all()


def test_requests_end_as_the_server_says(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = {0: 503, 1: 503, 2: 429, 3: 504, 4: 500}
    with serving(FakeServer(status=lambda n: statuses.get(n, 200))) as server:
        assert load(server, "--json summary.json") == 0
    (summary,) = json.loads(Path("summary.json").read_text())
    assert summary["offered"] == 40
    assert (summary["on_time"], summary["dropped"], summary["failed"]) == (35, 4, 1)
    assert summary["violation_rate"] == 5 / 40
    assert summary["latency_p99_s"] is None
    out = capsys.readouterr().out
    assert "35 on time, 0 late, 3 refused, 1 expired, 1 failed" in out
    assert 'last error   status 500: {"error": "no"}' in out


def test_the_load_does_not_wait_for_a_slow_server() -> None:
    with serving(FakeServer(delay_s=0.8)) as server:
        assert load(server, "--json summary.json") == 0
    (summary,) = json.loads(Path("summary.json").read_text())
    assert summary["offered"] == 40
    assert summary["on_time"] > 0
    assert summary["late"] > 0
    assert summary["dropped"] == summary["failed"] == 0


def test_a_server_that_says_nothing_does_not_hold_the_load_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(target, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(open_loop, "GRACE_S", 0.2)
    with serving(FakeServer(delay_s=60.0)) as server:
        began_s = time.monotonic()
        assert load(server, "--json summary.json") == 0
        assert time.monotonic() - began_s < 10
    (summary,) = json.loads(Path("summary.json").read_text())
    assert (summary["offered"], summary["failed"]) == (40, 40)
    assert "0 failed, 40 unanswered" in capsys.readouterr().out


def test_deadlines_go_as_tritons_parameter(server: FakeServer) -> None:
    assert load(server, "--deadlines timeout") == 0
    for headers, head, _ in server.taken[1:]:
        assert "x-slo-ms" not in headers
        assert 0 < head["parameters"]["timeout"] <= 1_500_000


def test_images_can_go_in_bytes() -> None:
    with serving(FakeServer(metadata=FLOATS)) as server:
        assert load(server) == 0
        assert load(server, "--uint8") == 0
    types = [(head["inputs"][0]["datatype"], size) for _, head, size in server.taken]
    assert set(types) == {("FP32", 768), ("UINT8", 192)}
    assert types[0] == ("FP32", 768)


def test_a_token_comes_from_the_environment_or_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeServer(token="secret")) as server:
        assert load(server) == 2
        assert "needs a token, or another one: --token" in capsys.readouterr().err
        assert load(server, "--token secret") == 0
        monkeypatch.setenv(TOKEN, "secret")
        assert load(server) == 0


def test_a_server_without_a_state_is_measured_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeServer(held=None)) as server:
        assert load(server, "--json summary.json") == 0
    (summary,) = json.loads(Path("summary.json").read_text())
    assert summary["agent"] == "fake"
    assert summary["mean_cores"] is None
    assert re.search(r"^fake +0.000 +0.000 +- ", capsys.readouterr().out, re.MULTILINE)


def test_who_was_not_calibrated_needs_a_rate(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profiles, "local_profile_path", lambda _: Path("nowhere.json"))
    asked = ["load", "--url", server.url, "--scenario", "local", "--duration", "1"]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert "was not measured on this machine yet" in error
    assert "or say --rate" in error
    assert main([*asked, "--rate", "15"]) == 0
    assert len(server.taken) > 5


def takes(*shape: int, datatype: str = "FP32", count: int = 1) -> dict[str, Any]:
    inputs = [{"name": "t", "datatype": datatype, "shape": list(shape)}] * count
    return {"metadata": LITE0 | {"inputs": inputs}}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, "--model lit0", "unknown model 'lit0' (did you mean 'lite0'?); choose from lite0"),
        ({"about": ["no"]}, "", "is no server of the Open Inference Protocol"),
        (takes(count=0), "", "does not describe an input"),
        (takes(-1, 3, count=2), "", "it takes 2 inputs, not one"),
        (takes(-1, 1, datatype="BYTES"), "", "it takes BYTES"),
        (takes(-1, 3, -1, -1), "", "all axes except the first"),
        ({}, "--rate 0", "must be a number above 0"),
        ({}, "--deadlines x", "unknown form 'x'; choose from headers, timeout"),
        ({}, "--json .", "cannot"),
        ({}, "--url http://127.0.0.1:1", "there is no server at http://127.0.0.1:1"),
        ({}, "--url ftp://127.0.0.1", "--url must have the form http://HOST[:PORT], not 'ftp:"),
        ({}, "--url 127.0.0.1:8000", "--url must have the form"),
        ({}, "--url http://127.0.0.1:99999", "--url must have the form"),
        ({}, "--url http://", "--url must have the form"),
    ],
)
def test_bad_input_is_one_sentence(
    changes: dict[str, Any], options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeServer(**changes)) as server:
        assert load(server, options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not server.taken


def test_inputs_that_are_refused_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    shown = LITE0 | {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 4, 4]}]}
    with serving(FakeServer(described=shown)) as server:
        assert load(server) == 2
    error = capsys.readouterr().err
    assert error == "error: lite0 refuses inputs of 3 x 4 x 4 uint8: shape must be [3, 8, 8]\n"
    assert len(server.taken) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_prints_what_there_is(number: signal.Signals) -> None:
    with serving(FakeServer()) as server:
        command = [sys.executable, "-m", "sponge_env", "load", "--url", server.url]
        command += ["--scenario", "two.toml", "--duration", "300"]
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(
            command, env=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stdout is not None
        assert running.stdout.readline().startswith("12000 requests to lite0 at http://")
        while len(server.taken) < 5:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "sponge-ip*" in out
    assert "* interrupted: what was measured until then" in out


# Without a server ---------------------------------------------------------------------------


def seen(ended: list[int], finished_s: list[float], partial: bool = False) -> LoadResult:
    """Return n requests, sent in seconds 0, 1, ..., under way for 0.1 s, due after 1 s."""
    sent_s = np.arange(len(ended), dtype=np.float64)
    workload = Workload(
        np.arange(len(ended)), sent_s, sent_s + 0.1, sent_s + 1.0, np.full(len(ended), 1e3)
    )
    record = Record(workload)
    record.ended[:] = ended
    record.finished_s[:] = finished_s
    sent = [kind != IN_TRANSFER for kind in ended]
    record.put_s[sent] = workload.arrival_s[sent] + 0.002
    where = Target("http://x", "fake", "m", "x", TensorSpec((3, 8, 8), "uint8"))
    held: Any = ServerState(None)  # type: ignore[arg-type]
    scenario = dataclasses.replace(load_scenario("two.toml"), duration_s=10.0)
    return LoadResult(scenario, where, record, held, partial)


def test_a_clients_clock_decides_what_was_late() -> None:
    load_seen = seen([ANSWERED] * 2 + [EXPIRED, SILENT], [1.0, 2.2, 3.0, 8.0])
    found = summarise_load(load_seen, 0, None)
    assert (found.on_time, found.late, found.dropped, found.failed) == (1, 1, 1, 1)
    assert found.latency_mean_s == pytest.approx(1.1)
    assert found.latency_p50_s == math.inf
    assert found.offered == 4
    assert math.isnan(found.mean_cores)
    assert (
        "1 on time, 1 late, 0 refused, 1 expired, 0 failed, 1 unanswered"
        in report_lines(load_seen)[0]
    )


def test_what_is_in_transfer_at_the_end_counts() -> None:
    load_seen = seen([ANSWERED, IN_TRANSFER], [0.5, math.nan])
    found = summarise_load(load_seen, 0, None)
    assert (found.offered, found.on_time, found.dropped) == (2, 1, 1)
    assert "1 still in transfer at the end" in report_lines(load_seen)[0]


def test_an_interrupted_load_says_what_still_ran() -> None:
    load_seen = seen([ANSWERED, PENDING, PENDING], [0.5, math.nan, math.nan], partial=True)
    load_seen.record.put_s[2] = math.nan
    found = summarise_load(load_seen, 0, None)
    assert (found.offered, found.on_time, found.running) == (2, 1, 1)
    assert found.violations == 0
    assert found.duration_s == pytest.approx(1.102)
    assert (found.partial, found.latency_p50_s) == (True, 0.5)


def test_a_profile_tells_who_was_hopeless() -> None:
    load_seen = seen([EXPIRED, ANSWERED], [1.0, 1.5])
    load_seen.record.workload.arrival_s[0] = 0.999
    found = summarise_load(load_seen, 0, load_profile("yolov5s"))
    assert found.hopeless == 1
    assert found.avoidable_violation_rate == 0


def test_a_warm_up_does_not_count() -> None:
    load_seen = seen([EXPIRED] + [ANSWERED] * 4, [1.0, 1.5, 2.5, 3.5, 4.5])
    load_seen.scenario = dataclasses.replace(load_seen.scenario, start="warm", warmup_s=2.0)
    found = summarise_load(load_seen, 0, None)
    assert (found.offered, found.violations, found.duration_s) == (3, 0, 8.0)


def test_cores_are_averaged_over_time() -> None:
    held: Any = ServerState(None)  # type: ignore[arg-type]
    assert math.isnan(held.mean_cores)
    held._began_s = 10.0
    held._cores = {11.0: 4.0, 14.0: 8.0}
    assert held.mean_cores == 7


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64", "bool", "int8"])
@pytest.mark.parametrize("shape", [(3, 16, 20), (1, 8, 8), (7,), (2, 3, 4, 5)])
def test_there_are_inputs_for_whatever_a_model_takes(dtype: str, shape: tuple[int, ...]) -> None:
    shown = sample_inputs("model", TensorSpec(shape, dtype))
    assert len(shown) >= 4
    for tensor in shown:
        assert (tensor.shape, str(tensor.dtype)) == (shape, dtype)
    assert len({tensor.tobytes() for tensor in shown}) > 1 or dtype == "bool"


def test_a_body_is_what_the_protocol_says() -> None:
    assert infer_path("a/b c") == "/v2/models/a%2Fb%20c/infer"
    head = json.loads(infer_head("x", np.array([1, 2], np.float32), {"timeout": 5}))
    assert head["inputs"][0]["datatype"] == "FP32"
    assert head["parameters"] == {"binary_data_output": True, "timeout": 5}
    assert HEAD == "Inference-Header-Content-Length"
