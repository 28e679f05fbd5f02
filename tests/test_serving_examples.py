"""Clients of others ask a server, and dashboards name what there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from fake_oip import FakeServer, serving
from served import running
from served_story import SERVED, Story

from sponge_env.serve.__main__ import _parser as serve_parser
from sponge_env.serve.load.__main__ import _parse as parse_load
from sponge_env.serve.monitor.exposition import exposition

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "serving"


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient(kind: str) -> None:
    pytest.importorskip("tritonclient")
    with running() as server:
        options = ["--protocol", kind, "--url", getattr(server, kind)]
        out = run(sys.executable, "client.py", *options, "--model", "tiny", "--slo-ms", "20000")
    assert "output of shape (1, 2)" in out
    assert re.search(r"deadline_met +True", out)
    (call,) = server.engine.calls
    assert 15 < call.deadline_s - call.sent_s < 21


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

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "sponge.json").read_text())
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(each["expr"] for each in DASHBOARD["annotations"]["list"]),
    *(v["definition"] for v in DASHBOARD["templating"]["list"] if "definition" in v),
]


def exposed() -> dict[str, set[str]]:
    """Return the names of all samples, with the labels of each."""
    story = Story(SERVED)
    story.play(400)
    labels: dict[str, set[str]] = {}
    for line in exposition(story.metrics).decode().splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            labels.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    return labels


def families(names: Iterable[str]) -> set[str]:
    """Return those of ours, without the ends of histograms."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if "sponge_" in name}


def test_the_dashboard_names_metrics_that_there_are() -> None:
    labels = exposed()
    for expression in EXPRESSIONS:
        used = re.findall(r"\b((?:sponge|process)_\w+)", expression)
        assert used, expression
        assert set(used) <= labels.keys(), expression
        by = {part.strip() for parts in re.findall(r"by \((.*?)\)", expression)
              for part in parts.split(",")}  # fmt: skip
        of_all = set().union(*(labels[name] for name in used))
        assert by <= of_all, expression
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"instance"}
            used = re.findall(r"\b(sponge_\w+)", target["expr"])
            assert named <= set().union(*(labels[name] for name in used), {"le"})


def test_the_dashboard_shows_everything_of_ours() -> None:
    shown = set(re.findall(r"\b(sponge_\w+)", " ".join(EXPRESSIONS)))
    assert families(exposed()) - families(shown) <= {
        "sponge_server_info",
        "sponge_uptime_seconds",
        "sponge_cores_held",
        "sponge_cores_used",
        "sponge_replicas_ready",
        "sponge_cpu_seconds_total",
        "sponge_variant_info",
    }


def test_the_docs_name_all_metrics_and_examples() -> None:
    page = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("serving", "protocol"))
    assert set(re.findall(r"`(sponge_\w+)`", page)) == families(exposed())
    assert not [file.name for file in FOLDER.iterdir() if file.is_file() and file.name not in page]


COMMANDS = [
    (file, whole or within)
    for file in (*FOLDER.glob("*.*"), *ROOT.glob("*.md"), *ROOT.glob("d*/*.[ms]*"))
    for whole, within in re.findall(
        r"^ *(?:\$ |\S+/)?(sponge (?:serve|load) [^`\n]+)|`(sponge (?:serve|load) -[^`]+)`",
        file.read_text(),
        re.MULTILINE,
    )
]


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_commands_that_are_shown_can_be_given(command: str) -> None:
    _, name, *arguments = shlex.split(command, comments=True)
    (serve_parser().parse_args if name == "serve" else parse_load)(arguments)
