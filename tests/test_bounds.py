"""The clairvoyant bounds of suites: those that ship, and the command that finds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from report_runs import COLD, keep, write_suite

import evaluate
from sponge_env.app.report import main as report
from sponge_env.run import bounds
from sponge_env.run.read import load_bounds, load_results
from sponge_env.run.suite import cell_name, cells, load_suite
from sponge_env.scenario.config import ControlName
from sponge_env.scenario.scenario import Scenario, load_scenario

pytestmark = pytest.mark.usefixtures("unpainted")

BOUNDED = load_suite("paper")
SHIPPED = json.loads(bounds.SHIPPED.read_text())
PAPER = load_scenario("paper-300kb")
SUITE = """
seeds = 2
starts = ["cold"]
bounds = ["vertical", "joint"]
[[cells]]
scenarios = ["paper"]
profiles = ["resnet18"]
changes = { duration_s = 5.0 }
[agents.static-8]
"""


@pytest.mark.parametrize("kind", BOUNDED.bounds)
def test_those_that_ship_are_of_the_cells_of_their_suite(kind: ControlName) -> None:
    found = {cell_name(c): bounds.shipped(c, kind) for c in cells(BOUNDED)}
    assert found.keys() == SHIPPED.keys()
    old = [name for name, own in found.items() if len(own) < BOUNDED.seeds]
    assert not old, "run make bounds"


@pytest.mark.parametrize("kind", ["vertical", "joint"])
def test_what_ships_is_what_is_found(kind: ControlName) -> None:
    assert bounds.bound_of(PAPER, 3, kind) == tuple(bounds.shipped(PAPER, kind)[3])


def test_a_changed_scenario_has_bounds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bound_of(scenario: Scenario, seed: int, control: str) -> tuple[float, ...]:
        asked.append(seed)
        return 0.0, 1.0, 9.0, 10.0

    monkeypatch.setattr(bounds, "bound_of", bound_of)
    known = bounds.BoundUnit("vertical", PAPER, 2).found()
    assert len(known) == 2
    assert not asked
    slower = dataclasses.replace(PAPER, slo_s=2.0)
    assert bounds.BoundUnit("vertical", slower, 2).found() != known
    assert asked == [0, 1]


@pytest.mark.usefixtures("inline")
def test_the_command_writes_them_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SUITE)
    assert bounds.main(["--suite", "mine.toml", "--jobs", "1", "--out", "out.json"]) == 0
    written = json.loads(Path("out.json").read_text())
    entry = written.pop("paper+resnet18+cold")
    assert {kind: len(found["seeds"]) for kind, found in entry.items()} == {
        "joint": 2,
        "vertical": 2,
    }
    for lower, upper, least, most in entry["joint"]["seeds"]:
        assert lower <= upper
        assert 0 < least <= most
    assert written.keys() == SHIPPED.keys()


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
def test_cells_with_stages_run_without_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stages.toml").write_text(STAGES)
    assert evaluate.main("--suite stages.toml --run-dir run --jobs 1".split()) == 0
    staged, plain = capsys.readouterr().out.split("paper, yolov5s, cold start")[:2]
    assert "over bound" not in staged.partition("paper, ")[0]
    assert "oracle-joint" in plain
    assert set(load_bounds(Path("run"))["scenario"]) == {"paper"}
    assert evaluate.main("--agent oracle --scenario pipeline-video".split()) != 0
    assert "'pipeline-video' has stages, which have no bound" in capsys.readouterr().err


def test_the_relaxations_of_an_earlier_version_are_not_read(tmp_path: Path) -> None:
    run = write_suite(tmp_path / "earlier", {"fa2": ([0] * 3, 6.0)}, [COLD])
    numbers = {"accuracy_upper": 1.0, "violations_0": 0.0, "core_seconds_0": 9.0}
    kept = [{"seed": seed, **numbers} for seed in range(3)]
    keep(run, "relaxation", COLD, {"relaxations": kept})
    assert report([str(run)]) == 0
    assert set(load_results(run)["agent"]) == {"fa2"}
    assert load_bounds(run).empty
