"""The examples and the benchmark run as their pages say, and dashboards name what there is."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from itertools import count

import numpy as np
import pytest
from fake_oip import FakeServer, serving
from project import ROOT
from scenarios import SHORT
from served import running
from served_story import SERVED, Story

from benchmarks import throughput
from sponge_env.k8s.launcher import Resizes
from sponge_env.run.suite import chosen
from sponge_env.serve.__main__ import _parser as serve_parser
from sponge_env.serve.load.__main__ import _parse as parse_load
from sponge_env.serve.monitor.exposition import exposition

pytestmark = pytest.mark.usefixtures("unpainted")


def example(name):
    return importlib.import_module(f"examples.{name}")


def test_ppo_in_the_manner_of_cleanrl_trains_here_as_on_cartpole(capsys):
    script, size = example("cleanrl_ppo"), ["--num-envs", "2", "--num-steps", "64"]
    assert len(script.main(["--env-id", "CartPole-v1", "--total-timesteps", "512", *size])) > 5
    capsys.readouterr()
    script.main(["--env-id", "SpongeDiscrete-v0", "--total-timesteps", "256", *size])
    assert "update 1 of 2, mean reward -" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RecurrentPPO", "MaskablePPO", "QRDQN", "TQC"])
def test_algorithms_of_sb3_contrib_train(name, monkeypatch):
    contrib = pytest.importorskip("sb3_contrib")
    if name == "MaskablePPO":  # else it collects 2,048 steps first
        monkeypatch.setattr(contrib, name, partial(contrib.MaskablePPO, n_steps=64))
    assert example("sb3_algorithms").train(name, 120, scenario=SHORT) < 0


def test_the_page_shows_the_example_that_runs():
    page = (ROOT / "docs" / "controllers.md").read_text()
    shown = re.search(r"\n(class KeepUp.*?)```", page, re.DOTALL)
    code = [line.strip() for line in shown[1].splitlines() if line.strip()]
    source = (ROOT / "examples" / "keep_up.py").read_text()
    source = re.sub(r"(reset|decide)\(self, (.*?)\) -> \w+:", _without_types, source)
    lines = {line.strip() for line in source.splitlines()}
    assert [line for line in code if line not in lines] == []


def test_every_controller_that_the_page_names_is_there():
    page = (ROOT / "docs" / "controllers.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    names = re.findall(r"`([a-z0-9-]+)`", " ".join(rows))
    agents, bounds = chosen(names)
    assert len(agents) + len(bounds) == len(names) > 20


def _without_types(match):
    names = ", ".join(part.split(":")[0] for part in match[2].split(", "))
    return f"{match[1]}(self, {names}):"


def test_everything_is_measured(monkeypatch, inline):
    cpu, wall = np.min([throughput.taken_ns(lambda: sum(range(100_000))) for _ in range(5)], axis=0)
    assert 0 < cpu < 1.5 * wall
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(throughput, "BATCHES", {"a": (2, 1), throughput.GATE: (3, 2)})
    monkeypatch.setattr(throughput, "AGENTS", {"static-16": ""})
    monkeypatch.setattr(throughput, "LATER_AGENTS", {})
    monkeypatch.setattr(throughput, "CHAINS", ("pipeline-nlp",))
    monkeypatch.setattr(throughput, "STEPS", 600)
    monkeypatch.setattr(throughput, "SEEDS", 1)
    calls = count(1)

    def longer_each_time(work):
        work()
        return np.array([next(calls), next(calls)], float)

    monkeypatch.setattr(throughput, "taken_ns", longer_each_time)
    found = throughput.measure("all")
    shared = ["a", throughput.GATE, "one environment", "evaluate, static-16"]
    assert [*throughput.measure("shared")] == shared == [*found][:4]
    chain = "1,024 pipeline-nlp, 2 threads"
    assert [*found][4:] == ["4,096 paper-10rps, 2 threads", chain]
    assert all(cpu > 0 and wall > 0 for cpu, wall in found.values())


def test_another_installation_is_not_measured(own_folder):
    with pytest.raises(RuntimeError, match="there is no sponge_env in"):
        throughput.measure("gate")


FOLDER = ROOT / "examples" / "serving"


def run(*command, **environment):
    done = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient(kind):
    pytest.importorskip("tritonclient")
    with running() as server:
        options = ["--protocol", kind, "--url", getattr(server, kind)]
        out = run(sys.executable, "client.py", *options, "--model", "tiny", "--slo-ms", "20000")
    assert "output of shape (1, 2)" in out
    assert re.search(r"deadline_met +True", out)
    (call,) = server.engine.calls
    assert 15 < call.deadline_s - call.sent_s < 21


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl():
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


def exposed():
    """Return the names of all samples, with the labels of each."""
    story = Story(SERVED, resizes=lambda: Resizes(1.5, 1.25, {"NoPod": 1}, ended=4, lag_s=0.8))
    story.play(400)
    labels = {}
    for line in exposition(story.metrics).decode().splitlines():
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            labels.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    return labels


def families(names):
    """Return those of ours, without the ends of histograms."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if "sponge_" in name}


def test_the_dashboard_names_metrics_that_there_are():
    labels = exposed()
    for expression in EXPRESSIONS:
        used = re.findall(r"\b((?:sponge|process)_\w+)", expression)
        assert used, expression
        assert set(used) <= labels.keys(), expression
        by = {part.strip() for parts in re.findall(r"by \((.*?)\)", expression)
              for part in parts.split(",")}  # fmt: skip
        assert by <= set().union(*(labels[name] for name in used)), expression
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"instance"}
            used = re.findall(r"\b(sponge_\w+)", target["expr"])
            assert named <= set().union(*(labels[name] for name in used), {"le"})


def test_the_dashboard_shows_everything_of_ours():
    shown = set(re.findall(r"\b(sponge_\w+)", " ".join(EXPRESSIONS)))
    others = "server_info uptime_seconds cores_held cores_used replicas_ready cpu_seconds_total"
    others = {f"sponge_{name}" for name in (*others.split(), "variant_info")}
    assert families(exposed()) - families(shown) <= others


def test_the_docs_name_all_metrics_and_examples():
    page = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("serving", "protocol"))
    assert set(re.findall(r"`sponge_(\w+)`", page)) == {n[7:] for n in families(exposed())}
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
def test_commands_that_are_shown_can_be_given(command):
    _, name, *arguments = shlex.split(command, comments=True)
    (serve_parser().parse_args if name == "serve" else parse_load)(arguments)
