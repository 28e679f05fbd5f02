"""The clairvoyant bounds of suites: those that ship, and the command that finds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import evaluate
from sponge_env.oracle import relaxation
from sponge_env.run import bounds
from sponge_env.run.read import load_bounds, load_results
from sponge_env.run.suite import RELAXATION, cell_name, cells, load_suite
from sponge_env.scenario.config import ControlName
from sponge_env.scenario.scenario import Scenario

STANDARD = load_suite("standard")
CELLS = {cell_name(cell): cell for cell in cells(STANDARD)}
STAGED = load_suite("stages")
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


@pytest.mark.parametrize("kind", STANDARD.bounds)
def test_those_of_the_standard_suite_ship(kind: ControlName) -> None:
    missing = {
        name: len(bounds.shipped(cell, kind))
        for name, cell in CELLS.items()
        if len(bounds.shipped(cell, kind)) < STANDARD.seeds
    }
    assert not missing, "run make bounds"


def test_those_of_the_suite_of_stages_ship() -> None:
    found = {cell_name(c): len(bounds.shipped(c, RELAXATION)) for c in cells(STAGED)}
    assert set(found.values()) == {STAGED.seeds}, "run make bounds"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("paper-100kb+resnet18+cold", "vertical"), ("flash-crowd+lite0+cold", "joint")],
)
def test_what_ships_is_what_is_found(name: str, kind: ControlName) -> None:
    assert bounds.bound_of(CELLS[name], 3, kind) == tuple(bounds.shipped(CELLS[name], kind)[3])


def test_a_changed_scenario_has_bounds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bound_of(scenario: Scenario, seed: int, control: str) -> tuple[float, ...]:
        asked.append(seed)
        return 0.0, 1.0, 9.0, 10.0

    monkeypatch.setattr(bounds, "bound_of", bound_of)
    cell = CELLS["paper-100kb+resnet18+cold"]
    known = bounds.BoundUnit("vertical", cell, 2).found()
    assert len(known) == 2
    assert not asked
    slower = dataclasses.replace(cell, slo_s=2.0)
    assert bounds.BoundUnit("vertical", slower, 2).found() != known
    assert asked == [0, 1]


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
    assert written.keys() == CELLS.keys() | {cell_name(cell) for cell in cells(STAGED)}


STAGES = """
seeds = 2
starts = ["cold"]
bounds = ["vertical", "joint"]
[[cells]]
scenarios = ["pipeline-video"]
changes = { duration_s = 20.0, "network.base_delay_s" = 0.05 }
[agents.static-8]
[agents.fa2]
"""


def test_tables_hold_each_episode_against_the_relaxation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stages.toml").write_text(STAGES)
    assert evaluate.main("--suite stages.toml --run-dir run --jobs 1".split()) == 0
    said = capsys.readouterr().out
    assert "cores over" in said
    assert "the relaxation" in said
    assert "beyond attained bound     %" not in said
    episodes = load_results(Path("run"))
    assert len(episodes) == 4
    assert load_bounds(Path("run")).empty
    scenario = cells(load_suite("stages.toml"))[0]
    least = [relaxation(scenario, seed) for seed in range(2)]
    for each in episodes.itertuples():
        ratio = each.core_seconds / least[each.seed].core_seconds(each.violations)
        assert each.cores_over_relaxation >= max(1.0, ratio)
        if each.violations <= least[each.seed].violations_lower:
            assert each.cores_over_relaxation == pytest.approx(ratio)
