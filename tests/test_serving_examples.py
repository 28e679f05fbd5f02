"""Clients of others ask a server, and dashboards name what there is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_oip import FakeServer, serving
from served_story import SERVED, Story

from sponge_env.serve.__main__ import _parser as serve_parser
from sponge_env.serve.load.__main__ import _parse as parse_load
from sponge_env.serve.monitor.exposition import exposition

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "serving"
triton = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed"
)


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@triton
def test_tritonclient_over_http() -> None:
    with serving(FakeServer()) as server:
        address = server.url.removeprefix("http://")
        options = ["--url", address, "--model", "lite0", "--slo-ms", "500"]
        out = run(sys.executable, "http_client.py", *options)
    assert "answer of shape (1, 10)" in out
    assert re.search(r"deadline_met +True", out)
    (_, head, _) = server.taken[0]
    assert head["parameters"]["slo_ms"] == 500
    assert head["parameters"]["sent_at_ms"] > 1.6e12


@contextmanager
def grpc_server() -> Iterator[tuple[str, list[Any]]]:
    """Serve one model over gRPC, as far as the example asks; keep what it asks."""
    grpc = pytest.importorskip("grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    taken: list[Any] = []

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            answer = service_pb2.ModelMetadataResponse(name=request.name)
            answer.inputs.add(name="input", datatype="UINT8", shape=[-1, 3, 8, 8])
            return answer

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            taken.append((request, context.time_remaining()))
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            answer.outputs.add(name="output", datatype="FP32", shape=[1, 10])
            answer.raw_output_contents.append(np.zeros(10, np.float32).tobytes())
            answer.parameters["deadline_met"].bool_param = True
            answer.parameters["variant"].string_param = "lite0"
            return answer

    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", taken
    finally:
        server.stop(None).wait()


@triton
def test_tritonclient_over_grpc() -> None:
    with grpc_server() as (address, taken):
        options = ["--url", address, "--model", "lite0", "--slo-ms", "20000"]
        out = run(sys.executable, "grpc_client.py", *options)
    assert "answer of shape (1, 10)" in out
    assert re.search(r"deadline_met +True\nvariant +lite0", out)
    ((request, remaining_s),) = taken
    assert len(request.raw_input_contents[0]) == 192
    assert 0 < remaining_s < 21


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl() -> None:
    with serving(FakeServer()) as server:
        out = run("./curl.sh", server.url, "lite0", "images", "3,8,8", "192", TYPE="UINT8")
    assert '"name": "lite0"' in out
    assert "status 200 after" in out
    ((headers, head, tensor_bytes),) = server.taken
    assert headers["x-slo-ms"] == "500"
    assert float(headers["x-sent-at-ms"]) > 1.6e12
    assert (head["inputs"][0]["shape"], tensor_bytes) == ([1, 3, 8, 8], 192)


# Grafana ------------------------------------------------------------------------------------

DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(each["expr"] for each in DASHBOARD["annotations"]["list"]),
    *(v["definition"] for v in DASHBOARD["templating"]["list"] if "definition" in v),
]


def exposed() -> tuple[set[str], dict[str, set[str]]]:
    """Return the names of all samples, and the labels of each."""
    story = Story(SERVED)
    story.play(400)
    text = exposition(story.metrics)
    labels: dict[str, set[str]] = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            found = re.match(r"(\w+)(?:\{(.*)\})? ", line)
            assert found is not None
            own = set(re.findall(r'(\w+)="', found[2] or ""))
            labels.setdefault(found[1], set()).update(own)
    return set(labels), labels


def test_the_dashboard_names_metrics_that_there_are() -> None:
    names, labels = exposed()
    for expression in EXPRESSIONS:
        used = re.findall(r"\b((?:sponge|nv_inference|process)_\w+)", expression)
        assert used, expression
        assert set(used) <= names, expression
        by = {part.strip() for parts in re.findall(r"by \((.*?)\)", expression)
              for part in parts.split(",")}  # fmt: skip
        of_all = set().union(*(labels[name] for name in used))
        assert by <= of_all, expression
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"instance"}
            used = re.findall(r"\b((?:sponge|nv_inference)_\w+)", target["expr"])
            assert named <= set().union(*(labels[name] for name in used), {"le"})


def test_the_dashboard_shows_everything_of_ours() -> None:
    shown = set(re.findall(r"\b(sponge_\w+)", " ".join(EXPRESSIONS)))
    names, _ = exposed()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if "sponge" in name}
    not_shown = families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert not_shown <= {
        "sponge_server_info",
        "sponge_uptime_seconds",
        "sponge_cores_held",
        "sponge_cores_used",
        "sponge_replicas_ready",
        "sponge_cpu_seconds_total",
        "sponge_variant_info",
    }


def test_the_docs_name_all_metrics() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    named = set(re.findall(r"`(sponge_\w+)`", page))
    families = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()[0] if "sponge_" in name
    }
    assert named == families


def test_the_docs_name_all_examples() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    shown = {file.name for file in FOLDER.iterdir() if file.is_file()}
    assert not {name for name in shown if name not in page}


COMMANDS = [
    (file, whole or within)
    for file in (*FOLDER.glob("*.*"), ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    for whole, within in re.findall(
        r"^ *(?:\$ )?(sponge (?:serve|load) [^`\n]+)|`(sponge (?:serve|load) -[^`]+)`",
        file.read_text(),
        re.MULTILINE,
    )
]


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_commands_that_are_shown_can_be_given(command: str) -> None:
    _, name, *arguments = shlex.split(command, comments=True)
    (serve_parser().parse_args if name == "serve" else parse_load)(arguments)
