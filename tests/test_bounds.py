"""The clairvoyant bounds of suites, which stand beside agents in the results."""

from pathlib import Path

import pytest

import evaluate
from sponge_env.oracle import bound
from sponge_env.run.read import load_results
from sponge_env.run.suite import cells, load_suite

pytestmark = pytest.mark.usefixtures("unpainted")

STAGES = """
seeds = 2
starts = ["cold"]
bounds = ["vertical", "joint"]
[[cells]]
scenarios = ["pipeline-video", "paper"]
changes = { duration_s = 5.0 }
[agents.static-8]
"""


@pytest.mark.usefixtures("inline")
def test_cells_with_stages_run_without_a_bound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("stages.toml").write_text(STAGES)
    assert evaluate.main("--suite stages.toml --run-dir run --jobs 1".split()) == 0
    staged, plain = capsys.readouterr().out.split("paper, yolov5s, cold start")[:2]
    assert "over bound" not in staged.partition("paper, ")[0]
    assert "oracle-joint" in plain
    results = load_results(Path("run"))
    played = results[results["agent"] == "oracle-joint"]
    assert set(played["scenario"]) == {"paper"}
    _, paper = cells(load_suite("stages.toml"))
    for episode in played.to_dict("records"):
        found = bound(paper, episode["seed"], joint=True)
        assert episode["violations"] == found.violations_upper
        assert episode["core_seconds"] == pytest.approx(found.core_seconds_upper)
    assert evaluate.main("--agent oracle --scenario pipeline-video".split()) != 0
    assert "'pipeline-video' has stages, which have no bound" in capsys.readouterr().err
    assert evaluate.main("--agent oracle --scenario bursty --load 1.5".split()) != 0
    assert "'bursty' is overloaded all the time, and so has no bound" in capsys.readouterr().err
